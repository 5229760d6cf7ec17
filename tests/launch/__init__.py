"""Tests of `unlearnbench/launch/`."""
