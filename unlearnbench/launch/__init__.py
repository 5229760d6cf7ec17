"""Run many cells as jobs: on this machine, on Ray or on Slurm.

It may import `pipeline`, `leaderboard` and what lies below them.
"""
