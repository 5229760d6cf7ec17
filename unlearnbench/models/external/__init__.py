"""Weights that others released: reading their layouts and applying them to our models.

It may import what `models` may import.
"""
