"""Tests of `unlearnbench/attacks/`."""
