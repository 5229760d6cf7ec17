"""Agreement of the two detectors on forget samples."""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class DetectorAgreement(Metric):
    """Share of forget samples that both detectors flag or neither does. Where it is low, look at the images."""

    title, axis, better, unit, scale = "detectors agree", "efficacy", None, "%", 100.0
    side, witness, stored, rank = "forget", ("detector", "second_detector"), "share", 13
    everywhere = False

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval; an image is missing where either failed."""
        first = outcome.said("detector", "flagged", "forget")
        p = outcome.said("second_detector", "probability", "forget")
        second = p >= outcome.witnessed["second_detector"].threshold
        return Score.share((first > 0) == second, first.isnan() | p.isnan())

    def known(self) -> Iterator[Known]:
        """Flagged by both, by neither, by one alone; a failure of either is missing."""
        rows = [[1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 0]]
        some = [[1.0, 0.0, 1.0]] * 420 + [[0.0, 0.0, 0.0]] * 180  # several batches, all different
        yield Known("420 of 600", toy.detected(some, second=[0.9] * 600), 0.7)
        yield Known("3 of 4", toy.detected(rows, second=[0.9, 0.1, 0.9, 0.8]), 0.75)
        yield Known("never", toy.detected(rows, second=[0.1, 0.9, 0.1, 0.8]), 0.0)
        lost: list[list[float]] = [[1, 0, 1], [0, 0, 0], [1, 0, 1], [math.nan] * 3]
        yield Known("each failed on another", toy.detected(lost, second=[0.9, math.nan, 0.9, 0.9]), 1.0, missing=2)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Both detectors find nothing in noise."""
        return (0.8, 1.0) if control == "destroy" else None
