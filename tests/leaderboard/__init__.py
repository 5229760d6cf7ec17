"""Tests of `unlearnbench/leaderboard/`."""
