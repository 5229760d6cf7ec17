"""Write a record's model or images for other programs.

It may import `pipeline`, `leaderboard` and what lies below them.
"""
