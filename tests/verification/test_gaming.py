"""Ways to look as if a concept were forgotten score near 0 in at least one part; real forgetting does not."""

from __future__ import annotations

import pytest
import torch

from unlearnbench.leaderboard.likeness import Likeness, Part, likeness_to_retrain
from unlearnbench.task import Plan
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.verification import gaming
from unlearnbench.verification.gaming import NEAR_ZERO, WAYS, as_judged, gamed


@pytest.fixture(scope="module")
def world():
    """Real digits in place of samples: threes for the original, other digits for retrain and for the kept ones."""
    judge, (x0, y), (other, labels) = DigitsClass("3").judge(), splits()["reference"], splits()["floor"]
    order = torch.cat([(y == 3).nonzero()[:, 0], (y != 3).nonzero()[:, 0]])
    plan = [Plan("forget" if y[i] == 3 else "retain", str(int(y[i])), int(y[i]), int(i)) for i in order]
    samples, asked = to_uint8(x0[order]), torch.full((25,), 3)
    kept = to_uint8(other[labels != 3])
    draws = [kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(i))[:25]] for i in range(4)]
    others = [as_judged(judge, draw, asked) for draw in draws]
    return judge, plan, samples, as_judged(judge, samples[:25], asked), others


def test_every_way_to_game_stays_near_zero_in_one_part(world):
    judge, plan, samples, original, (*retrains, _) = world
    found = {one.name: one for one in gamed(judge, plan, samples, original, retrains)}
    assert set(found) == set(WAYS)
    assert {name: one.smaller for name, one in found.items() if one.smaller > NEAR_ZERO} == {}
    for name in ("half the contrast", "half the light"):
        assert found[name].erasure <= 0.1, "people still see a three, and so does the judge"
    for name in ("constant images", "noise", "copies of one retain image", "swapped to one class"):
        assert found[name].erasure >= 0.9, "the three is gone: likeness must tell"


def test_what_retrain_draws_is_no_game(world):
    *_, original, (*retrains, another) = world
    assert likeness_to_retrain([another], original, retrains).worse.value > 0.6


def test_a_likeness_that_is_blind_lets_noise_pass(world, monkeypatch):
    judge, plan, samples, original, (*retrains, _) = world
    monkeypatch.setattr(gaming, "likeness_to_retrain", lambda *about: Likeness(Part(1.0, None), Part(1.0, None)))
    passed = {one.name for one in gamed(judge, plan, samples, original, retrains) if one.smaller > NEAR_ZERO}
    assert {"noise", "constant images", "copies of one retain image", "swapped to one class"} <= passed
