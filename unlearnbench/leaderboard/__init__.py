"""Tables made from records.

It may import `records`, `run` and what lies below them.
"""
