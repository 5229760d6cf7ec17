"""Tests of `unlearnbench/compute/`."""
