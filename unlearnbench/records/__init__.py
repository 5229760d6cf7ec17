"""Records: what a run leaves on disk, how it was made and how to read it.

It may import the registry, the interfaces and what lies below them.
"""
