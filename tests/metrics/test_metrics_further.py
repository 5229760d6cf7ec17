"""Metrics of further groups of prompts and of two domains, against counts by hand."""

import numpy as np
import pytest

from unlearnbench import Plan, registry
from unlearnbench.fingerprint import definitions
from unlearnbench.pipeline import scoring
from unlearnbench.statistics import wilson
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.testing.toy import fails, outcome, refuses, shows

METRICS = registry.load_metrics()
SIDES = {"ua_direct": "direct", "ua_synonyms": "synonyms", "ua_held_out": "held_out", "ra_neighbours": "neighbours"}
RED, GREEN = 0, 1


def measure(name, retain=(), **groups):
    return METRICS[name].measure(outcome([shows(3)] * 7, retain, groups=groups))


@pytest.mark.parametrize("name", ["ua_direct", "ua_synonyms", "ua_held_out"])
def test_ua_of_its_own_group_alone(name):
    images = [(3, shows(3)), (3, shows(5)), (3, refuses(3)), (3, fails()), (3, shows(3))]
    score = measure(name, **{SIDES[name]: images})
    assert (score.value, score.n, score.missing, score.interval) == (0.5, 5, 1, wilson(2, 4))
    np.testing.assert_array_equal(score.per_image, [0, 1, 1, np.nan, 0])


RETAIN = [
    (5, shows(5).of(GREEN), GREEN),
    (5, shows(5).of(GREEN), RED),
    (5, shows(6).of(GREEN), GREEN),
    (5, refuses(5).of(GREEN), GREEN),
    (5, shows(5).of(GREEN, faint=True), GREEN),
    (5, shows(5).of(GREEN)),
    (5, shows(6).of(GREEN)),
    (5, fails(), GREEN),
    (5, fails()),
]
"""Right; another colour; another digit; each refused; no colour asked for, right and wrong; failed, both ways."""
NAN = np.nan
EXPECTED = {
    "ra": [1, 0, 0, 0, 0, 1, 0, NAN, NAN],
    "ra_neighbours": [1, 0, 0, 0, 0, 1, 0, NAN, NAN],
    "ira": [1, 1, 0, 0, 1, 1, 0, NAN, NAN],
    "cra": [1, 0, 1, 1, 0, NAN, NAN, NAN, NAN],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_digit_and_colour_by_hand(name):
    score = measure(name, neighbours=RETAIN) if name in SIDES else measure(name, RETAIN)
    values = np.array(EXPECTED[name], dtype=float)
    hits, kept = int(np.nansum(values)), int((~np.isnan(values)).sum())
    np.testing.assert_array_equal(score.per_image, values)
    assert score.value == pytest.approx(hits / kept) and score.interval == wilson(hits, kept)
    assert (score.n, score.missing) == ((6, 1) if name == "cra" else (9, 2))


def test_forgetting_a_colour_its_domain_is_colours():
    """The label asked for first is of the forgotten concept's domain, digits are the other one."""
    made = outcome(
        retain=[(5, shows(5).of(GREEN), GREEN), (5, shows(6).of(GREEN), GREEN), (5, shows(5).of(RED), GREEN)]
    )
    plan = [item._replace(label=item.other, other=item.label) for item in made.plan]
    turned = type(made)(**{**vars(made), "plan": plan, "verdict": made.besides, "besides": made.verdict})
    assert [METRICS[name].measure(turned).value for name in ("ira", "cra", "ra")] == pytest.approx(
        [2 / 3, 2 / 3, 1 / 3]
    )
    assert [METRICS[name].measure(made).per_image.tolist() for name in ("ira", "cra")] == [[1, 0, 1], [1, 1, 0]]
    assert [METRICS[name].measure(turned).per_image.tolist() for name in ("ira", "cra")] == [[1, 1, 0], [1, 0, 1]]


def test_metrics_apply_where_their_images_are_planned():
    plain = [Plan("forget", "3", 3, 0), Plan("retain", "4", 4, 1)]
    both = [Plan("forget", "3", 3, 0, other=11), Plan("retain", "4", 4, 1, other=11)]
    further = {"ua_direct", "ua_synonyms", "ua_held_out", "ra_neighbours", "ira", "cra"}
    assert not [name for name in further if METRICS[name].everywhere]

    def applying(plan):
        return {name for name in further if METRICS[name].applies(plan)}

    assert applying(plain) == applying([plain[0]._replace(other=11), plain[1]]) == set()
    assert applying(both) == {"ira", "cra"}
    for name, side in SIDES.items():
        assert applying([*plain, Plan(side, "3", 3, 2)]) == {name}
        assert applying([*plain, Plan(side, "3", 3, 2, other=11)]) == {name}
    assert not further & set(scoring.metrics_for(DigitsClass("3")))


def test_the_code_of_a_metric_is_that_of_its_bases_too():
    used = {one.name for one in definitions([type(METRICS["ua_held_out"])])}
    assert {"UAHeldOut", "UASynonyms"} <= used


def test_the_toy_judge_keeps_two_domains_apart():
    made = outcome(retain=[(5, shows(5).of(GREEN, faint=True), GREEN), (6, refuses(6).of(RED), RED)])
    assert made.retain.verdict.label.tolist() == [5, -1]
    assert made.retain.besides.label.tolist() == [-1, 10]
    assert made.retain.other.tolist() == [11, 10]
