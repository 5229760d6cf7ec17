"""Entropy of the judge's closed-set probabilities on forget samples: high where the judge is undecided."""

import math
from collections.abc import Iterator

import torch

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class Entropy(Metric):
    """Mean of -sum p log p over forget samples (Heng & Soh, NeurIPS 2023), with 0 log 0 = 0.

    Neither direction is better: noise has a high entropy and another clear digit a low one, and both have forgotten.
    """

    title, axis, better, unit, digits = "entropy", "efficacy", None, "nats", 2
    side = "forget"
    limits = (0.0, None)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean in [0, log K] nats, with a t-interval over images."""
        verdict = outcome.forget.verdict
        return Score.mean(torch.special.entr(verdict.probabilities).sum(dim=1), verdict.missing)

    def known(self) -> Iterator[Known]:
        """0 for certainty, log 2 between two classes, log 10 between all ten."""
        half = [toy.shows(3)] * 300 + [toy.leans(100, 100)] * 300  # several batches of the judge, of all kinds
        yield Known("300 sure, 300 between two", toy.outcome(half), math.log(2) / 2)
        yield Known("sure", toy.outcome([toy.shows(3)] * 3), 0.0)
        yield Known("any of ten", toy.outcome([toy.leans(*[20] * 10)]), math.log(10))

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The judge is sure of real digits, including those that the filter shows instead."""
        return (0.0, 0.2) if control in ("original", "prompt_filter") else None
