"""Stored size: bytes of the tensors that differ from the original's."""

from unlearnbench import Metric, Outcome, Score


class StoredSize(Metric):
    """What must be kept beside the original to have the unlearned model."""

    title, axis, better, unit, scale, digits = "stored", "cost", "lower", "MB", 1e-6, 2
    stored = "bytes"

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Bytes."""
        return Score(outcome.cost["stored_size"], 1)
