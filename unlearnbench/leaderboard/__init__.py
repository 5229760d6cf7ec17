"""Tables made from records.

It may import `records`, `pipeline` and what lies below them.
"""
