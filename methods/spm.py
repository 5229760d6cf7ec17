"""SPM: rank-1 adapters that erase a concept, gated by a prompt's similarity to it (Lyu et al., CVPR 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize

from unlearnbench import Condition, Diffusion, Guidance, Sampler, Task, minimise
from unlearnbench.errors import UserError
from unlearnbench.techniques.adapters import Adapted, LowRank, attach, switch, trained
from unlearnbench.techniques.losses import esd_target, prediction_loss
from unlearnbench.training import unsplit

CODE = {
    "steps": 3000,
    "lr": 1e-4,
    "batch_size": 1,
    "sampler_steps": 30,
    "warmup": 500,
    "cycles": 3,
    "start_guidance": 3.0,
    "rank": 1,
    "eta": 1.0,
    "anchor_weight": 1000.0,
    "anchor_count": 4,
    "init_slope": math.sqrt(5),
}
ERASED: dict[str, dict[str, Any]] = {"sd-nudity": {"erase": ("nudity",)}, "sd-object": {}, "sd-style": {}}
"""Tasks like those of the paper and of the released adapters (nudity, objects, styles), with their words."""
RELEASED = {
    **CODE,
    "anchors": "noise",
    "empty_anchors": True,
    "timestep": "released",
    "gate_power": 2,
    "null_gate": "prompt",
}


@dataclass(frozen=True)
class SPM(Adapted):
    """L = || eps_theta(x_t, c) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 + lambda L_anc.

    theta adds an adapter of `rank` 1 to each linear layer and convolution of the U-Net's transformers; eps_0 has none.
    x_t is sampled with the adapters and `start_guidance`, down to a random step. Latent anchoring, L_anc = ||
    eps_theta(x_t, a) - eps_0(x_t, a) ||^2 at the concept's own x_t, preserves `anchor_count` anchors a for each x_t;
    lambda is `anchor_weight`. Anchors are retained names (or captions), drawn with P(a) ~ (1 - |cos(E(a),
    E(c))|)^`power`, E all text states as a vector. anchors="noise" are the code's, without words: Gaussian text states
    of 0.8 to 1.2 times c's norm (the code keeps each with probability 1 - cos, which is nearly 1; all are kept here).

    Facilitated transport: at inference the adapters' output is multiplied, for each prompt p, by gamma(p), the largest
    over the concept's names of max(cos(E(p), E(c)), share of c's tokens that p has), not below 0. That is
    metric="clipcos_tokenuni"; "clipcos" and "tokenuni" are one of the two, "none" is gamma = 1, as in training. The
    empty prompt of guidance has its own gamma, or that of its prompt (`null_gate`). A condition without tokens has
    gamma 1, so that leaving out the tokens does not bypass the adapters. gamma has no gradient.

    The code's lr follows `cycles` cosines after rising for `warmup` steps; cycles=0 is a constant lr.

    "released" follows the code (Con6924/SPM@3dd762e) in what its authors hardly meant. It puts the empty prompt before
    each of the four anchors, but keeps the last half of all eight rows, so that two of its four anchors are empty
    (src/engine/sampling.py:24). It tells the network a timestep that is up to 42 above the noise of x_t
    (train_spm.py:192). At inference it multiplies both halves of every adapter by gamma, which is gamma^2
    (infer_spm.py:138). It also draws x_t at random sizes from 256 to 448 pixels and uses an 8-bit AdamW; here x_t has
    the model's size and AdamW 32 bits.
    """

    resumes = True
    requires = frozenset({"concept", "xattn"})
    presets = {
        "default": {"digits-text": {"lr": 3e-2, "anchor_weight": 10.0, "sampler_steps": 8}, "sd*": CODE},
        "published": {task: {**CODE, "anchors": "names", **words} for task, words in ERASED.items()},
        "released": {task: {**RELEASED, **words} for task, words in ERASED.items()},
    }
    space = {"lr": (3e-4, 3e-2), "eta": (0.5, 3.0), "anchor_weight": (1.0, 1000.0), "steps": (30, 120)}
    steps: int = 60
    """Updates of the adapters (the code's `iterations`, 3,000)."""
    lr: float = 1e-3
    """AdamW's learning rate, the highest of its schedule (the code's `lr`, 1e-4)."""
    batch_size: int = 16
    """Samples x_t in a step (the code's `batch_size`, 1)."""
    eta: float = 1.0
    """Strength of the negative guidance in the target (the paper's eta; the code's `guidance_scale`, 1), >= 0."""
    rank: PositiveInt = 1
    """Rank of the adapters (the paper's 1; the code's `rank`)."""
    anchor_weight: float = 1000.0
    """Weight of latent anchoring, >= 0 (the paper's lambda; the code's `la_strength`, 1,000)."""
    anchors: Literal["names", "captions", "noise"] = "names"
    """What is kept: the retained concepts' "names" (the paper) or "captions" (ours), or text states of "noise" (the
    code)."""
    empty_anchors: bool = False
    """Whether the empty prompt stands in for every other anchor of "noise" (as in the code, by mistake)."""
    anchor_count: PositiveInt = 1
    """Anchors for each x_t (the code's `sampling_batch_size`, 4)."""
    power: float = 1.0
    """Exponent of the anchors' weights (1 - |cos|)^power, >= 0 (the exponent in the paper's sampling of anchors)."""
    metric: Literal["clipcos_tokenuni", "clipcos", "tokenuni", "none"] = "clipcos_tokenuni"
    """What the gate gamma measures (the code's names): the "clipcos" of text states, the share of tokens, "tokenuni",
    the larger of both, or "none"."""
    gate_power: PositiveInt = 1
    """Exponent of gamma in the gate: 1 (the paper), or 2 (the code, which multiplies both halves of an adapter)."""
    null_gate: Literal["own", "prompt"] = "own"
    """Which gamma the empty prompt of guidance has: its "own", or that of the "prompt" beside it (the code)."""
    init_slope: float = 1.0
    """Parameter a of the uniform Kaiming initialisation of the adapters' first halves (the code's sqrt(5))."""
    timestep: Literal["reached", "released"] = "reached"
    """Which timestep the network is told in a loss: the one that x_t has "reached", or the "released" code's, which is
    up to 42 of 1,000 above it; x_t then has at least one step behind it."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's 3)."""
    sampler_steps: int = 20
    """Steps of the sampler that makes x_t (the code's `max_denoising_steps`, 30)."""
    warmup: int = 0
    """First steps, in which the learning rate rises from 0 (the code's `lr_warmup_steps`, 500)."""
    cycles: int = 0
    """Cosines that the learning rate follows after that (the code's `lr_scheduler_num_cycles`, 3); 0: constant."""

    def __post_init__(self) -> None:
        if self.timestep == "released" and self.sampler_steps < 2:
            raise UserError(f"timestep=released leaves no step with sampler_steps={self.sampler_steps}: give 2 or more")

    def wrap(self, model: Any, task: Task) -> Diffusion:
        """Add the adapters, whose output is zero at first, and the hook that sets their gates."""
        model.select("xattn")
        blocks = [block for block in model.unet.modules() if type(block).__name__ == "Transformer2DModel"]
        every = [layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        for layer in every:
            attach(layer, LowRank(layer, self.rank, slope=self.init_slope))
        special = model.tokenizers[0].all_special_ids
        model.transport = Transport(task.names("forget"), special, self.metric, self.gate_power)
        model.register_forward_pre_hook(model.transport)
        if self.null_gate == "prompt":
            model.guidance = _OneGate()
        return model

    def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
        """Train the adapters with AdamW on the loss above, all gates open."""
        steps = task.steps(self.steps)
        model.transport.fixed = 1.0
        minimise(self.losses(model, task), trained(model), lambda step: self.rate(step, steps), optimiser="adamw")
        model.transport.fixed = None
        return model

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        done = (step - self.warmup) / max(1, steps - self.warmup)
        cosine = (1 + math.cos(math.pi * (self.cycles * done % 1))) / 2
        return self.lr * (step / self.warmup if step < self.warmup else cosine)

    def losses(self, model: Diffusion, task: Task) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        texts, chance = self.candidates(model, task)
        for y in task.conditions("forget", self.steps, self.batch_size):
            x_t, t = model.partway(y, sampler) if self.timestep == "reached" else late(model, y, sampler)
            with torch.no_grad():
                if self.anchors == "noise":
                    c = model.embed(y.repeat_interleave(self.anchor_count, dim=0))
                    anchor = Condition(noise(c.states), None if c.pooled is None else noise(c.pooled), c.extra)
                    if self.empty_anchors:  # the last half of: empty, first anchor, empty, second anchor, ...
                        drawn = (torch.arange(len(c.states)) % self.anchor_count + self.anchor_count) % 2 == 1
                        null = model.null(len(c.states))._replace(extra=c.extra, ids=None)
                        anchor = anchor.where(drawn.to(y.device), null)
                else:
                    drawn = torch.multinomial(chance, len(y) * self.anchor_count, replacement=True)
                    anchor = model.embed(texts[drawn].to(y.device))
            yield self.loss(model, x_t, t, y, anchor)

    def loss(self, model: Any, x_t: Tensor, t: Tensor, y: Tensor, anchor: Condition) -> Tensor:
        """The loss above, means over all elements; each x_t (B, C, H, W) has `anchor_count` anchors in turn."""
        many, times = (value.repeat_interleave(self.anchor_count, dim=0) for value in (x_t, t))
        with torch.no_grad():
            model.transport.fixed = 0.0
            target = esd_target(model, x_t, t, y, self.eta)
            kept = model.eps(many, times, anchor)
            model.transport.fixed = 1.0
        erase = prediction_loss(model, x_t, t, y, target)
        return erase + self.anchor_weight * prediction_loss(model, many, times, anchor, kept)

    @torch.no_grad()
    def candidates(self, model: Any, task: Task) -> tuple[Tensor, Tensor]:
        """Conditions that anchors are drawn from, and their weights (n,), on the CPU."""
        texts = task.captions("retain") if self.anchors == "captions" else task.names("retain")
        if self.anchors == "noise":
            return texts, texts
        if not len(texts):
            raise UserError(f"anchors={self.anchors}, but {task.name} retains nothing by name: give anchors=noise")
        c = task.names("forget").to(task.device)
        cos = [cosines(model.embed(part.to(task.device)), model.embed(c)).abs().amax(dim=1) for part in texts.split(64)]
        return texts, (1 - torch.cat(cos)).clamp(min=1e-6).cpu() ** self.power


class Transport:
    """Sets every adapter's gate before the model's forward: to `fixed`, or to gamma of each row's prompt."""

    fixed: Tensor | float | None

    def __init__(self, names: Tensor, special: list[int], metric: str, power: int = 1):
        self.names, self.metric, self.power, self.fixed = names, metric, power, None
        rows = names[:, 0] if names.dim() == 3 else names
        self.words = [row[~torch.isin(row, torch.tensor(special))].unique() for row in rows]

    def __call__(self, model: Any, args: tuple[Tensor, Tensor, Tensor | Condition]) -> tuple[Any, ...]:
        """The hook, for calls model(x_t, t, y)."""
        x_t, t, y = args
        condition = y if isinstance(y, Condition) else model.embed(y)
        switch(model, self.gamma(model, condition) if self.fixed is None else self.fixed)
        return x_t, t, condition

    @torch.no_grad()
    def gamma(self, model: Any, condition: Condition) -> Tensor | float:
        """Gates (B,), gamma to the `power`; 1 where the condition has no tokens."""
        ids, scores = condition.ids, []
        if ids is None or self.metric == "none":
            return 1.0
        if "clipcos" in self.metric:
            scores.append(cosines(condition, model.embed(self.names.to(ids.device))))
        if "tokenuni" in self.metric:
            rows = ids[:, 0] if ids.dim() == 3 else ids
            found = [(rows[..., None] == word.to(rows)).any(1).float().mean(1) for word in self.words]
            scores.append(torch.stack(found, dim=1))
        unknown = (ids.flatten(1) < 0).any(dim=1)
        return torch.where(unknown, 1.0, torch.cat(scores, dim=1).amax(dim=1).clamp(min=0)) ** self.power


class _OneGate(Guidance):
    """Guidance in which the null condition has the gates of the prompts beside it."""

    def __call__(
        self, model: Any, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """Plain guidance with the prompts' gates on both sides."""
        transport = model.transport
        if transport.fixed is not None or w == 1:
            return super().__call__(model, x_t, t, i, condition, null, w)
        gate = transport.gamma(model, condition)
        transport.fixed = torch.cat([gate, gate]) if isinstance(gate, Tensor) else gate
        try:
            with unsplit("each row has a gate of its own"):
                return super().__call__(model, x_t, t, i, condition, null, w)
        finally:
            transport.fixed = None


@torch.no_grad()
def late(model: Diffusion, y: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """As `model.partway`, after at least one step, with the timestep (B,) that the released code takes for x_t's."""
    done = torch.randint(1, sampler.steps, y.shape[:1], device=y.device)
    seeds = torch.randint(2**62, y.shape[:1]).tolist()
    x_t = model.sample(y, seeds, sampler=sampler, until=sampler.steps - done)
    T = len(model.alpha_bar)
    return x_t, T - 1 - done * T // sampler.steps


def cosines(a: Condition, b: Condition) -> Tensor:
    """Cosines (N, M) between all text states of N and of M prompts."""
    return torch.cosine_similarity(a.states.flatten(1)[:, None], b.states.flatten(1), dim=2)


def noise(like: Tensor) -> Tensor:
    """Random directions of about the norm of each row, shaped like the input."""
    scale = like.flatten(1).norm(dim=1, keepdim=True) * (0.8 + 0.4 * torch.rand(len(like), 1).to(like))
    return (scale * normalize(torch.randn_like(like).flatten(1), dim=1)).view_as(like)
