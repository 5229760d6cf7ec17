"""Tests of `unlearnbench/cli/`."""
