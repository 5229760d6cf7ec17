"""Searches that methods train against: text states near a concept's, a concept out of a vocabulary, and a new word.

A method that resumes names what is searched, and the optimiser that searches, in `others` of `minimise`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Condition, Diffusion
from unlearnbench.techniques.losses import prediction_loss
from unlearnbench.training import gradients

# ---- states near a concept's -----------------------------------------------------------------------------------------


def near_states(
    model: Diffusion, x_t: Tensor, t: Tensor, c: Condition, target: Tensor, radius: float, steps: int
) -> Condition:
    """The condition within `radius` of c, in each number of its states, whose prediction is nearest to the target.

    Projected gradient descent (Madry et al., ICLR 2018): from a uniform start within the radius, `steps` steps of a
    quarter of it along the gradient's sign in || eps_theta(x_t, c') - target ||^2. States stay between the least and
    the greatest number of c's. Pooled states are not searched. x_t and the target are (B, C, H, W), t is (B,); with
    steps=0, c itself.
    """
    if not steps:
        return c
    centre = c.states.detach()
    low, high = centre.min(), centre.max()
    states = (centre + torch.empty_like(centre).uniform_(-radius, radius)).clamp(low, high)
    for _ in range(steps):
        states.requires_grad_()
        loss = prediction_loss(model, x_t, t, c._replace(states=states), target)
        grad = gradients(loss, {"states": states})["states"]
        states = states.detach() - radius / 4 * grad.sign()
        states = (centre + (states - centre).clamp(-radius, radius)).clamp(low, high)
    return c._replace(states=c.states + (states - centre))  # c's own gradient stays


# ---- a concept out of a vocabulary -----------------------------------------------------------------------------------


def gumbel_weights(logits: Tensor, temperature: float, mix: int) -> Tensor:
    """Random weights (B, V) of V words, differentiable in the logits (B, V); each row sums to 1.

    softmax((logits + g) / temperature) with Gumbel noise g (Jang et al., ICLR 2017). mix=1 gives one word all the
    weight, and passes the gradient of the whole softmax (straight-through); otherwise the `mix` largest weights are
    kept and scaled to sum to 1.
    """
    tiny = 1e-10
    noise = -torch.log(-torch.log(torch.rand_like(logits) + tiny) + tiny)
    soft = ((logits + noise) / temperature).softmax(dim=-1)
    if mix == 1:
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
        return (hard - soft).detach() + soft
    least = soft.topk(min(mix, soft.shape[-1]), dim=-1).values[..., -1:]
    kept = soft * (soft >= least)
    return kept / kept.sum(dim=-1, keepdim=True)


def mixed_words(words: Condition, weights: Tensor) -> Condition:
    """Weighted means (B rows) of V conditions in states and pooled states, for weights (B, V); further inputs are the
    first word's, and tokens are unknown.
    """

    def mean(values: Tensor) -> Tensor:
        return (weights.to(values) @ values.flatten(1)).unflatten(1, values.shape[1:])

    pooled = None if words.pooled is None else mean(words.pooled)
    extra = words.extra and {key: value[:1].expand(len(weights), -1) for key, value in words.extra.items()}
    return Condition(mean(words.states), pooled, extra)


@torch.no_grad()
def distances(model: Diffusion, y: Tensor, concept: Tensor, size: int = 100) -> Tensor:
    """Euclidean distances (N,) of conditions y (N, ...) from a concept (1, ...), over all numbers of their states."""
    centre = model.embed(concept).states.flatten(1)
    return torch.cat([(model.embed(some).states.flatten(1) - centre).norm(dim=1) for some in y.split(size)])


def spread_over(values: Tensor, n: int) -> Tensor:
    """Indices of at most n of these values (N,), the nearest to each centre of k-means in their one dimension."""
    from sklearn.cluster import KMeans

    if n >= len(values):
        return torch.arange(len(values))
    numbers = values.cpu().double()[:, None]
    centres = KMeans(n, random_state=0, n_init="auto").fit(numbers.numpy()).cluster_centers_
    chosen = (numbers - torch.from_numpy(centres).T).abs().argmin(dim=0)
    return torch.tensor(list(dict.fromkeys(chosen.tolist())))


# ---- a new word ------------------------------------------------------------------------------------------------------


def slots(model: Any, y: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts y (N, L) or (N, 2, L) with one token in place of each name that they mention, and a mask (N, L) of these.

    Names are prompts of their own. What is left over at the end of a prompt is filled with its last token.
    """
    named, length = model.mentioned(y, names), y.shape[-1]
    begins = named & ~named.roll(1, dims=1)  # the start token is never part of a name
    rows, masks = [], []
    for row, inside, first in zip(y, named, begins, strict=True):
        kept = (~inside | first).nonzero()[:, 0]
        more = row[..., -1:].expand(*row.shape[:-1], length - len(kept))
        rows.append(torch.cat([row[..., kept], more], dim=-1))
        masks.append(torch.cat([first[kept], first.new_zeros(length - len(kept))]))
    return torch.stack(rows), torch.stack(masks)


def embed_word(model: Any, y: Tensor, slot: Tensor, word: Sequence[Tensor]) -> Condition:
    """Embed prompts y with a new word, one embedding (D,) for each text encoder, where the mask `slot` (B, L) says."""
    known = model.words(y)
    words = [torch.where(slot[..., None], new.to(old), old) for old, new in zip(known, word, strict=True)]
    return model.embed(y, words)._replace(ids=None)


@torch.no_grad()
def mean_word(model: Any, names: Tensor) -> list[Tensor]:
    """The mean embedding (D,) of these names' tokens, for each text encoder: where a new word may start.

    Names without tokens, which are the empty prompt, give the mean of the start token's.
    """
    spelt = model.mentioned(names, names)
    spelt[:, 0] = ~spelt.any(dim=1)
    return [words[spelt].mean(dim=0) for words in model.words(names)]


def inversion_losses(
    model: Any, x0: Tensor, y: Tensor, slot: Tensor, word: Sequence[Tensor], batch_size: int, steps: Iterable[Any]
) -> Iterator[Tensor]:
    """Yield a denoising loss for each step, by which a new word is learnt: textual inversion (Gal et al., ICLR 2023).

    Each is a mean over `batch_size` random rows of images x0 (N, C, H, W) under their prompts y (N, ...), with the word
    where the mask `slot` (N, L) says (see `slots` and `embed_word`).
    """
    for _ in steps:
        rows = torch.randint(len(x0), (batch_size,), device=x0.device)
        t, noise, x_t = model.noised(x0[rows])
        c = embed_word(model, y[rows], slot[rows], word)
        yield (model(x_t, t, c) - model.target(x0[rows], noise, t)).square().mean()
