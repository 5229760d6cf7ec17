"""Micro-batches: the gradient of the whole batch from a few rows at a time, dropout and counts included."""

import pytest
import torch

from unlearnbench import Batch
from unlearnbench.compute.evaluation_budget import capped, counted
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.training import CannotSplit, gradients, splitting, unsplit


@pytest.fixture(scope="module")
def network():
    """The papers' network on CIFAR-10, small, with its dropout on."""
    torch.manual_seed(0)
    return ConditionalDDPM(10, 16, 8, dropout=0.3).double().train()


@pytest.fixture(scope="module")
def batch():
    return Batch(torch.randn(5, 3, 16, 16, dtype=torch.double), torch.arange(5))


def update(network, batch, size):
    """Loss, gradient and the next random number of one update."""
    torch.manual_seed(1)
    with splitting(size):
        loss = network.loss(batch, drop=0.3)
        found = gradients(loss, dict(network.named_parameters()))
    return torch.cat([loss.detach()[None], *(value.flatten() for value in found.values()), torch.rand(1).double()])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_loss_gradient_and_random_numbers_are_the_whole_batchs(network, batch, size):
    whole = update(network, batch, None)
    assert whole.abs().max() > 0.1
    torch.testing.assert_close(update(network, batch, size), whole, rtol=1e-12, atol=1e-12)


def test_no_more_rows_than_asked_for_are_in_the_network(network, batch):
    seen = []
    hook = network.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        update(network, batch, 2)
        with torch.no_grad(), splitting(2):
            network.eps(batch.x0, torch.zeros(5, dtype=torch.long), batch.y)
    finally:
        hook.remove()
    assert sorted(seen[:3]) == [1, 2, 2] and len(seen) == 9, (
        "forward, again for the backward pass, and without gradient"
    )
    assert max(seen) == 2


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_batch(network, batch):
    """Bytes that autograd holds after the forward pass, without those of the parameters."""
    own = {value.data_ptr() for value in network.parameters()}

    def kept(size):
        held = {}

        def keep(x):
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), splitting(size):
            loss = network.loss(batch)
        assert loss.requires_grad
        return sum(size for at, size in held.items() if at not in own)

    assert kept(1) < kept(None) / 50


def test_a_second_evaluation_for_the_gradient_is_not_charged(network, batch):
    with capped(None) as count, counted(network):
        update(network, batch, 1)
    assert count.evaluations == len(batch.y)


def test_what_needs_all_rows_is_refused_with_the_reason(network, batch):
    with splitting(2), unsplit("rows are compared"), pytest.raises(CannotSplit, match=r"of 5 .* because rows are comp"):
        network.loss(batch)
    with splitting(5), unsplit("rows are compared"):
        network.loss(batch)
