"""Building blocks of methods: adapters, closed-form edits, guidance, gates, searches, neurons, sparse autoencoders.

It may import the interfaces (`task`, `method`, `metric`) and what lies below them.
"""
