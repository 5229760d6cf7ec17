"""Tests of `unlearnbench/storage/`."""
