"""Tests of `methods/`."""
