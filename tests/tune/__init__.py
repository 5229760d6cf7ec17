"""Tests of `unlearnbench/tune/`."""
