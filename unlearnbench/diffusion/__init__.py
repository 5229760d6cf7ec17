"""Diffusion models as methods and metrics use them: model, noise, samplers and schedulers.

It may import the basic modules at the root.
"""
