"""Adapters from networks to `Diffusion`."""
