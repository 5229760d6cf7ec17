"""Tests of `unlearnbench/run/`."""
