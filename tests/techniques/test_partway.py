"""Samples that stop on the way: the same noise for several conditions, and the level that networks are asked at."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import DDIM, Linear, partway, weights
from unlearnbench import Sampler
from unlearnbench.diffusion.model import Condition
from unlearnbench.techniques.partway import draw_way


@pytest.mark.parametrize("t_above", [False, True])
def test_several_conditions_go_the_same_way(t_above):
    model = Linear(0)
    torch.manual_seed(4)
    way = draw_way(model, Sampler(steps=5, guidance=2.0), 6, t_above)
    done = 5 - np.broadcast_to(np.asarray(way.until), 6)
    w = weights(model)
    if not t_above:
        assert way.t.tolist() == np.array(DDIM)[done].tolist()
        assert len(set(done)) > 1
    else:
        number = way.t[0].item() // 2
        assert (way.t == way.t[0]).all() and way.until == max(number - 1, 0)
    for y in (torch.tensor([1] * 6), torch.tensor([0, 2] * 3)):
        states = w["E"][y.numpy()]
        expected, start = partway(w, states, way.seeds, done, 2.0)
        np.testing.assert_allclose(way.x_t(model, y).flatten(1).numpy(), expected, atol=1e-5)
        given = Condition(torch.tensor(states).float())
        np.testing.assert_allclose(way.x_t(model, given).flatten(1).numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(way.start(model, y).flatten(1).numpy(), start, atol=1e-6)
    assert not way.x_t(model, y).requires_grad
