"""Tools for attacks on unlearned models: the base class and the searches.

It may import the interfaces (`task`, `method`, `metric`), `tasks` and what lies below them.
"""
