"""Tests of `unlearnbench/data/`."""
