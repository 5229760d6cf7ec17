"""Values that are changed while a network predicts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.support.tiny_model import Linear
from tests.support.tiny_text import TinyText
from unlearnbench.errors import Unsupported
from unlearnbench.techniques.value_projection import PairedGuidance, change_values, span_coefficients
from unlearnbench.training import CannotSplit, splitting


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("values") / "model")


@pytest.mark.parametrize("n", [1, 3])
def test_coefficients_are_those_of_least_squares(n):
    rng = np.random.default_rng(0)
    targets, values = rng.normal(size=(n, 8)), rng.normal(size=(5, 8))
    found = span_coefficients(torch.tensor(values @ targets.T), torch.tensor(targets @ targets.T))
    np.testing.assert_allclose(found, np.linalg.lstsq(targets.T, values.T, rcond=None)[0].T, atol=1e-9)


def test_targets_may_be_the_same_or_nothing():
    t, v = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    twice = torch.stack([t, t, 0 * t])
    part = span_coefficients(v @ twice.T, twice @ twice.T)
    torch.testing.assert_close(part @ twice, (v @ t) / (t @ t) * t)


class Halved:
    def __init__(self):
        self.seen = []

    def __call__(self, projection, values):
        self.seen.append(projection.out_features)
        return values / 2


def test_every_value_projection_is_changed_and_copies_have_hooks_of_their_own(task):
    model, change = task.pretrained(), Halved()
    change_values(model, change)
    x_t, t, y = torch.randn(2, 4, 8, 8), torch.tensor([900, 900]), task.original.tokens(["seven", "cat"])
    other = copy.deepcopy(model)
    plain = task.pretrained()
    with torch.no_grad():
        for _, to_v in plain.kv():
            to_v.weight.div_(2)
        torch.testing.assert_close(model.eps(x_t, t, y), plain.eps(x_t, t, y))
        assert sorted(change.seen) == sorted(to_v.out_features for _, to_v in model.kv())
        other.eps(x_t, t, y)
    assert len(change.seen) == len(model.kv()), "the copy calls its own"


def test_guidance_says_which_rows_belong_together(task):
    model, seen = task.pretrained(), []
    model.guidance = guidance = PairedGuidance()
    change_values(model, lambda _, values: seen.append((guidance.paired, len(values))) or values)
    x_t, t = torch.randn(3, 4, 8, 8), torch.tensor([900] * 3)
    condition = model.embed(task.original.tokens(["seven", "cat", "one"]))
    with torch.no_grad():
        guided = model.guidance(model, x_t, t, 0, condition, model.null(3), 2.0)
        alone = model.guidance(model, x_t, t, 0, condition, model.null(3), 1.0)
        expected = task.original.guidance(task.original, x_t, t, 0, condition, model.null(3), 2.0)
    assert set(seen) == {(True, 6), (False, 3)}
    assert torch.equal(guided, expected) and not torch.equal(guided, alone)
    assert not guidance.paired
    with splitting(2), pytest.raises(CannotSplit, match="changed together"), torch.no_grad():
        model.guidance(model, x_t, t, 0, condition, model.null(3), 2.0)


def test_a_model_without_cross_attention_has_no_values():
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        change_values(Linear(0), Halved())
