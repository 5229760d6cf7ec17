"""Tests of `unlearnbench/plots/`."""
