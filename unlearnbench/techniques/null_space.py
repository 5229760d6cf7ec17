"""Edits in the null space of what is kept: they change nothing there, however many inputs are erased at once."""

from __future__ import annotations

import torch
from torch import Tensor


def null_projection(gram: Tensor, threshold: float) -> Tensor:
    """P (D, D): the projection on the directions in which kept inputs hardly lie.

    `gram` (D, D) is the mean of c c^T over the kept inputs c; the directions are its eigenvectors whose eigenvalue is
    below `threshold`. Without any inputs, where `gram` is zero, P is the identity.
    """
    values, vectors = torch.linalg.eigh(gram)
    free = vectors[:, values < threshold]
    return free @ free.mT


def null_space_change(
    pull: Tensor,
    own: Tensor,
    projection: Tensor,
    ridge: float = 1.0,
    invariants: Tensor | None = None,
    slack: float = 0.0,
) -> Tensor:
    """The change X (D, D) of a projection W, W + W X, that lies in the null space and leaves the invariants alone.

    E = W X minimises sum || (W + E) c - W g ||^2 + ridge || E ||^2 among all E = E P for which E i = 0 for each row i
    of `invariants` (K, D). P is `projection`, `own` the sum of c c^T and `pull` that of (g - c) c^T over erased inputs
    c and what takes their place, g. With M = (own P + ridge I)^-1 and the invariants as columns of C: X = pull P (I - M
    C (C^T P M C + slack I)^-1 C^T P) M. `slack` > 0 lets invariants move a little. Without it, those that lie outside
    the null space, which cannot move, are no constraint.
    """
    D, P = own.shape[0], projection
    M = torch.linalg.inv(own @ P + ridge * torch.eye(D).to(own))
    if invariants is None or not len(invariants):
        return pull @ P @ M
    C = invariants.mT
    inner = C.mT @ P @ M @ C
    inner = (inner + inner.mT) / 2 + slack * torch.eye(len(invariants)).to(own)
    least = 1e-10 * (C.square().sum() / ridge + slack)  # below it an invariant lies outside the null space
    return pull @ P @ (M - M @ C @ torch.linalg.pinv(inner, atol=least, rtol=0, hermitian=True) @ C.mT @ P @ M)
