"""What the Stable Diffusion tasks share.

It may import what `tasks` may import.
"""
