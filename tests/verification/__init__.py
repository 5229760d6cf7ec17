"""Tests of `unlearnbench/verification/`."""
