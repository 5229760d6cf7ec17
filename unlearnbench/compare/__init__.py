"""Compare two methods or two records.

It may import `leaderboard`, `pipeline` and what lies below them.
"""
