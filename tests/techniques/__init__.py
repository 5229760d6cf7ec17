"""Tests of `unlearnbench/techniques/`."""
