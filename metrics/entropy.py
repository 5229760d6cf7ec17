"""Entropy of the judge's closed-set probabilities on forget samples: high where it cannot decide."""

import math
from collections.abc import Iterator

import torch

from unlearnbench import Known, Metric, Outcome, Score, toy


class Entropy(Metric):
    """Mean of -sum p log p over forget samples (Heng & Soh, NeurIPS 2023), with 0 log 0 = 0."""

    title, axis, better, unit, digits = "entropy", "efficacy", "higher", "nats", 2
    side = "forget"
    limits = (0.0, None)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean in [0, log K], t-interval over images."""
        verdict = outcome.forget.verdict
        return Score.mean(torch.special.entr(verdict.probabilities).sum(dim=1), verdict.missing)

    def known(self) -> Iterator[Known]:
        """Sure: 0; between two: log 2; none of ten: log 10."""
        half = [toy.shows(3)] * 300 + [toy.leans(100, 100)] * 300  # in several batches of the judge, of all kinds
        yield Known("300 sure, 300 between two", toy.outcome(half), math.log(2) / 2)
        yield Known("sure", toy.outcome([toy.shows(3)] * 3), 0.0, quality="bad")
        yield Known("any of ten", toy.outcome([toy.leans(*[20] * 10)]), math.log(10), quality="good")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The judge is sure of real digits, also of those that the filter shows instead."""
        return (0.0, 0.2) if control in ("original", "prompt_filter") else None
