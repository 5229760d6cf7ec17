"""Tests of `unlearnbench/judges/`."""
