"""Compare two methods or two records.

It may import `leaderboard`, `run` and what lies below them.
"""
