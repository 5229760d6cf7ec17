"""Swapped sides, swapped arguments and mistaken batches, planted: `selfcheck` finds each in every metric it touches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.planted import (
    ALONE,
    FEATURES,
    GROUPS,
    METRICS,
    SIDED,
    UTILITY,
    caught,
    judged,
    of_changed,
    passes,
    plant,
    some,
)
from unlearnbench import Outcome, toy
from unlearnbench.judges import Verdict

BATCHES = (50, 100, 250)
"""The last is the judge's own."""


# ---- swapped -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEATURES)
def test_samples_and_real_images_swapped(name, monkeypatch):
    """FID and KID are symmetric, so that the order of their arguments is no fault; precision and recall are not."""
    cls = type(METRICS[name])
    between, draw = cls.between, torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 3, generator=draw), 1.5 * torch.randn(40, 3, generator=draw)
    there, back = between(METRICS[name], a, b, 3), between(METRICS[name], b, a, 3)
    monkeypatch.setattr(cls, "between", lambda self, generated, real, k: between(self, real, generated, k))
    if name in ("fid", "fid_train", "kid"):
        assert there == pytest.approx(back, rel=1e-3) and passes(name)
    else:
        assert there != pytest.approx(back, rel=1e-3)
        assert {"collapsed", "over-dispersed"} <= {*caught(name)}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", SIDED)
def test_another_group_is_looked_at(name, group, monkeypatch):
    plain = Outcome.side
    monkeypatch.setattr(Outcome, "side", lambda self, _: plain(self, group))
    if group == METRICS[name].side:
        assert passes(name)
    else:
        caught(name)


def forget_features(made, seen, reference, real):
    forget = torch.tensor([plan.group == "forget" for plan in made.plan], dtype=torch.bool)
    return {"features": seen.features[forget] if len(seen.features) else seen.features}


OUTCOMES = {
    "features of forget samples": forget_features,
    "features of all samples": lambda made, seen, reference, real: {"features": seen.features},
    "the floor's images as reference": lambda made, seen, reference, real: {"reference": real.features},
    "the reference as the floor's images": lambda made, seen, reference, real: {"real": reference.features},
    "samples as the floor's images": lambda made, seen, reference, real: {"real": made.features},
}


@pytest.mark.parametrize("fault", OUTCOMES)
def test_features_of_the_wrong_images(fault, monkeypatch):
    of_changed(monkeypatch, OUTCOMES[fault])
    floor = "floor, of the same images"
    for name in FEATURES:
        if fault == "the reference as the floor's images" and name in ("precision", "recall"):
            continue  # both score 1 there, as they do against themselves
        cases = {*caught(name)}
        turned = METRICS[name].against == "real"  # there the reference gives the floor
        of_floor = "floor's images" in fault and (turned or "as reference" not in fault)
        assert (floor in cases) if of_floor else cases - {floor}
    for name in ALONE:
        assert {*caught(name)} if "features" in fault else passes(name)


# ---- batches -------------------------------------------------------------------------------------------------------


def first(n, batch):
    """Indices of the first batch, again and again."""
    return torch.arange(n) % batch


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", UTILITY)
def test_the_labels_of_the_first_batch_are_used_for_every_batch(name, batch, monkeypatch):
    """Samples of the concept all ask for one label, so that this shows in metrics of other samples alone."""
    plain = Outcome.side

    def side(self, group):
        whole = plain(self, group)
        index = first(len(whole.asked), batch)
        return whole._replace(asked=whole.asked[index], other=whole.other[index])

    monkeypatch.setattr(Outcome, "side", side)
    caught(name)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SIDED)
def test_the_verdicts_of_the_first_batch_are_repeated(name, batch, monkeypatch):
    judged(monkeypatch, lambda verdict: Verdict(*(column[first(len(column), batch)] for column in verdict)))
    caught(name)


@pytest.mark.parametrize("name", SIDED)
def test_only_the_first_batch_of_a_side_counts(name, monkeypatch):
    plain = Outcome.side
    monkeypatch.setattr(Outcome, "side", lambda self, group: some(plain(self, group), slice(250)))
    assert any(case != f"a value for every {METRICS[name].side} image" for case in caught(name))


@pytest.mark.parametrize("name", SIDED)
def test_a_mean_over_means_of_unequal_batches(name, monkeypatch):
    def change(score):
        if score.value is None:
            return score
        means = [np.nanmean(score.per_image[i : i + 250]) for i in range(0, len(score.per_image), 250)]
        return replace(score, value=float(np.mean(means)))

    plant(monkeypatch, name, change)
    assert any(case != f"a value for every {METRICS[name].side} image" for case in caught(name))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [*FEATURES, *ALONE])
def test_the_features_of_the_first_batch_are_repeated(name, batch, monkeypatch):
    def repeated(judge, images):
        seen = look(judge, images)
        return seen._replace(features=seen.features[first(len(seen.features), batch)])

    look = toy.look
    monkeypatch.setattr(toy, "look", repeated)
    caught(name)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [*FEATURES, *ALONE])
def test_only_the_features_of_the_first_batch_count(name, batch, monkeypatch):
    of_changed(
        monkeypatch,
        lambda made, seen, reference, real: {
            "features": made.features[:batch],
            "reference": made.reference[:batch],
            "real": made.real[:batch],
        },
    )
    assert "300 images in reverse order" in caught(name)
