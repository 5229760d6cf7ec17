"""The parts that the digits tasks share: images and captions.

It may import what `tasks` may import.
"""
