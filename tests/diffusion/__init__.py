"""Tests of `unlearnbench/diffusion/`."""
