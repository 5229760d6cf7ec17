"""Tests of `unlearnbench/models/`."""
