"""Toy models and outcomes whose results are known.

It may import the interfaces, `tasks`, `attacks` and what lies below them.
"""
