"""Entropy of the judge's closed-set probabilities on forget samples: high where it cannot decide."""

import torch

from unlearnbench import Metric, Outcome, Score


class Entropy(Metric):
    """Mean of -sum p log p over forget samples (Heng & Soh, NeurIPS 2023), with 0 log 0 = 0."""

    title, axis, better, unit, digits = "entropy", "efficacy", "higher", "nats", 2

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean in [0, log K], t-interval over images."""
        verdict = outcome.forget.verdict
        return Score.mean(torch.special.entr(verdict.probabilities).sum(dim=1), verdict.missing)
