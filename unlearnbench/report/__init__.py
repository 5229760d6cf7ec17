"""Pages for readers: the HTML report and the README of a results folder.

It may import everything but `tune`, `verification` and `cli`.
"""
