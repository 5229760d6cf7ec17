"""Metrics: one file for each measurement; the file name is the metric's name."""
