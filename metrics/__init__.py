"""Metrics: one measurement, one file; the file name is the metric."""
