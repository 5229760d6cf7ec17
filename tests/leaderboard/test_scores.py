"""Anchored scores: erasure, likeness to retrain, utility, and ranks by their worst."""

from __future__ import annotations

import math
from collections import Counter
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from tests.support.small_world import made_record
from unlearnbench import feature_distances
from unlearnbench.leaderboard.board import ForgetReader, board, board_scores
from unlearnbench.leaderboard.likeness import (
    REFUSED,
    ForgetSamples,
    feature_distance,
    forget_samples,
    likeness_to_retrain,
    total_variation,
)
from unlearnbench.leaderboard.ranking import rank_of
from unlearnbench.leaderboard.rows import Rank, Stat
from unlearnbench.records.image_table import FEATURES

RNG = np.random.default_rng(0)
DIGITS = {label: RNG.normal(size=16) * 2 for label in range(10)}
"""Where the features of each digit lie; those of noise are far from all."""
DIGITS[REFUSED] = np.full(16, 6.0)


def drawn(shares, seed, n=60):
    """Forget samples with these shares of verdicts, and features around those of each."""
    rng = np.random.default_rng(seed)
    counts = [round(share * n) for share in shares.values()]
    verdicts = np.repeat(list(shares), counts)
    features = np.stack([DIGITS[label] for label in verdicts]) + rng.normal(size=(len(verdicts), 16)) * 0.3
    order = rng.permutation(len(verdicts))
    return ForgetSamples(verdicts[order], features[order].astype(np.float32))


ORIGINAL = drawn({3: 0.95, 5: 0.05}, 1)
RETRAINS = [drawn({8: 0.6, 5: 0.4}, 2), drawn({8: 0.5, 5: 0.5}, 3), drawn({8: 0.5, 5: 0.4, 9: 0.1}, 4)]


def variation(one, others):
    """Total variation, computed over all labels."""
    mine, theirs = Counter(one.verdicts.tolist()), [Counter(other.verdicts.tolist()) for other in others]
    pooled = {k: np.mean([c[k] / c.total() for c in theirs]) for k in (*range(10), REFUSED)}
    return 0.5 * sum(abs(mine[k] / mine.total() - pooled[k]) for k in pooled)


def mmd(a, b):
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3."""
    k = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    n = len(a)
    within = sum((k(x, x).sum() - np.trace(k(x, x))) / (n * (n - 1)) for x in (a, b))
    return within - 2 * k(a, b).mean()


def test_distances_are_those_of_their_definitions():
    assert total_variation(RETRAINS[0], [ORIGINAL]) == pytest.approx(variation(RETRAINS[0], [ORIGINAL]))
    assert total_variation(ORIGINAL, RETRAINS) == pytest.approx(variation(ORIGINAL, RETRAINS))
    assert total_variation(ORIGINAL, [ORIGINAL]) == 0
    one, others = ORIGINAL.features.astype(float), [r.features.astype(float) for r in RETRAINS]
    assert feature_distance(ORIGINAL, RETRAINS) == pytest.approx(np.mean([mmd(one, o) for o in others]), rel=1e-4)


def test_the_distance_of_two_runs_is_measured_once(monkeypatch):
    plain, measured = feature_distances.squared_mmd, []
    monkeypatch.setattr(feature_distances, "squared_mmd", lambda *sides: measured.append(sides) or plain(*sides))
    run = drawn({8: 1.0}, 21)
    first = feature_distance(run, RETRAINS)
    assert len(measured) == len(RETRAINS)
    assert feature_distance(run._replace(features=run.features.copy()), RETRAINS) == first
    assert len(measured) == len(RETRAINS)
    changed = run.features.copy()
    changed[0] += 1
    assert feature_distance(run._replace(features=changed), RETRAINS) != first
    assert len(measured) == 2 * len(RETRAINS)


def test_likeness_is_0_for_the_original_and_1_for_retrain_on_average():
    zero, one = likeness_to_retrain([ORIGINAL], ORIGINAL, RETRAINS), likeness_to_retrain(RETRAINS, ORIGINAL, RETRAINS)
    for found, expected in ((zero, 0.0), (one, 1.0)):
        assert found.verdicts.value == pytest.approx(expected) and found.features.value == pytest.approx(expected)
        assert found.reason is None
    other = drawn({8: 0.5, 5: 0.45, 9: 0.05}, 9)
    floor = np.mean([variation(r, [o for o in RETRAINS if o is not r]) for r in RETRAINS])
    far = variation(ORIGINAL, RETRAINS)
    found = likeness_to_retrain([other], ORIGINAL, RETRAINS)
    assert found.verdicts.value == pytest.approx((far - variation(other, RETRAINS)) / (far - floor))
    assert found.worse.value > 0.9
    low, high = found.worse.interval
    assert low < found.worse.value < high


@pytest.mark.parametrize(
    "shares", [{REFUSED: 1.0}, {0: 1.0}, {3: 0.5, REFUSED: 0.5}], ids=["noise", "one other digit", "half and half"]
)
def test_what_retrain_would_never_draw_is_far_from_it(shares):
    assert likeness_to_retrain([drawn(shares, 5)], ORIGINAL, RETRAINS).worse.value < 0.25


def test_seeds_that_differ_widen_the_interval():
    alike = [drawn({8: 0.5, 5: 0.5}, seed) for seed in range(3)]
    apart = [drawn({8: share, 5: 1 - share}, 7) for share in (0.0, 0.5, 1.0)]
    spans = [likeness_to_retrain(runs, ORIGINAL, RETRAINS).verdicts.interval for runs in (alike, apart)]
    assert spans[1][1] - spans[1][0] > 2 * (spans[0][1] - spans[0][0])


@pytest.mark.filterwarnings("error")
def test_equal_runs_of_retrain_are_read_once_and_count_each():
    """A reader gives runs with equal values as one object."""
    same, own = RETRAINS[0], drawn({8: 1.0}, 5)
    copies = [ForgetSamples(same.verdicts.copy(), same.features.copy()) for _ in range(3)]
    assert likeness_to_retrain([own], ORIGINAL, [same] * 3) == likeness_to_retrain([own], ORIGINAL, copies)
    assert likeness_to_retrain([same], ORIGINAL, [same] * 3) == likeness_to_retrain([copies[0]], ORIGINAL, copies)


@pytest.mark.parametrize(
    ("own", "original", "retrains", "reason"),
    [
        ([ORIGINAL], ORIGINAL, RETRAINS[:2], "3 runs of retrain are needed, there are 2"),
        ([ORIGINAL], ORIGINAL, [], "there is none"),
        ([], ORIGINAL, RETRAINS, "no forget samples were judged"),
        ([ORIGINAL._replace(features=None)], ORIGINAL, RETRAINS, "without the features"),
        ([ORIGINAL], RETRAINS[1], RETRAINS, "no further from retrain"),
    ],
)
def test_without_a_likeness_there_is_a_reason(own, original, retrains, reason):
    found = likeness_to_retrain(own, original, retrains)
    assert found.worse is None and reason in found.reason


def test_forget_samples_are_read_from_the_per_image_values():
    frame = pd.DataFrame(
        {
            "group": ["retain", "forget", "forget", "forget"],
            "judged": pd.array([1, 3, 8, None], dtype="Int16"),
            "refused": pd.array([False, False, True, None], dtype="boolean"),
            "features": [None, *(np.full(4, i, FEATURES).tobytes() for i in range(3))],
        }
    )
    found = forget_samples(frame)
    assert found.verdicts.tolist() == [3, REFUSED]
    assert found.features.tolist() == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    assert forget_samples(frame.drop(columns="features")).features is None
    assert forget_samples(None) is None and forget_samples(frame[:1]) is None


# ---- scores of records ---------------------------------------------------------------------------------------------


def hash_of(name, seed):
    return sha256(f"{name} {seed}".encode()).hexdigest()


def recorded(name, seed, scores, **changes):
    return made_record(name, seed, scores, images=hash_of(name, seed), **changes)


CONTROLS = {
    "original": [recorded("original", 0, {"ua": 0.05, "ra": 0.95, "fid": 1.0})],
    "destroy": [recorded("destroy", 0, {"ra": 0.15, "fid": math.e**5})],
    "retrain": [recorded("retrain", seed, {"ua": 1.0}) for seed in range(3)],
}
SAMPLES = {hash_of("original", 0): ORIGINAL} | {hash_of("retrain", i): run for i, run in enumerate(RETRAINS)}


class Reader(ForgetReader):
    """Reads forget samples that were made here."""

    def __init__(self, **own):
        super().__init__(lambda record: None)
        self.samples = SAMPLES | {hash_of(name, 0): found for name, found in own.items()}

    def of(self, record):
        return self.samples.get(record.images)


def scored(scores, samples=RETRAINS[1], **controls):
    return board_scores([recorded("esd", 0, scores)], {**CONTROLS, **controls}, reader=Reader(esd=samples))


def test_a_score_is_the_worst_of_erasure_likeness_and_utility():
    found = scored({"ua": 0.525, "ra": 0.55, "fid": math.e**1})
    assert found.value("erasure") == pytest.approx(0.5), "anchored at the original alone"
    assert found.value("utility_ra") == pytest.approx(0.5) and found.value("utility_fid") == pytest.approx(0.8)
    assert found.value("utility") == pytest.approx(0.5)
    assert found.value("likeness") > 0.9 and found.value("score") == pytest.approx(0.5)
    worse = scored({"ua": 1.0, "ra": 0.95, "fid": math.e**4})
    assert worse.value("utility") == worse.value("score") == pytest.approx(0.2), "FID counts as well as RA"
    noise = scored({"ua": 1.0, "ra": 0.95, "fid": 1.0}, drawn({REFUSED: 1.0}, 5))
    assert noise.value("erasure") == pytest.approx(1.0) and noise.value("utility") == pytest.approx(1.0)
    assert noise.value("score") == noise.value("likeness") < 0.1
    stat = found.stats["erasure"]
    ua = recorded("esd", 0, {"ua": 0.525}).scores["ua"].interval
    assert (stat.low, stat.high) == pytest.approx(tuple((end - 0.05) / 0.95 for end in ua))


def test_scores_are_never_clipped():
    found = scored({"ua": 0.0, "ra": 0.07, "fid": math.e**6})
    assert found.value("erasure") == pytest.approx(-0.05 / 0.95)
    assert found.value("utility_ra") == pytest.approx(-0.1) and found.value("utility_fid") == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("controls", "lacking", "reason"),
    [
        ({"destroy": []}, "utility", "utility_ra: an anchor was not measured"),
        ({"original": []}, "erasure", "erasure: an anchor was not measured"),
        ({"retrain": CONTROLS["retrain"][:1]}, "likeness", "3 runs of retrain are needed, there is 1"),
        ({"original": [recorded("original", 0, {"ua": 0.95, "ra": 0.9, "fid": 1})]}, "erasure", "not clear"),
    ],
)
def test_without_an_anchor_there_is_no_score_but_a_reason(controls, lacking, reason):
    found = scored({"ua": 0.9, "ra": 0.9, "fid": 2.0}, **controls)
    assert found.value(lacking) is None and found.value("score") is None
    assert reason in found.unscored


def test_a_task_that_cannot_be_trained_has_a_score_without_likeness():
    changes = {"task": "sd-object"}
    controls = {
        name: [recorded(name, 0, scores, **changes)]
        for name, scores in (
            ("original", {"ua": 0.05, "ra": 0.95, "fid": 1.0}), ("destroy", {"ra": 0.15, "fid": 100.0})
        )
    }  # fmt: skip
    own = recorded("esd", 0, {"ua": 0.905, "ra": 0.95, "fid": 1.0}, **changes)
    found = board_scores([own], controls)
    assert found.value("score") == pytest.approx(0.9) and found.value("likeness") is None


# ---- ranks ---------------------------------------------------------------------------------------------------------


def test_ranks_share_places_and_span_what_is_not_told_apart():
    stats = {
        0: Stat(0.9, low=0.85, high=0.95),
        1: Stat(0.7, low=0.6, high=0.86),
        2: Stat(0.5, low=0.4, high=0.59),
        3: Stat(0.5, low=0.3, high=0.62),
        4: Stat(),
    }
    assert rank_of(stats) == {0: Rank(1, 1, 2), 1: Rank(2, 1, 3), 2: Rank(3, 3, 4), 3: Rank(3, 2, 4)}
    assert [str(rank) for rank in rank_of(stats).values()] == ["1 (1–2)", "2 (1–3)", "3 (3–4)", "3 (2–4)"]
    assert str(Rank(2, 2, 2)) == "2"


def test_controls_are_never_ranked():
    rows = board([*(run for runs in CONTROLS.values() for run in runs), recorded("esd", 0, {"ua": 0.9})])
    assert all(row.rank is None for row in rows)
