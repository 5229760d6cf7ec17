"""Tests of `unlearnbench/export/`."""
