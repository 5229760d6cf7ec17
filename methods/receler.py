"""Receler: erasers behind cross-attention, taught on prompts that bring the concept back (Huang et al., ECCV 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from unlearnbench import Condition, Diffusion, Task, minimise
from unlearnbench.activations import recorded_outputs
from unlearnbench.adapters import Adapted, adapters, attach, switch, trained
from unlearnbench.errors import UserError
from unlearnbench.losses import away_from, prediction_loss

CODE = {"steps": 500, "lr": 3e-4, "batch_size": 1, "sampler_steps": 50, "where": "states", "attack_tokens": 16}
MEANT = {**CODE, "attack_steps": 50, "attack_lr": 0.1}
Masks = dict[str, Tensor]


class Eraser(nn.Module):
    """gate * up(gelu(down(x))) of what cross-attention gave, zero at first."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.down, self.up, self.gate = nn.Linear(width, rank), nn.Linear(rank, width), 1.0
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, positions, width)."""
        return self.gate * self.up(gelu(self.down(x)))


@dataclass(frozen=True)
class Receler(Adapted):
    """L = || eps_theta(x_t, c_adv) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 + lambda L_reg.

    theta adds x + up(gelu(down(x))) behind each cross-attention, `rank` wide (at most its width); eps_0 is without. x_t
    is sampled with them and `start_guidance`, down to a random step. lambda is `reg_weight`, L_reg the mean over layers
    of || o (1 - M) ||^2, o the eraser's output, its square a mean over channels and positions outside of M, as in the
    code. M is where eps_0's attention to the concept's tokens, averaged over them, heads and the layers with maps of
    about a quarter of the latents' side (16 of 64), scaled to [0, 1], reaches `threshold`; other layers resize it.

    c_adv is the concept's name and `attack_tokens` learnt ones after it. Before each step of the erasers, Adam takes
    `attack_steps` on || eps_theta(x_t, c_adv) - eps_0(x_t, c) ||^2 in them; they are kept from step to step, a set for
    each name. where="words": in place of word embeddings, drawn from the vocabulary's at first; "states": in place of
    the text encoder's outputs, uniform in [0, 1) at first, as the code means it. attack_steps=0 trains on c alone.

    The code never puts what it learns into the prompt, since it assigns to a copy, and so in effect trains on c alone:
    preset "released"; "published" is what it was meant to do, but for the order of an attack's last step.
    """

    requires = frozenset({"concept", "xattn"})
    presets = {
        "default": {"digits-text": {"lr": 2e-3, "attack_steps": 2, "sampler_steps": 5}, "sd*": MEANT},
        "published": {"*": MEANT},
        "released": {"*": {**CODE, "attack_steps": 0}},
    }
    space = {"lr": (1e-4, 1e-2), "eta": (0.5, 3.0), "reg_weight": (0.01, 10.0), "steps": (30, 120)}
    steps: int = 60
    """Updates of the erasers (the code's `iterations`, 500)."""
    lr: float = 1e-3
    """Adam's learning rate of the erasers (the code's `lr`, 3e-4)."""
    batch_size: int = 16
    """Samples x_t in a step (ours; the code takes 1)."""
    eta: float = 1.0
    """Strength of the negative guidance in the target (the paper's eta; the code's `negative_guidance`), >= 0."""
    rank: PositiveInt = 128
    """Width of an eraser's bottleneck (the code's `eraser_rank`, 128); at most the layer's width."""
    reg_weight: float = 0.1
    """Weight of the regularisation outside the concept's region, >= 0 (the paper's lambda; the code's
    `concept_reg_weight`, 0.1)."""
    threshold: float = 0.1
    """Attention, scaled to [0, 1], from which on a place belongs to the concept (the code's `mask_thres`, 0.1)."""
    attack_steps: NonNegativeInt = 5
    """Attack steps on the learnt tokens before each update (the code's `advrs_iters`, 50); 0: no attack."""
    attack_tokens: PositiveInt = 4
    """Learnt tokens put behind the concept's name (the code's `num_advrs_prompts`, 16)."""
    attack_lr: float = 1e-2
    """Adam's learning rate of the attack (ours, 1e-2; preset "published" takes the code's 0.1)."""
    attack_decay: float = 0.1
    """Adam's weight decay of the attack (the code's 0.1)."""
    where: Literal["words", "states"] = "words"
    """Where the tokens are put in: in place of "words'" embeddings (ours), or of the text encoder's "states" (the
    code)."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `start_guidance`, 3)."""
    sampler_steps: int = 20
    """Steps of the sampler that makes x_t (the code's `ddim_steps`, 50)."""

    def wrap(self, model: Any, task: Task) -> Diffusion:
        """Erasers, zero at first."""
        model.select("xattn")
        for block in [block for name, block in model.unet.named_modules() if name.endswith("attn2")]:
            width = block.to_out[0].out_features
            attach(block, Eraser(width, min(self.rank, width)), after=True)
        return model

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Adam on the loss above."""
        minimise(self.losses(model, task), trained(model), self.lr)
        return model

    def losses(self, model: Any, task: Task) -> Iterator[Tensor]:
        """One loss a step, each after an attack."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        names = task.names("forget").to(task.device)
        soft = self.soft(model, names)
        optimiser = torch.optim.Adam(soft, lr=self.attack_lr, weight_decay=self.attack_decay)
        for y in task.conditions("forget", self.steps, self.batch_size):
            x_t, t = model.partway(y, sampler)
            eps_null, eps_c, inside = self.original(model, x_t, t, y)
            whose = (y[:, None] == names).flatten(2).all(dim=2).int().argmax(dim=1)
            for _ in range(self.attack_steps):
                c_adv = self.attacked(model, y, [s[whose] for s in soft])
                attack = prediction_loss(model, x_t, t, c_adv, eps_c)
                for value, grad in zip(soft, torch.autograd.grad(attack, soft), strict=True):
                    value.grad = grad
                optimiser.step()
            c = self.attacked(model, y, [s.detach()[whose] for s in soft]) if self.attack_steps else model.embed(y)
            yield self.loss(model, x_t, t, c, away_from(eps_null, eps_c, self.eta), inside)

    @torch.no_grad()
    def original(self, model: Any, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Masks]:
        """Without erasers: the predictions for nothing and for y, and M by layer."""
        switch(model, 0.0)
        eps_null = model.eps(x_t, t, model.null(len(t)))
        with model.attention() as maps:
            eps_c = model.eps(x_t, t, y)
        switch(model, 1.0)
        return eps_null, eps_c, masks(maps, model.mentioned(y, y), model.shape, self.threshold)

    def loss(self, model: Any, x_t: Tensor, t: Tensor, c: Condition, target: Tensor, inside: Masks) -> Tensor:
        """The loss above."""
        with recorded_outputs(adapters(model.unet)) as found:
            loss = prediction_loss(model, x_t, t, c, target)
        outside = {name: 1 - M for name, M in inside.items()}  # (B, positions)
        each = [(o.square().mean(2) * outside[k]).sum(1) / (outside[k].sum(1) + 1e-9) for k, o in found]
        return loss + self.reg_weight * torch.stack(each).mean()

    def soft(self, model: Any, names: Tensor) -> list[Tensor]:
        """The learnt tokens at first, (names, attack_tokens, D); for "words" those of each text encoder."""
        size, room = (len(names), self.attack_tokens), model.length - 2 - int(model.positions(names).max())
        if self.attack_steps and self.attack_tokens > room:
            raise UserError(f"attack_tokens={self.attack_tokens} do not fit behind the name: give {room} or fewer")
        if self.where == "states":
            return [torch.rand(*size, model.embed(names).states.shape[2], device=names.device).requires_grad_()]
        tables = [encoder.get_input_embeddings().weight.detach() for encoder in model.text_encoders]
        return [table[torch.randint(len(table), size, device=table.device)].requires_grad_() for table in tables]

    def attacked(self, model: Any, y: Tensor, soft: Sequence[Tensor]) -> Condition:
        """Prompts y, each with its learnt tokens (B, attack_tokens, D) behind its last subject token."""
        last, k = model.positions(y).tolist(), self.attack_tokens
        if self.where == "states":
            plain = model.embed(y)
            return plain._replace(states=placed(plain.states, soft[0], last))
        rows = [(row[..., : i + 1], row[..., i : i + 1], row[..., i + 1 : -k]) for row, i in zip(y, last, strict=True)]
        y = torch.stack([torch.cat([head, *[word] * k, end], dim=-1) for head, word, end in rows])  # the end after them
        return model.embed(y, [placed(word, new, last) for word, new in zip(model.words(y), soft, strict=True)])


def placed(values: Tensor, new: Tensor, last: Sequence[int]) -> Tensor:
    """Values (B, L, D) with new ones (B, K, D) at the positions after last[b]."""
    rows = zip(values, new.to(values), last, strict=True)
    return torch.stack([torch.cat([row[: i + 1], some, row[i + 1 + len(some) :]]) for row, some, i in rows])


def masks(maps: dict[str, list[Tensor]], words: Tensor, shape: Sequence[int], threshold: float) -> Masks:
    """M (B, positions) by layer, of attention maps (B, heads, positions, L) and which tokens (B, L) are the concept."""
    share, looks = words / words.sum(dim=1, keepdim=True), {}
    for name, (attention,) in maps.items():
        look = (attention.mean(dim=1) * share[:, None]).sum(dim=2)
        looks[name] = look.unflatten(1, (round(math.sqrt(look.shape[1] * shape[1] / shape[2])), -1))
    height = min((look.shape[1] for look in looks.values()), key=lambda h: abs(math.log(4 * h / shape[1])))
    mean = torch.stack([look for look in looks.values() if look.shape[1] == height]).mean(dim=0)
    low, high = mean.amin(dim=(1, 2), keepdim=True), mean.amax(dim=(1, 2), keepdim=True)
    inside = (mean - low >= threshold * (high - low)).to(mean)[:, None]
    return {name: interpolate(inside, look.shape[1:]).flatten(1) for name, look in looks.items()}
