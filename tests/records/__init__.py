"""Tests of `unlearnbench/records/`."""
