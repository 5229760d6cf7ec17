"""What forgetting does to every concept, counted by hand from a few images."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from tests.support.small_world import made_record
from unlearnbench.leaderboard.concept_effects import COLUMNS, effects


def frame(forget, **hits):
    """Values by image: `hits` are lists of 0, 1 and None by concept, whether the judge saw what was asked for."""
    rows = []
    for concept, values in hits.items():
        name = concept.removeprefix("_")
        for value in values:
            gone = name == forget
            ua, ra = (None if value is None else 1 - value, None) if gone else (None, value)
            rows.append(("forget" if gone else "retain", name, ua, ra))
    return pd.DataFrame(rows, columns=["group", "concept", "ua", "ra"]).astype({"ua": "Float64", "ra": "Float64"})


def read(frames):
    return lambda record: frames.get((record.label(), record.seeds["unlearning"], record.forget))


def share(found, label, concept, column="share", forget="3"):
    rows = found[(found.label == label) & (found.concept == concept) & (found.forget == forget)]
    return rows[column].item()


def test_shares_are_counted_by_concept_and_set_against_the_original():
    records = [made_record("original"), made_record("esd")]
    images = read(
        {
            ("original", 0, "3"): frame("3", _3=[1, 1, 1, 0], _1=[1, 1], _8=[1, 0]),
            ("esd", 0, "3"): frame("3", _3=[0, 0, 0, 1], _1=[1, 0], _8=[1, 1]),
        }
    )
    found = effects(records, images)
    assert list(found.columns) == COLUMNS
    assert [share(found, "esd", c) for c in "318"] == [0.25, 0.5, 1.0]
    assert [share(found, "esd", c, "original") for c in "318"] == [0.75, 1.0, 0.5]
    assert [share(found, "esd", c, "change") for c in "318"] == [-0.5, -0.5, 0.5]
    assert [share(found, "esd", c, "n") for c in "318"] == [4, 2, 2]
    assert list(found[found.forgotten].concept.unique()) == ["3"]
    assert (found[found.label == "original"].change == 0).all()


def test_seeds_are_averaged_and_images_that_were_not_judged_are_left_out():
    records = [made_record("esd", seed) for seed in (0, 1)]
    images = read({("esd", 0, "3"): frame("3", _1=[1, 1, None]), ("esd", 1, "3"): frame("3", _1=[0, 1, 0])})
    found = effects(records, images)
    assert share(found, "esd", "1") == pytest.approx((1 + 1 / 3) / 2)
    assert math.isnan(share(found, "esd", "1", "change")), "no original was measured"


def test_runs_that_failed_do_not_count():
    records = [made_record("esd", 0), made_record("esd", 1, status="diverged", step=1)]
    images = read({("esd", 0, "3"): frame("3", _1=[1]), ("esd", 1, "3"): frame("3", _1=[0])})
    assert share(effects(records, images), "esd", "1") == 1.0


def test_concepts_are_in_the_tasks_own_order_before_them_those_it_does_not_know():
    known = effects([made_record("esd")], read({("esd", 0, "3"): frame("3", _3=[1], _9=[1], _0=[1])}))
    assert list(known.concept) == ["0", "3", "9"]
    other = effects([made_record("esd", task="no-such")], read({("esd", 0, "3"): frame("3", b=[1], a=[1])}))
    assert list(other.concept) == ["b", "a"]


def test_only_what_is_asked_under_forget_and_retain_counts():
    images = frame("3", _1=[1, 1])
    images.loc[len(images)] = ["neighbours", "1", None, 0.0]
    assert share(effects([made_record("esd")], read({("esd", 0, "3"): images})), "esd", "1") == 1.0


def test_each_forget_concept_has_its_own_original():
    records = [made_record(name, forget=forget) for forget in "38" for name in ("original", "esd")]
    images = read(
        {
            ("original", 0, "3"): frame("3", _1=[1, 1]),
            ("original", 0, "8"): frame("8", _1=[1, 0]),
            ("esd", 0, "3"): frame("3", _1=[0, 0]),
            ("esd", 0, "8"): frame("8", _1=[0, 0]),
        }
    )
    found = effects(records, images)
    assert [share(found, "esd", "1", "change", forget) for forget in "38"] == [-1.0, -0.5]


@pytest.mark.parametrize("images", [lambda record: None, lambda record: pd.DataFrame({"group": [], "concept": []})])
def test_without_values_by_image_the_frame_is_empty(images):
    found = effects([made_record("esd")], images)
    assert found.empty and list(found.columns) == COLUMNS
