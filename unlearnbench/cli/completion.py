"""What a shell completes: names of methods, tasks, metrics and attacks. It reads file names and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unlearnbench import registry

Candidates = list[tuple[str, str]]
"""Words, each with a line about it."""


def complete_methods(incomplete: str) -> Candidates:
    """Methods for --method, and `all`; the last of comma-separated names is completed."""
    return _completed(incomplete, {**_summaries(registry.methods()), "all": "every method that the task can host"})


def complete_tasks(incomplete: str) -> Candidates:
    """Tasks for --task."""
    return _completed(incomplete, _summaries(registry.tasks()))


def complete_metrics(incomplete: str) -> Candidates:
    """Metrics for --columns; the last of comma-separated names is completed."""
    return _completed(incomplete, _summaries(registry.metrics()))


def complete_attacks(incomplete: str) -> Candidates:
    """Attacks for --attacks, and `standard`; the last of comma-separated names is completed."""
    return _completed(incomplete, {**_summaries(registry.attacks()), "standard": "the standard ensemble"})


def complete_listed(incomplete: str) -> Candidates:
    """What `list` describes: the kinds, and each thing of a kind."""
    kinds = dict.fromkeys(("methods", "tasks", "metrics", "attacks", "checkpoints", "fidelity"), "all of them")
    every = (registry.methods, registry.tasks, registry.metrics, registry.attacks)
    return _completed(incomplete, kinds | {name: text for kind in every for name, text in _summaries(kind()).items()})


def _summaries(entries: Mapping[str, registry.Entry]) -> dict[str, str]:
    return {name: entry.summary for name, entry in entries.items()}


def _completed(incomplete: str, known: Mapping[str, str]) -> Candidates:
    """The names that the last comma-separated word begins, after the words before it, which are not offered again."""
    before, comma, last = incomplete.rpartition(",")
    given = set(_words(before))
    return [
        (f"{before}{comma}{name}", text) for name, text in known.items() if name.startswith(last) and name not in given
    ]


def _words(text: str) -> Iterable[str]:
    return (word.strip() for word in text.split(","))
