"""Tests of `unlearnbench/report/`."""
