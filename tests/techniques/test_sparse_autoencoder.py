"""Sparse autoencoders against NumPy: features, losses, one update, and what is changed inside a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearnbench.techniques.sparse_autoencoder import Rescaled, SparseAutoencoder, geometric_median, largest_only


@pytest.fixture
def sae():
    torch.manual_seed(0)
    made = SparseAutoencoder(6, 20, 3)
    with torch.no_grad():
        made.encoder.bias.copy_(0.1 * torch.randn(20))
        made.bias.copy_(0.3 * torch.randn(6))
    return made


def arrays(sae):
    found = (sae.encoder.weight, sae.encoder.bias, sae.decoder, sae.bias)
    return (value.detach().double().numpy() for value in found)


def responses(sae, x):
    W, w, _, b = arrays(sae)
    return np.maximum(0, (x - b) @ W.T + w)


def top(values, k):
    return np.where(values >= np.sort(values)[::-1][k - 1], values, 0)


def test_the_largest_features_of_each_vector(sae):
    x = torch.randn(4, 5, 6)
    f = sae.features(x)
    for row, found in zip(x.view(-1, 6).double().numpy(), f.detach().view(-1, 20).numpy(), strict=True):
        np.testing.assert_allclose(found, top(responses(sae, row), 3), atol=1e-6)
    _, _, D, b = arrays(sae)
    np.testing.assert_allclose(sae.decode(f).detach().numpy(), f.detach().double().numpy() @ D + b, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("number", [0, 2, 9])
def test_unexplained_variance_with_the_largest_of_a_batch_and_dead_features(sae, number):
    x, dead = torch.randn(7, 6), torch.arange(20) < number
    found, used = sae.loss(x, dead, 0.5)
    _, _, D, b = arrays(sae)
    rows = x.double().numpy()
    every = responses(sae, rows)
    f = top(every.ravel(), 3 * 7).reshape(every.shape)
    error, variance = f @ D + b - rows, ((rows - rows.mean(axis=0)) ** 2).sum()
    expected = (error**2).sum() / variance
    if number:
        k = min(3, number)  # at most half of the width
        again = top(every[:, :number].ravel(), k * 7).reshape(7, number) @ D[:number] + b
        expected += 0.5 * min(number / 3, 1) * ((again - error) ** 2).sum() / variance
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert used.tolist() == (f > 0).any(axis=0).tolist()


def test_an_update(sae):
    """The first: the bias becomes the median, decoder vectors get length 1, gradients have norm 1 at most and none
    along them.
    """
    with torch.no_grad():
        sae.decoder.mul_(3)
    x = 4 * torch.randn(30, 6)
    torch.manual_seed(2)
    found = next(sae.updates(x, iter(range(1)), 8, 0.5, 100))
    torch.manual_seed(2)
    rows = x[torch.randint(30, (8,))]
    torch.testing.assert_close(sae.bias.detach(), geometric_median(rows))
    torch.testing.assert_close(sae.decoder.detach().norm(dim=1), torch.ones(20))
    weights = dict(sae.named_parameters())
    loss, _ = sae.loss(rows, torch.zeros(20, dtype=torch.bool), 0.5)
    grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    length = torch.cat([grad.flatten() for grad in grads.values()]).norm()
    for name, grad in grads.items():
        grad = grad * min(1.0, 1 / float(length))
        if name == "decoder":
            d = sae.decoder.detach()
            grad = torch.stack([g - (g @ v) * v for g, v in zip(grad, d, strict=True)])
            assert ((found[name] * d).sum(dim=1).abs() < 1e-6).all()
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


def test_features_that_were_not_used_become_dead(sae):
    with torch.no_grad():
        sae.encoder.bias[:5] = -100.0
    seen = []
    sae.loss = lambda x, dead, aux: (seen.append(dead.tolist()), SparseAutoencoder.loss(sae, x, dead, aux))[1]
    for _ in sae.updates(torch.randn(200, 6), iter(range(4)), 50, 0.1, 120):
        pass
    assert not any(seen[2]) and seen[3][:5] == [True] * 5 and not all(seen[3][5:])


def test_the_largest_and_the_median():
    values = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
    assert largest_only(values, 2).tolist() == [[0.0, 5.0], [4.0, 0.0]]
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0], [50.0, 0.0]])
    torch.testing.assert_close(geometric_median(points, 1000), torch.zeros(2), atol=1e-2, rtol=0)


def test_strong_features_are_rescaled_at_the_nearest_step(sae):
    added = Rescaled(sae, torch.tensor([900, 500, 100]))
    x, t = torch.randn(2, 6, 2, 3), torch.tensor([880, 240])
    added.t = t
    assert not added(x).any(), "nothing is chosen at first"
    generator = torch.Generator().manual_seed(4)
    added.chosen.copy_(torch.rand(3, 20, generator=generator) > 0.4)
    added.scale.copy_(torch.randn(3, 20, generator=generator))
    added.above.fill_(0.2)
    _, _, D, _ = arrays(sae)
    expected = np.zeros(x.shape)
    for row, step in ((0, 0), (1, 2)):  # 880 is nearest to 900, 240 to 100
        for i, j in np.ndindex(2, 3):
            f = top(responses(sae, x[row, :, i, j].double().numpy()), 3)
            strong = added.chosen[step].numpy() & (f > 0.2)
            expected[row, :, i, j] = np.where(strong, (added.scale[step].numpy() - 1) * f, 0) @ D
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(added(x).detach().numpy(), expected, atol=1e-5)
    added.t = torch.tensor(900)
    assert added(x).shape == x.shape, "one timestep for all rows"
