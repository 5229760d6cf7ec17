"""Models: existing networks behind the `Diffusion` interface."""
