"""Choose a method's hyper-parameters on a budget that is equal for all methods.

It may import `launch`, `plots`, `leaderboard` and what lies below them.
"""
