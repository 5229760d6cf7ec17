"""Data sets, concepts and downloads.

It may import the basic modules at the root, `storage` and `diffusion`.
"""
