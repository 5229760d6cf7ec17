"""Inception Score of retain samples: is each classified with certainty, and do they cover many classes?"""

from collections.abc import Iterator

import numpy as np

from unlearnbench import Known, Metric, Outcome, Score, taken
from unlearnbench.feature_distances import inception_score
from unlearnbench.statistics import block_jackknife, t_interval
from unlearnbench.testing import toy


class InceptionScore(Metric):
    """exp E KL(p(y|x) || p(y)) by the judge's logits (Salimans et al., NeurIPS 2016).

    The mean over n // 5,000 equal splits (5,000 images in the papers' evaluator), with a t-interval over them. Fewer
    than 10,000 images form one split, with a delete-block jackknife. With fewer than 5,000 images the score is biased
    low.
    """

    title, axis, better, digits = "Inception Score", "utility", "higher", 2
    rank, everywhere, limits, judge_needs, split = 9, False, (1.0, None), "has_logits", 5000

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """A number >= 1; other real images instead of samples give the floor."""
        features, n = outcome.features, len(outcome.features)
        logits_from = outcome.task.judge().logits_from  # type: ignore[attr-defined]
        if n < 2:
            return Score(None, n, reason=f"{n} images with features, at least 2 are needed")
        values, real = (
            [inception_score(taken(side, part), logits_from) for part in self.splits(len(side))]
            for side in (features, outcome.real)
        )
        interval = t_interval(values) or block_jackknife(lambda i: inception_score(taken(features, i), logits_from), n)
        floor = float(np.mean(real)) if len(outcome.real) > 1 else None
        return Score(float(np.mean(values)), n, interval=interval, floor=floor)

    def splits(self, n: int) -> list[np.ndarray]:
        """Images of each split, by torch-fidelity's permutation, since samples are ordered by class."""
        count = max(1, n // self.split)
        order = np.random.RandomState(2020).permutation(n)
        return [np.sort(order[i * n // count : (i + 1) * n // count]) for i in range(count)]

    def known(self) -> Iterator[Known]:
        """The toy judge's logits are its features: 100 against 0 is certainty, or a tie of several classes."""
        one, other, *_ = kinds = [[100 * (kind == k) for k in range(10)] for kind in range(10)]
        pairs = [[100 * (k // 2 == pair) for k in range(10)] for pair in range(2)]
        yield Known("ten kinds, equally often", toy.outcome(retain=toy.points(*kinds * 2)), 10.0, quality="good")
        yield Known("three to one", toy.outcome(retain=toy.points(one, one, one, other)), 4 / 3**0.75)
        yield Known("two kinds at once, or two others", toy.outcome(retain=toy.points(*pairs * 3)), 2.0)
        yield Known("collapsed", toy.outcome(retain=toy.points(*[one] * 20)), 1.0, quality="bad")
        yield Known("of no kind", toy.outcome(retain=toy.points(*[[7] * 10] * 20)), 1.0, quality="bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights show nothing; a filter leaves retained concepts alone."""
        ranges = {"original": (0.999, np.inf), "destroy": (0.999, original), "retrain": (original / 2, original * 2)}
        return ranges.get(control, (original - 1e-6, original + 1e-6))
