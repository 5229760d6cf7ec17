"""Swapped sides, swapped arguments and mistaken batches, planted: `selfcheck` finds each in every metric it touches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.planted import (
    ALONE,
    FEATURES,
    GROUPS,
    METRICS,
    SIDED,
    UTILITY,
    caught,
    every,
    judged,
    of_changed,
    passes,
    plant,
    some,
)
from unlearnbench import Outcome
from unlearnbench.judges import Verdict
from unlearnbench.testing import toy

BATCHES = (50, 250)
"""The last is the judge's own."""


# ---- swapped -------------------------------------------------------------------------------------------------------


def test_samples_and_real_images_swapped():
    """FID and KID are symmetric, so that the order of their arguments is no fault; precision and recall are not."""

    def swapped(patch, name):
        cls = type(METRICS[name])
        between, draw = cls.between, torch.Generator().manual_seed(0)
        a, b = torch.randn(40, 3, generator=draw), 1.5 * torch.randn(40, 3, generator=draw)
        there, back = between(METRICS[name], a, b, 3), between(METRICS[name], b, a, 3)
        patch.setattr(cls, "between", lambda self, generated, real, k: between(self, real, generated, k))
        if name in ("fid", "fid_train", "kid"):
            assert there == pytest.approx(back, rel=1e-3) and passes(name)
        else:
            assert there != pytest.approx(back, rel=1e-3)
            assert {"collapsed", "over-dispersed"} <= {*caught(name)}

    every(FEATURES, swapped, at_least=5)


@pytest.mark.parametrize("group", GROUPS)
def test_another_group_is_looked_at(group):
    def another(patch, name):
        plain = Outcome.side
        patch.setattr(Outcome, "side", lambda self, _: plain(self, group))
        if group == METRICS[name].side:
            assert passes(name)
        else:
            caught(name)

    every(SIDED, another, at_least=12, reading=True)


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
def test_features_of_the_wrong_images(fault):
    floor = "floor, of the same images"

    def wrong(patch, name):
        of_changed(patch, OUTCOMES[fault])
        if name in ALONE:
            assert {*caught(name)} if "features" in fault else passes(name)
            return
        if fault == "the reference as the floor's images" and name in ("precision", "recall"):
            return  # both score 1 there, as they do against themselves
        cases = {*caught(name)}
        turned = METRICS[name].against == "real"  # there the reference gives the floor
        of_floor = "floor's images" in fault and (turned or "as reference" not in fault)
        assert (floor in cases) if of_floor else cases - {floor}

    every([*FEATURES, *ALONE], wrong, at_least=6)


# ---- batches -------------------------------------------------------------------------------------------------------


def first(n, batch):
    """Indices of the first batch, again and again."""
    return torch.arange(n) % batch


@pytest.mark.parametrize("batch", BATCHES)
def test_the_labels_of_the_first_batch_are_used_for_every_batch(batch):
    """Samples of the concept all ask for one label, so that this shows in metrics of other samples alone."""

    def repeated(patch, name):
        plain = Outcome.side

        def side(self, group):
            whole = plain(self, group)
            index = first(len(whole.asked), batch)
            return whole._replace(asked=whole.asked[index], other=whole.other[index])

        patch.setattr(Outcome, "side", side)
        caught(name)

    every(UTILITY, repeated, at_least=4, reading=True)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_verdicts_of_the_first_batch_are_repeated(batch):
    def repeated(patch, name):
        judged(patch, lambda verdict: Verdict(*(column[first(len(column), batch)] for column in verdict)))
        caught(name)

    every(SIDED, repeated, at_least=12)


def test_only_the_first_batch_of_a_side_counts():
    def only(patch, name):
        plain = Outcome.side
        patch.setattr(Outcome, "side", lambda self, group: some(plain(self, group), slice(250)))
        assert any(case != f"a value for every {METRICS[name].side} image" for case in caught(name))

    every(SIDED, only, at_least=12, reading=True)


def test_a_mean_over_means_of_unequal_batches():
    def change(score):
        if score.value is None:
            return score
        means = [np.nanmean(score.per_image[i : i + 250]) for i in range(0, len(score.per_image), 250)]
        return replace(score, value=float(np.mean(means)))

    def averaged(patch, name):
        plant(patch, name, change)
        assert any(case != f"a value for every {METRICS[name].side} image" for case in caught(name))

    every(SIDED, averaged, at_least=12, after_scoring=True)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_features_of_the_first_batch_are_repeated(batch):
    def repeated(patch, name):
        look = toy.look

        def again(judge, images):
            seen = look(judge, images)
            return seen._replace(features=seen.features[first(len(seen.features), batch)])

        patch.setattr(toy, "look", again)
        caught(name)

    every([*FEATURES, *ALONE], repeated, at_least=6)


@pytest.mark.parametrize("batch", BATCHES)
def test_only_the_features_of_the_first_batch_count(batch):
    def only(patch, name):
        of_changed(
            patch,
            lambda made, seen, reference, real: {
                "features": made.features[:batch],
                "reference": made.reference[:batch],
                "real": made.real[:batch],
            },
        )
        assert "300 images in reverse order" in caught(name)

    every([*FEATURES, *ALONE], only, at_least=6)
