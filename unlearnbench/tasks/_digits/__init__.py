"""Images and captions that the digits tasks share.

It may import what `tasks` may import.
"""
