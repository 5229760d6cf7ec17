"""Weights that others released: read their layouts and apply them to our models.

It may import what `models` may import.
"""
