"""Tests of `unlearnbench/tasks/`."""
