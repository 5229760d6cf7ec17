"""Building blocks of attacks: sample and judge targets, predict as the model is used, prompts with free tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Condition, Diffusion, Guidance
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import Unsupported
from unlearnbench.judges import Verdict, judge_all
from unlearnbench.method import Method
from unlearnbench.metric import Outcome
from unlearnbench.task import Plan, Task
from unlearnbench.training import Diverged, split_size


def arena(task: Task, model: Diffusion, original: Diffusion, method: Method | None, **more: Any) -> Outcome:
    """What attacks may use: the models and the plan, without samples; `more` are further fields of the outcome."""
    nothing = torch.zeros(0, 1)
    verdict = Verdict(nothing, torch.zeros(0, dtype=torch.bool))
    empty: dict[str, Any] = dict.fromkeys(("samples", "features", "reference", "real"), nothing)
    return Outcome(
        task=task,
        model=model,
        original=original,
        plan=task.plan(),
        verdict=verdict,
        besides=verdict,
        cost={},
        method=method,
        **empty,
        **more,
    )


def uncast(x: Tensor) -> torch.autocast:
    """A block without autocast on this tensor's device, for what must not be rounded in any precision."""
    return torch.autocast(x.device.type, enabled=False)


# ---- is the concept back? ------------------------------------------------------------------------------------------


class Sight(NamedTuple):
    """The judge's verdicts on N images about the concept that each target asks for."""

    recovered: Tensor
    """(N,) float: 1 concept seen; 0 not seen, or the judge abstains; NaN if the judge failed or the image is not
    finite."""
    probability: Tensor
    """(N,) closed-set probability of the concept; NaN where missing."""


def sight(outcome: Outcome, x: Tensor, items: Sequence[Plan]) -> Sight:
    """Judge samples (N, C, H, W), in the model's own range, for the targets that they were sampled for.

    Images are decoded and judged in the protocol's chunks, so that memory does not grow with the number of targets.
    """
    size = outcome.task.protocol.chunk
    size = split_size(min(size, len(items))) or size
    starts = range(0, max(len(items), 1), size)
    seen = [_sight(outcome, x[start : start + size], items[start : start + size]) for start in starts]
    return Sight(*map(torch.cat, zip(*seen, strict=True)))


@torch.no_grad()
def _sight(outcome: Outcome, x: Tensor, items: Sequence[Plan]) -> Sight:
    task = outcome.task
    judge, asked = task.judge(), torch.tensor([item.label for item in items], dtype=torch.long)
    with uncast(x):
        images = outcome.model.decode(x.float())
        lost = ~images.flatten(1).isfinite().all(dim=1).cpu()
        verdict, _ = judge_all(judge, task.to_uint8(images.nan_to_num()))
    verdict = verdict.about(asked, judge.domains)
    lost = lost | verdict.missing
    probability = verdict.probabilities.gather(1, asked[:, None])[:, 0]
    nan = torch.tensor(torch.nan)
    return Sight(torch.where(lost, nan, (verdict.label == asked).float()), torch.where(lost, nan, probability))


Conditions = Callable[[slice], "Tensor | Condition"]


@torch.no_grad()
def sample_targets(
    outcome: Outcome,
    items: Sequence[Plan],
    conditions: Conditions | None = None,
    model: Diffusion | None = None,
    sampler: Sampler | None = None,
) -> Tensor:
    """Sample (N, C, H, W) for targets, each with its own noise and guidance scale, in the protocol's chunks.

    `conditions` maps a slice of the targets to y, or a Condition, that replaces their own; `model` replaces the
    outcome's; a given `sampler` is used for all of them.
    """
    task, model, parts = outcome.task, model or outcome.model, []
    for some in _alike(items, task.protocol.chunk):
        y, scale = conditions(some) if conditions else task.inputs(items[some]), items[some][0].guidance
        own = replace(model.sampler, guidance=scale) if scale and sampler is None else sampler
        with outcome.drawing():
            parts.append(model.sample(y, [item.seed for item in items[some]], sampler=own))
    return torch.cat(parts)


Encoding = Literal["none", "mode", "sample of [0, 1]"]
"""What becomes of target images: latents as they were drawn; the posterior's mode for the picture in 8 bits; or a
sample of the posterior for the picture with values from 0 to 1, where the autoencoder means -1 to 1."""


@torch.no_grad()
def draw_originals(
    outcome: Outcome, items: Sequence[Plan], changes: dict[str, Any], encoding: Encoding = "none"
) -> Tensor:
    """What the original draws for targets (N, C, H, W), each with its own noise, in the model's own range.

    `changes` are settings of the sampler; without `guidance` among them, a target's own scale holds. Models without an
    autoencoder, whose pictures are what they draw, are not encoded.
    """
    task, model, parts = outcome.task, outcome.original, []
    for some in _alike(items, task.protocol.chunk):
        own = {"guidance": items[some][0].guidance} if items[some][0].guidance else {}
        sampler = replace(model.sampler, **{**own, **changes})
        with outcome.drawing():
            x = model.sample(task.inputs(items[some]), [item.seed for item in items[some]], sampler=sampler)
        parts.append(_encoded(task, model, x, encoding))
    return torch.cat(parts)


def _encoded(task: Task, model: Any, x: Tensor, encoding: Encoding) -> Tensor:
    if encoding == "none" or not hasattr(model, "encode"):
        return x
    with uncast(x):  # autoencoders overflow in fp16
        picture = task.to_uint8(model.decode(x.float())).to(x.device).float() / 255
        if encoding == "mode":
            return model.encode(2 * picture - 1).to(x)
        return model.encode(picture, torch.default_generator).to(x)


def _alike(items: Sequence[Plan], size: int) -> Iterator[slice]:
    """Chunks of at most `size` consecutive targets with the same guidance scale."""
    start = 0
    for i in range(1, len(items) + 1):
        if i == len(items) or i - start == size or items[i].guidance != items[start].guidance:
            yield slice(start, i)
            start = i


def evaluations(sampler: Sampler) -> int:
    """Model evaluations per image: one for each step, two with guidance."""
    return sampler.steps * (1 if sampler.guidance == 1 else 2)


# ---- what the model predicts ---------------------------------------------------------------------------------------


def predicted(model: Diffusion, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Tensor:
    """Noise prediction (B, C, H, W) as the model is used: with the method's own guidance, if it has one, at w = 1.

    Plain guidance at w = 1 is eps(x_t, t, y).
    """
    condition = y if isinstance(y, Condition) else model.embed(y)
    if type(model.guidance) is Guidance:
        return model.eps(x_t, t, condition)
    model.guidance.start(len(t))
    step = int((model.timesteps() > t.max()).sum())
    return model.guidance(model, x_t, t, step, condition, model.null(len(t)), 1.0)


def descended(loss: Tensor, free: Sequence[Tensor], model: Diffusion | None = None) -> list[Tensor]:
    """Gradients (B, ...) of a loss with respect to the searched tensors.

    Raises `Unsupported` if a method lets no gradient through, and `Diverged` if a gradient is not finite. For a `model`
    with a method's own guidance, gradients that are all zero in more than half of the rows count as none: a switch
    stops them.
    """
    if not loss.requires_grad:
        raise Unsupported("the method gives no gradient in what it is asked: nothing can be searched by it")
    found = torch.autograd.grad(loss, list(free), allow_unused=True)
    if any(grad is None for grad in found):
        raise Unsupported("the method gives no gradient in what it is asked: nothing can be searched by it")
    if not torch.stack([value.isfinite().all() for value in (loss, *found)]).all():
        raise Diverged(0, "the attack's loss or gradient")
    if model is None or type(model.guidance) is Guidance:
        return list(found)
    still = torch.stack([grad.flatten(1).abs().sum(dim=1) for grad in found]).sum(dim=0) == 0
    if still.float().mean() > 0.5:
        raise Unsupported(f"the method gives no gradient for {int(still.sum())} of {len(still)} conditions")
    return list(found)


def denoising(model: Diffusion, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | Condition) -> Tensor:
    """|| eps - eps_theta(x_t, c) ||^2 for each row (B,), averaged over its elements."""
    return (predicted(model, model.add_noise(x0, noise, t), t, y) - noise).square().flatten(1).mean(dim=1)


# ---- prompts with free tokens --------------------------------------------------------------------------------------


def token_embeddings(model: Any) -> list[Tensor]:
    """Token embeddings (V, D) of each text encoder, detached."""
    return [encoder.get_input_embeddings().weight.detach() for encoder in model.text_encoders]


Vocabulary = Literal["words", "all"]


def allowed(model: Any, vocabulary: Vocabulary = "words") -> Tensor:
    """Ids (n,) of the tokens that prompts may consist of: those that end a word, without special tokens; or all.

    Other tokens merge with the next ones when the prompt is written as text and tokenised again.
    """
    tokenizer = model.tokenizers[0]
    if vocabulary == "all":
        return torch.arange(len(token_embeddings(model)[0]), device=model.alpha_bar.device)
    spelt = tokenizer.convert_ids_to_tokens(list(range(len(token_embeddings(model)[0]))))
    special = set(tokenizer.all_special_ids)
    kept = [i for i, text in enumerate(spelt) if text and text.endswith("</w>") and i not in special]
    return torch.tensor(kept, device=model.alpha_bar.device)


def open_prompts(model: Any, y: Tensor, k: int) -> Tensor:
    """Prompts (B, L) or (B, 2, L) with k free positions after the start token; tokens pushed beyond the end are cut.

    Free positions hold an ordinary token until `fill_tokens` replaces it, for methods that read the prompt.
    """
    free = torch.full_like(y[..., :1], int(allowed(model)[0])).expand(*y.shape[:-1], k)
    moved = torch.cat([y[..., :1], free, y[..., 1 : y.shape[-1] - k]], dim=-1)
    end = model.tokenizers[0].eos_token_id
    ended = (moved[..., 1 + k :] == end).any(dim=-1)
    moved[..., -1] = torch.where(ended, moved[..., -1], end)
    return moved


def fill_tokens(y: Tensor, tokens: Tensor) -> Tensor:
    """Opened prompts (B, L) or (B, 2, L) with these tokens (B, k) at the free positions."""
    y = y.clone()
    y[..., 1 : 1 + tokens.shape[1]] = tokens if y.dim() == 2 else tokens[:, None]
    return y


def nearest(vectors: Tensor, among: Tensor, rows: Tensor) -> Tensor:
    """Tokens (B, k), out of `rows` (n,) of `among` (V, D), nearest to vectors (B, k, D) by cosine."""
    own = torch.nn.functional.normalize(vectors.flatten(0, 1), dim=1)
    with uncast(vectors):
        found = (own @ torch.nn.functional.normalize(among[rows], dim=1).mT).argmax(dim=1)
    return rows[found].view(vectors.shape[:2])


def simplex(v: Tensor) -> Tensor:
    """Euclidean projection of the last dimension on the probability simplex (Duchi et al., ICML 2008)."""
    ordered = v.sort(dim=-1, descending=True).values
    total = ordered.cumsum(dim=-1) - 1
    count = torch.arange(1, v.shape[-1] + 1, device=v.device)
    kept = (ordered * count > total).sum(dim=-1, keepdim=True)
    return (v - total.gather(-1, kept - 1) / kept).clamp(min=0)


def bisect_simplex(v: Tensor, tolerance: float = 1e-5) -> Tensor:
    """The same projection of rows (N, V) by bisection of the shift, which ends once its bounds are this close.

    The elements then sum to 1 within V times the tolerance, which is much for a vocabulary of 49,408 tokens.
    """
    plain = v.clamp(0, 1)
    fits = ((plain.sum(dim=1).double() - 1).abs() <= tolerance)[:, None]
    low, high = (v - 1).amin(dim=1, keepdim=True).double(), v.amax(dim=1, keepdim=True).double()
    shift, found = low, torch.zeros_like(low, dtype=torch.bool)
    while (wide := ((high - low).abs() > tolerance) & ~found).any():
        shift = torch.where(wide, (low + high) / 2, shift)
        over = (v - shift.to(v)).clamp(0, 1).sum(dim=1, keepdim=True) - 1
        found = found | (wide & (over == 0))
        low, high = torch.where(wide & (over > 0), shift, low), torch.where(wide & (over < 0), shift, high)
    return torch.where(fits, plain, (v - shift.to(v)).clamp(0, 1))
