"""FID between retain samples and real training images, the reference of the papers on CIFAR-10."""

from collections.abc import Iterator
from dataclasses import replace

from unlearnbench import Known
from unlearnbench.metrics.fid import FID


class FIDTrain(FID):
    """FID against training images; held-out images give the floor. Equals FID if the protocol uses training images."""

    title, rank, everywhere = "FID train", 8, False
    against, judge_needs = "real", "has_logits"

    def known(self) -> Iterator[Known]:
        """FID's cases, with the reference as training images and no held-out ones."""
        for case in super().known():
            yield case._replace(outcome=replace(case.outcome, real=case.outcome.reference, reference=case.outcome.real))
