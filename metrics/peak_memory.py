"""Peak memory of preparing and unlearning."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class PeakMemory(Metric):
    """On CUDA the most memory allocated at once, on Linux CPUs the growth of the resident set; unknown elsewhere."""

    title, axis, better, unit, scale, digits = "peak memory", "cost", "lower", "MiB", 1 / 2**20, 0
    stored = "bytes"
    rank = 3

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Bytes."""
        value = outcome.cost["peak_memory"]
        return Score(value, 1, reason=outcome.cost["peak_memory_kind"] if value is None else None)

    def known(self) -> Iterator[Known]:
        """What was measured while unlearning."""
        yield Known("little", toy.outcome(cost={"peak_memory": 2.0}), 2.0, quality="good")
        yield Known("much", toy.outcome(cost={"peak_memory": 8.0}), 8.0, quality="bad")
        yield Known("the system cannot tell", toy.outcome(cost={"peak_memory": None}), None)
