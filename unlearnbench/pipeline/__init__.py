"""One cell: unlearn, sample, judge, score and record one method on one task.

It may import `records` and what lies below it.
"""
