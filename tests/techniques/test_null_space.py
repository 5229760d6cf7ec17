"""Edits in a null space against a solver that stacks their least squares in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearnbench.techniques.null_space import null_projection, null_space_change


def basis_of(gram, threshold):
    """Columns: eigenvectors of a symmetric matrix whose eigenvalue is below the threshold."""
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, values < threshold]


def constrained(W, c, g, free, ridge, fixed, slack=0.0):
    """The W + E of least squares: E = Z free^T, E i = 0 for the rows i of `fixed`, or 1 / slack || E i ||^2 added."""
    if len(fixed) and not slack:
        _, s, vh = np.linalg.svd(fixed @ free)
        free = free @ vh[(s > 1e-9).sum() :].T
    left, right = [c @ free, np.sqrt(ridge) * np.eye(free.shape[1])], [(g - c) @ W.T]
    if len(fixed) and slack:
        left.append(fixed @ free / np.sqrt(slack))
    right.append(np.zeros((sum(map(len, left)) - len(c), len(W))))
    return W + np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)[0].T @ free.T


def example(seed=0, D=9, kept=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, D)) for n in (5, 2, 2, kept, 2)]  # W, c, g, kept, fixed


@pytest.mark.parametrize(("slack", "invariants", "ridge"), [(0.0, 2, 1.0), (0.5, 2, 0.3), (0.0, 0, 0.05)])
def test_the_change_solves_the_constrained_least_squares(slack, invariants, ridge):
    W, c, g, kept, fixed = example()
    fixed = fixed[:invariants]
    gram, tensors = kept.T @ kept / len(kept), [torch.tensor(x) for x in (c.T @ c, (g - c).T @ c)]
    P = null_projection(torch.tensor(gram), 1e-6)
    change = null_space_change(tensors[1], tensors[0], P, ridge, torch.tensor(fixed) if invariants else None, slack)
    found = W + W @ change.numpy()
    np.testing.assert_allclose(found, constrained(W, c, g, basis_of(gram, 1e-6), ridge, fixed, slack), atol=1e-9)
    np.testing.assert_allclose(found @ kept.T, W @ kept.T, atol=1e-9)
    assert np.abs(found - W).max() > 1e-2
    if invariants:
        assert (np.abs((found - W) @ fixed.T).max() < 1e-9) == (slack == 0)


def test_a_projection_is_on_the_directions_with_small_eigenvalues():
    *_, kept, _ = example(kept=20)
    gram = kept.T @ kept / len(kept)
    P = null_projection(torch.tensor(gram), 0.6).numpy()
    free = basis_of(gram, 0.6)
    assert 0 < free.shape[1] < 9
    np.testing.assert_allclose(P, free @ free.T, atol=1e-12)
    np.testing.assert_allclose(null_projection(torch.zeros(9, 9), 0.1), np.eye(9), atol=0)


def test_invariants_within_what_is_kept_are_no_further_constraint():
    """They cannot move anyway, and an inverse of their null-space products would not exist."""
    _, c, g, kept, _ = example()
    own, pull, gram = (torch.tensor(x) for x in (c.T @ c, (g - c).T @ c, kept.T @ kept))
    P = null_projection(gram, 1e-6)
    plain = null_space_change(pull, own, P)
    with_kept = null_space_change(pull, own, P, invariants=torch.tensor(kept[:2]))
    np.testing.assert_allclose(plain, with_kept, atol=1e-9)
