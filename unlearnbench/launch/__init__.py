"""Run many cells as jobs: on this machine, on Ray or on Slurm.

It may import `run`, `leaderboard` and what lies below them.
"""
