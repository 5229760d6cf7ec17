"""Likeness to retrain: do forget samples look like those of models that never saw the concept?

Exact unlearning means just this (Bourtoule et al., IEEE S&P 2021, section III): the model cannot be told from one that
was trained without the forgotten data. Two distances between forget samples are measured. Verdicts: the total variation
between the shares of the judge's verdicts, one for each class and one for "refused". Features: KID in the judge's
features (Binkowski et al., ICLR 2018). Both are scaled so that the original is 0, and 1 is another run of retrain: what
one seed of retrain is away from the others. The worse of the two is the likeness. It is not clipped: noise can lie
further from retrain than the original does, and then is below 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unlearnbench.records.image_table import read_features
from unlearnbench.statistics import BLOCKS, Interval, t_interval

if TYPE_CHECKING:
    import pandas as pd

LEAST_RETRAINS = 3
"""Runs of retrain that the distance between two of its seeds is taken from."""
REFUSED = -1
"""Stands for "refused" among the classes."""


class ForgetSamples(NamedTuple):
    """What a judge made of a run's forget samples."""

    verdicts: np.ndarray
    """(F,) class, or `REFUSED`; images that could not be judged are left out."""
    features: np.ndarray | None
    """(F, D); None where they were not kept."""

    def without(self, block: int) -> ForgetSamples:
        """Leave out every image whose place is `block` modulo `BLOCKS`."""
        keep = [np.arange(len(part)) % BLOCKS != block for part in (self.verdicts, self.features) if part is not None]
        features = None if self.features is None else self.features[keep[1]]
        return ForgetSamples(self.verdicts[keep[0]], features)


class Part(NamedTuple):
    """One of the two distances, scaled."""

    value: float
    interval: Interval | None


class Likeness(NamedTuple):
    """How like retrain's forget samples those of a method are: 0 is the original, 1 another run of retrain."""

    verdicts: Part | None = None
    features: Part | None = None
    reason: str | None = None
    """Why there is none."""

    @property
    def worse(self) -> Part | None:
        """The smaller of the two; None unless both are known."""
        if self.verdicts is None or self.features is None:
            return None
        return min(self.verdicts, self.features, key=lambda part: part.value)


Distance = Callable[[ForgetSamples, Sequence[ForgetSamples]], float]
"""The distance of a run from several others together."""


def total_variation(one: ForgetSamples, others: Sequence[ForgetSamples]) -> float:
    """Total variation in [0, 1] between one run's shares of verdicts and the mean shares of others."""
    mine, pooled = _shares(one.verdicts), defaultdict[int, float](float)
    for other in others:
        for label, share in _shares(other.verdicts).items():
            pooled[label] += share / len(others)
    return sum(abs(mine.get(label, 0.0) - pooled.get(label, 0.0)) for label in {*mine, *pooled}) / 2


def _shares(verdicts: np.ndarray) -> dict[int, float]:
    return {int(label): count / len(verdicts) for label, count in Counter(verdicts.tolist()).items()}


def feature_distance(one: ForgetSamples, others: Sequence[ForgetSamples]) -> float:
    """Mean KID between one run and each of the others.

    It differs from KID against all others together by a constant, their own spread, which scaling takes away.
    """
    found = []
    for other in others:
        assert one.features is not None and other.features is not None
        n = min(len(one.features), len(other.features))
        found += _kid(one.features[:n], other.features[:n])
    return float(np.mean(found))


_known: dict[tuple[bytes, bytes], list[float]] = {}
"""KID of two runs by hashes of their features: runs of retrain recur for each method and in each jackknife."""


def _kid(one: np.ndarray, other: np.ndarray) -> list[float]:
    import torch

    from unlearnbench.feature_distances import squared_mmd

    key = _hash(one), _hash(other)
    if key not in _known:
        _known[key] = squared_mmd(torch.from_numpy(one), torch.from_numpy(other))
    return _known[key]


def _hash(features: np.ndarray) -> bytes:
    return sha256(f"{features.dtype} {features.shape} ".encode() + features.tobytes()).digest()


def forget_samples(frame: pd.DataFrame | None) -> ForgetSamples | None:
    """Read a run's forget samples from its per-image values; None without any that was judged."""
    if frame is None or not {"judged", "refused"} <= set(frame):
        return None
    rows = frame[frame["group"] == "forget"]
    rows = rows[rows["judged"].notna()]
    if rows.empty:
        return None
    verdicts = np.where(rows["refused"].to_numpy(bool), REFUSED, rows["judged"].to_numpy(np.int64))
    return ForgetSamples(verdicts, read_features(frame))


def likeness_to_retrain(
    own: Iterable[ForgetSamples], original: ForgetSamples | None, retrains: Sequence[ForgetSamples]
) -> Likeness:
    """Compare the runs of a method with those of retrain.

    Args:
        own: The method's runs, one or more seeds.
        original: The original's run.
        retrains: Runs of retrain, each from another seed; those of `own` among them are compared with the others.
    """
    own = list(own)
    if len(retrains) < LEAST_RETRAINS:
        return Likeness(reason=f"{LEAST_RETRAINS} runs of retrain are needed, there {_are(len(retrains))}")
    if not own or original is None:
        return Likeness(reason="no forget samples were judged")
    if any(each.features is None for each in (*own, original, *retrains)):
        return Likeness(reason="a run was recorded without the features of its forget samples")
    found: dict[str, Part] = {}
    for name, distance in (("verdicts", total_variation), ("features", feature_distance)):
        part = _scaled(own, original, retrains, distance)
        if part is None:
            return Likeness(reason=f"by {name}, the original is no further from retrain than its own runs are")
        found[name] = part
    return Likeness(found["verdicts"], found["features"])


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}" if count else "is none"


def _scaled(
    own: Sequence[ForgetSamples], original: ForgetSamples, retrains: Sequence[ForgetSamples], distance: Distance
) -> Part | None:
    """The mean over a method's runs, with an interval; None where the anchors are not clear of each other."""
    apart = [distance(one, _without(one, retrains)) for one in retrains]
    zero, one = distance(original, retrains), float(np.mean(apart))
    if zero <= max(apart):
        return None
    values = [(zero - distance(run, _without(run, retrains))) / (zero - one) for run in own]
    mean = float(np.mean(values))
    spread = [t_interval(values)] if len(values) > 1 else [_over_images(own[0], original, retrains, distance, mean)]
    spread.append(_over_retrains(own, original, retrains, distance, mean))
    return Part(mean, _together(mean, spread))


def _over_images(
    run: ForgetSamples,
    original: ForgetSamples,
    retrains: Sequence[ForgetSamples],
    distance: Distance,
    centre: float,
) -> Interval | None:
    """Delete-block jackknife over the images of all sides, for a single run; blocks are by place in the plan."""
    if len(run.verdicts) < 2 * BLOCKS:
        return None
    values = []
    for block in range(BLOCKS):
        less = {id(each): each.without(block) for each in (run, original, *retrains)}
        others = [less[id(each)] for each in retrains]
        found = _plain(less[id(run)], less[id(original)], others, distance)
        if found is not None:
            values.append(found)
    return _jackknife(values, centre)


def _over_retrains(
    own: Sequence[ForgetSamples],
    original: ForgetSamples,
    retrains: Sequence[ForgetSamples],
    distance: Distance,
    centre: float,
) -> Interval | None:
    """Delete-one jackknife over the runs of retrain, which are as random as the method's."""
    values = []
    for left in retrains:
        others = _without(left, retrains)
        found = [_plain(run, original, others, distance) for run in own]
        if (known := [value for value in found if value is not None]) and len(known) == len(found):
            values.append(float(np.mean(known)))
    return _jackknife(values, centre)


def _plain(
    run: ForgetSamples, original: ForgetSamples, retrains: Sequence[ForgetSamples], distance: Distance
) -> float | None:
    pairs = [distance(a, [b]) for a, b in combinations(retrains, 2)]
    zero, one = distance(original, retrains), float(np.mean(pairs))
    return None if zero <= one else (zero - distance(run, _without(run, retrains))) / (zero - one)


def _without(run: ForgetSamples, retrains: Sequence[ForgetSamples]) -> list[ForgetSamples]:
    """The runs of retrain but this one, if it is among them; another that is equal to it stays."""
    place = next((i for i, each in enumerate(retrains) if each is run), len(retrains))
    return [*retrains[:place], *retrains[place + 1 :]]


def _jackknife(values: Sequence[float], centre: float) -> Interval | None:
    if len(values) < 2:
        return None
    from scipy.stats import t

    n, array = len(values), np.asarray(values)
    half = float(t.ppf(0.975, n - 1) * math.sqrt((n - 1) / n * ((array - array.mean()) ** 2).sum()))
    return centre - half, centre + half


def _together(centre: float, spread: Iterable[Interval | None]) -> Interval | None:
    """Add independent sources of error: the squares of their half widths."""
    known = [interval for interval in spread if interval is not None]
    half = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in known))
    return (centre - half, centre + half) if known else None
