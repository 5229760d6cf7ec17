"""What a run computes on and what it costs: device, precision, environment and evaluation budget.

It may import the basic modules at the root, `storage` and `diffusion`.
"""
