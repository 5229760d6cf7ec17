"""Sums of gradients and what is largest in them, by hand."""

from __future__ import annotations

import torch
from torch import nn

from unlearnbench.techniques.saliency import counted_gradients, largest_share, zero_sums
from unlearnbench.training import minimise


def test_sums_are_of_the_gradients_that_the_training_takes():
    """(w - 3)^2 / 2 has the gradient w - 3; by steps of a half it halves."""
    weight = nn.Parameter(torch.tensor([1.0, 3.0]))
    sums = zero_sums({"w": weight})
    losses = ((weight - 3).square().sum() / 2 for _ in range(3))
    minimise(counted_gradients(losses, {"w": weight}, sums), {"w": weight}, 0.5, optimiser="sgd", others=sums)
    (total,) = sums.values()
    assert total.tolist() == [-2.0 - 1.0 - 0.5, 0.0]
    assert "w" not in sums, "a name of its own beside the parameter's"


def test_shares_by_magnitude():
    values = torch.tensor([[0.1, -5.0], [2.0, -0.3], [0.2, 1.0]])
    assert largest_share(values, 0.5).tolist() == [[False, True], [True, False], [False, True]]
    assert largest_share(values, 0.5, largest=False).tolist() == [[True, False], [False, True], [True, False]]
    assert largest_share(values, 0.4).sum() == 2 and not largest_share(values[:1, :1], 0.5).any()
