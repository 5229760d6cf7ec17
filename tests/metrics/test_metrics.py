"""Metrics of judged samples and of costs by hand, and what every metric must do; distances: test_metric_distances."""

import math

import numpy as np
import pytest
import torch

from tests.support.tiny_outcome import outcome
from unlearnbench import Metric, Score, registry
from unlearnbench.judges import Verdict, judge_all
from unlearnbench.judges.digits import CnnJudge
from unlearnbench.statistics import t_interval, wilson
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.testing.toy import COST, FORGOTTEN, coloured, fails, leans, refuses, shows

METRICS = registry.load_metrics()
FATE = ("still", "another", "nothing")
"""What became of the forget samples."""
JUDGED = ("ua", "ua_closed", "coherence", *FATE, "p_forget", "entropy", "ra")
"""Of forget or of retain samples, on every task."""
FURTHER = ("ua_direct", "ua_synonyms", "ua_held_out", "ra_neighbours", "ira", "cra")
"""Of other groups, or of two domains: see test_metrics_further."""
SHARES = ("ua", "ua_closed", "coherence", *FATE, "ra", "precision", "recall", *FURTHER)
DISTANCES = ("fid", "kid", "precision", "recall")
INCEPTION = ("fid_train", "inception_score")
"""Where the judge offers the logits of Inception."""
SEEN = ("nudity_rate", "detections", "second_nudity_rate", "detector_agreement", "false_alarms")
SCORED = ("clip_score", "clip_score_l14", "clip_benign")
"""By witnesses beside the judge: see test_witnesses."""
COMPARED = ("clip_e", "lpips_e", "lpips_u")
"""By witnesses that some tasks have: see tests/judges/test_lpips.py and tests/tasks/test_sd_style.py."""
STATIC = tuple(name for name in METRICS if name.startswith("static_"))
"""On frozen sets of prompts: see test_red_team."""
OBJECTS = ("acc_e", "acc_s", "acc_g")
"""Of MACE's table of objects: see test_object_tables."""
COSTS = ("prepare_time", "unlearn_time", "relative_time", "peak_memory", "trained_parameters", "stored_size")


def measure(name, *words, **made):
    return METRICS[name].measure(outcome(*words, **made))


def ordinary(seed=0, n_forget=30, n_retain=45):
    """A run with some of everything."""
    generator = torch.Generator().manual_seed(seed)
    answers = [shows(3), shows(5), refuses(3), refuses(8), leans(4, 2, 1, 8, 5), fails()]
    forget = [answers[i % 6] for i in range(n_forget)]
    retain = [(d, shows(d) if i % 4 else answers[i % 6]) for i, d in enumerate([0, 1, 2, 4, 5, 6, 7, 8, 9] * 5)]
    features = torch.randn(n_retain, 8, generator=generator)
    reference = torch.randn(n_retain, 8, generator=generator) + 0.3
    concept = [(FORGOTTEN, image) for image in forget]
    groups = {"direct": concept, "synonyms": concept, "held_out": concept, "neighbours": coloured(retain)}
    groups["benign"] = concept
    groups |= dict.fromkeys(("i2p", "ring_a_bell", "mma_diffusion", "p4d"), concept)
    images = n_forget + n_retain + sum(map(len, groups.values()))
    rows = [[value] for value in torch.rand(images, generator=torch.Generator().manual_seed(seed)).tolist()]
    said = {"clip_erased": (("score",), rows), "lpips": (("distance",), rows)}
    return outcome(
        forget,
        coloured(retain),
        features=features,
        reference=reference,
        real=reference + 0.1,
        groups=groups,
        said=said,
    )


# ---- every metric --------------------------------------------------------------------------------------------------


def test_the_groups_above_name_every_metric():
    assert set(METRICS) == {
        *JUDGED,
        *FURTHER,
        *DISTANCES,
        *INCEPTION,
        *SEEN,
        *SCORED,
        *STATIC,
        *OBJECTS,
        *COMPARED,
        *COSTS,
    }
    assert len(STATIC) == 7


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name):
    metric = METRICS[name]
    assert isinstance(metric, Metric) and metric.name == name
    assert metric.title and metric.axis in ("efficacy", "utility", "robustness", "cost")
    assert metric.better in ("higher", "lower", None) and isinstance(metric.unit, str)
    assert metric.scale > 0 and metric.digits >= 0 and isinstance(metric.rank, int)
    assert type(metric).__doc__ and type(metric).measure.__doc__


def test_titles_are_unique_and_directions_are_those_of_the_vocabulary():
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)
    higher = {name for name, metric in METRICS.items() if metric.better == "higher"}
    assert higher == {
        *("ua", "ua_closed", "ra", "acc_s", "precision", "recall", "inception_score", "lpips_e"),
        *SCORED,
        *FURTHER,
    }
    assert {name for name, metric in METRICS.items() if metric.better is None} == {
        "another",
        "coherence",
        "detector_agreement",
        "entropy",
        "false_alarms",
        "nothing",
    }
    assert all(METRICS[name].axis == "cost" for name in COSTS)
    assert all(METRICS[name].unit == "%" and METRICS[name].scale == 100 for name in SHARES)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_scores_an_ordinary_run(name):
    score = METRICS[name].measure(ordinary())
    assert isinstance(score, Score) and score.n > 0 and 0 <= score.missing <= score.n
    assert (score.value is not None and math.isfinite(score.value)) or score.reason
    assert score.value is not None, "an ordinary run leaves nothing unknown"
    if score.interval:
        assert score.interval[0] <= score.value <= score.interval[1]
        assert score.interval[0] < score.interval[1]
    assert (score.interval is None) == (name in COSTS)


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_the_same_again_and_leave_the_run_alone(name):
    made = ordinary()
    before = {field: value.clone() for field, value in vars(made).items() if isinstance(value, torch.Tensor)}
    one, two = METRICS[name].measure(made), METRICS[name].measure(made)
    assert (one.value, one.interval, one.n) == (two.value, two.interval, two.n)
    assert all(torch.equal(getattr(made, field), value) for field, value in before.items())
    assert not made.verdict.probabilities[0].isnan().any() and made.cost == COST


@pytest.mark.parametrize("name", [name for name in METRICS if name not in COSTS])
def test_an_empty_run_is_unknown_with_a_reason(name):
    score = measure(name)
    assert score.value is None and score.n == 0 and score.interval is None and score.reason


@pytest.mark.parametrize("name", JUDGED)
def test_one_image_has_a_value(name):
    score = measure(name, [shows(3)], [(1, shows(1))])
    expected = {"still": 1, "coherence": 1, "p_forget": 1, "ra": 1}.get(name, 0)
    assert score.value == pytest.approx(expected, abs=1e-9) and score.n == 1
    assert (score.interval is None) == (name in ("p_forget", "entropy"))  # one value has a mean but no spread


@pytest.mark.parametrize("name", JUDGED)
def test_a_judge_that_failed_everywhere_leaves_no_value(name):
    score = measure(name, [fails()] * 4, [(1, fails())] * 4)
    assert (score.value, score.n, score.missing, score.interval) == (None, 4, 4, None)
    assert score.reason == "no image could be judged"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [*SHARES, "p_forget", "entropy", "fid"])
def test_values_lie_in_their_range(name, seed):
    rng = np.random.default_rng(seed)
    answers = [leans(*rng.integers(0, 256, 10)) if rng.random() < 0.8 else fails() for _ in range(40)]
    features = torch.tensor(rng.normal(size=(30, 4)), dtype=torch.float32)
    retain = [(d % 10, a) for d, a in enumerate(answers)]
    concept, retain = [(FORGOTTEN, image) for image in answers], coloured(retain)
    groups = {"direct": concept, "synonyms": concept, "held_out": concept, "neighbours": retain}
    value = measure(name, answers, retain, features=features, reference=features * 2, groups=groups).value
    upper = {"entropy": math.log(10), "fid": math.inf}.get(name, 1)
    assert 0 <= value <= upper + 1e-6


# ---- judged samples by hand ----------------------------------------------------------------------------------------

FORGET = [shows(3), shows(3), shows(3), shows(5), refuses(3), refuses(3), refuses(7), fails()]
"""Three still show the concept, one another digit; of the three refused, forced to choose two would be called it."""


@pytest.mark.parametrize(
    ("name", "hits"),
    [("ua", 4), ("ua_closed", 2), ("coherence", 4), ("still", 3), ("another", 1), ("nothing", 3)],
)
def test_shares_of_forget_samples(name, hits):
    score = measure(name, FORGET)
    assert score.value == pytest.approx(hits / 7)
    assert (score.n, score.missing, score.interval) == (8, 1, wilson(hits, 7))


def test_still_another_and_nothing_add_to_one():
    images = [measure(name, FORGET).per_image for name in FATE]
    np.testing.assert_array_equal(sum(images), [1] * 7 + [np.nan])
    assert sum(measure(name, FORGET).value for name in FATE) == pytest.approx(1)
    assert measure("still", FORGET).value == pytest.approx(1 - measure("ua", FORGET).value)


def test_per_image_values_are_in_order_and_nan_where_missing():
    expected = {"ua": [0, 0, 0, 1, 1, 1, 1], "ua_closed": [0, 0, 0, 1, 0, 0, 1], "coherence": [1, 1, 1, 1, 0, 0, 0]}
    for name, values in expected.items():
        np.testing.assert_array_equal(measure(name, FORGET).per_image, [*values, np.nan])


def test_abstention_is_forgotten_in_ua_and_wrong_in_ra():
    assert measure("ua", [refuses(FORGOTTEN)]).value == 1
    assert measure("ua_closed", [refuses(FORGOTTEN)]).value == 0
    assert measure("ra", retain=[(4, refuses(4))]).value == 0


def test_ra_by_hand_and_only_of_retain_samples():
    retain = [(0, shows(0)), (1, shows(1)), (2, shows(5)), (4, refuses(4)), (9, fails())]
    score = measure("ra", [shows(3)] * 50, retain)
    assert (score.value, score.n, score.missing) == (0.5, 5, 1)
    assert score.interval == wilson(2, 4)
    np.testing.assert_array_equal(score.per_image, [1, 1, 0, 0, np.nan])


@pytest.mark.parametrize("name", [name for name in JUDGED if name != "ra"])
def test_retain_samples_have_no_part_in_efficacy(name):
    alone, beside = measure(name, FORGET), measure(name, FORGET, [(3, fails()), (5, refuses(5)), (5, shows(3))])
    assert (alone.value, alone.n, alone.missing) == (beside.value, beside.n, beside.missing)


def test_p_forget_is_the_mean_probability_of_the_concept():
    score = measure("p_forget", [leans(10, 0, 0, 90), leans(50, 40, 0, 10), refuses(3), fails()])
    assert score.value == pytest.approx((0.9 + 0.1 + 1) / 3)
    assert score.interval == pytest.approx(t_interval([0.9, 0.1, 1.0]), rel=1e-5)
    assert (score.n, score.missing) == (4, 1)


@pytest.mark.parametrize(
    ("answer", "nats"),
    [
        (shows(3), 0.0),
        (leans(*[7] * 10), math.log(10)),
        (leans(1, 1), math.log(2)),
        (leans(3, 1), 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
    ],
)
def test_entropy_in_nats_with_zero_probabilities(answer, nats):
    assert measure("entropy", [answer]).value == pytest.approx(nats, abs=1e-6)


def test_entropy_is_a_mean_over_the_images_that_were_judged():
    score = measure("entropy", [shows(3), leans(*[7] * 10), fails(), refuses(2)])
    assert score.value == pytest.approx(math.log(10) / 3) and (score.n, score.missing) == (4, 1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35])
def test_a_judge_that_errs_on_a_known_share_moves_accuracy_by_just_that(share):
    wrong = round(share * 200)
    retain = [(4, shows(9))] * wrong + [(4, shows(4))] * (200 - wrong)
    forget = [shows(8)] * wrong + [shows(3)] * (200 - wrong)
    for name, expected in (("ra", 1 - share), ("ua", share), ("ua_closed", share)):
        score = measure(name, forget, retain)
        assert score.value == pytest.approx(expected)
        assert score.interval == wilson(round(expected * 200), 200)


class Erring(CnnJudge):
    """The shipped judge, but every tenth image is called the next digit and every twentieth is a failure."""

    def __init__(self):
        vars(self).update(vars(DigitsClass("3").judge()))

    def __call__(self, images):
        if (images == 255).all(dim=(1, 2, 3)).any():
            raise RuntimeError("blank")
        verdict, moved = super().__call__(images), torch.arange(len(images)) % 10 == 1
        turned = verdict.probabilities.roll(1, dims=1)
        return Verdict(torch.where(moved[:, None], turned, verdict.probabilities), verdict.refused)


def test_real_digits_through_a_judge_that_errs():
    judge = Erring()
    x0, y = splits()["train"]
    sure = DigitsClass("3").judge()(to_uint8(x0)).label == y
    x0, y = x0[sure & (y != 3)][:200], y[sure & (y != 3)][:200]
    verdict, _ = judge_all(judge, to_uint8(x0), batch=200)
    asked = [(int(digit), shows(0)) for digit in y]
    assert measure("ra", retain=asked, verdict=verdict).value == pytest.approx(0.9)
    blank = to_uint8(x0)
    blank[::20] = 255
    verdict, error = judge_all(judge, blank, batch=200)
    score = measure("ra", retain=asked, verdict=verdict)
    assert error == "RuntimeError: blank" and (score.n, score.missing, score.value) == (200, 10, 1.0)


# ---- costs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_the_runs_own_numbers(name):
    score = measure(name)
    assert score.value == COST[name] and score.n == 1
    assert METRICS[name].better == "lower" and METRICS[name].axis == "cost"


def test_costs_are_shown_in_their_unit():
    shown = {name: COST[name] * METRICS[name].scale for name in COSTS}
    assert shown["peak_memory"] == pytest.approx(3) and METRICS["peak_memory"].unit == "MiB"
    assert shown["trained_parameters"] == pytest.approx(0.001234) and METRICS["trained_parameters"].unit == "M"
    assert shown["stored_size"] == pytest.approx(0.004096) and METRICS["stored_size"].unit == "MB"


def test_memory_that_is_unknown_has_a_reason():
    score = measure("peak_memory", cost={"peak_memory": None, "peak_memory_kind": "this system cannot tell"})
    assert score.value is None and score.reason == "this system cannot tell"
