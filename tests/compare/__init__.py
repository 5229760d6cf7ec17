"""Tests of `unlearnbench/compare/`."""
