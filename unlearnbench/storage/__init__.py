"""Files on disk: the store of finished stages, weights, and arrays read in parts.

It may import the modules at the root that need no model (errors, hashing, reporting, statistics, training).
"""
