"""Tests of `unlearnbench/pipeline/`."""
