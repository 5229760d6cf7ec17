"""ANT: keep the concept's direction early in sampling, and reverse it afterwards (Li et al., ACM MM 2025)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from unlearnbench import Diffusion, Sampler, Task, TextMethod, Words, minimise, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.saliency import counted_gradients, largest_share, zero_sums
from unlearnbench.training import restore

RUN = {
    "steps": 250,
    "lr": 5e-4,
    "batch_size": 1,
    "part": "full",
    "eta": 1.0,
    "before_step": 7,
    "alpha1": 1.0,
    "sampler_steps": 50,
    "start_guidance": 3.0,
    "mask_share": 0.5,
    "mask_rounds": 5,
    "mask_steps": 10,
    "mask_lr": 1e-2,
}
NUDITY = {"erase": ("nudity",), "mask_names": ("nudity", "naked", "erotic", "sexual")}
Weight = Annotated[float, Field(ge=0)]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class ANT(TextMethod):
    """L = L(x_t', -1) + alpha1 L(x_t, +1), with t early and t' later in sampling, where

    L(x_t, sign) = || eps_theta(x_t, c) - [eps_0(x_t, null) + sign eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 + alpha2
    || eps_theta(x_t, null) - eps_0(x_t, null) ||^2. Early are the first `before_step` steps of the sampler, which
    decide the layout and keep their direction; in all later ones guidance is reversed. Both x_t come from the model
    being trained, with `start_guidance` and from one noise. eps_0 is the original.

    Only weights in a saliency map are trained. For each of `mask_names` and `mask_rounds` times, the model trains for
    `mask_steps` steps of this loss at `mask_lr`, and is put back; its gradients are summed. In each tensor the
    `mask_share` of the largest sums, in magnitude, is salient. The map is what all of these have in common.

    "released" is the code for one concept (lileyang1210/ANT@78ce8f3, Single/train-scripts), with bugs. It counts
    `before_step` from the end of sampling (`count_from`), since its sampler is told how many steps to leave out: the
    direction is kept in the last steps, where t < 140, and reversed in the first. It takes the smallest sums for the
    map (`mask`). It predicts for the null condition without gradients, so that alpha2, 0.5, has no effect. Its t is
    drawn within a step's interval, 39 to 58 above the level of x_t, as in ESD's first code. The README's abstract, and
    the code for several concepts, keep the first steps: so does the default. That code adds adapters and merges those
    of 100 celebrities or artists, which no task here does. There is no "published": the paper's text was not available
    to check its numbers.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {
            "digits-text": {"lr": 3e-4, "batch_size": 4, "before_step": 1, "sampler_steps": 10, "mask_steps": 5},
            "sd*-nudity": {**RUN, **NUDITY, "alpha2": 0.5},
            "sd*": {**RUN, "alpha2": 0.5},
        },
        "released": {"sd-nudity": {**RUN, **NUDITY, "alpha2": 0.0, "mask": "lowest", "count_from": "image"}},
    }
    space = {"lr": (1e-5, 1e-3), "eta": (0.5, 3.0), "alpha1": (0.1, 10.0), "alpha2": (0.05, 5.0), "steps": (30, 120)}
    steps: int = 60
    """Updates of the weights (the code's `iterations`, 250)."""
    lr: PositiveFloat = 1e-4
    """Adam's learning rate (the code's `lr`, 5e-4)."""
    batch_size: PositiveInt = 8
    """Pairs of samples x_t in a step (ours; the code takes 1)."""
    part: str = "full"
    """Part of the model to train (the code's `train_method`, "full")."""
    eta: Weight = 1.0
    """Strength of both directions (the code's `negative_guidance`, 1), >= 0."""
    before_step: PositiveInt = 3
    """Number of steps in which the direction is kept (the code's `before_step`, 7 of 50)."""
    alpha1: Weight = 1.0
    """Weight of the steps in which it is kept, >= 0 (the code's `alpha1`, 1)."""
    alpha2: Weight = 0.5
    """Weight of the null condition's term, >= 0 (the code's `alpha2`, 0.5, which there has no effect)."""
    sampler_steps: Annotated[int, Field(ge=2)] = 20
    """Steps of the sampler that makes x_t (the code's `ddim_steps`, 50)."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `start_guidance`, 3)."""
    count_from: Literal["noise", "image"] = "noise"
    """Where `before_step` is counted from: the "noise" that sampling starts with (the paper), or the "image" that it
    ends with, with the code's t (the code for one concept)."""
    mask: Literal["highest", "lowest", "none"] = "highest"
    """Which weights are trained: those with the "highest" sums of gradients (the paper), the "lowest" (the code), or
    all, "none"."""
    mask_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share in (0, 1] of each tensor's weights that one map takes (the code's `threshold`, 0.5)."""
    mask_rounds: PositiveInt = 2
    """Maps for each name, each with new random numbers (the code's 5 seeds)."""
    mask_steps: PositiveInt = 10
    """Steps of each map (the code's `iterations` of ant_gradient.yaml, 10)."""
    mask_lr: PositiveFloat = 1e-2
    """Adam's learning rate in these steps (the code's `lr` of ant_gradient.yaml, 1e-2)."""
    mask_names: Words | None = None
    """Names whose maps are taken (the code's four for nudity); None: those that are erased."""

    def __post_init__(self) -> None:
        if self.mask_names is not None and not self.mask_names:
            raise UserError(
                f"mask_names of {self.name} is empty: name something, or give mask=none to train all weights"
            )

    def prepare(self, model: Any, task: Task) -> Masks | None:
        """The saliency map: for each trained tensor a mask of its shape; None: all weights."""
        if self.mask == "none":
            return None
        part, teacher = model.select(self.part), model.frozen(self.part)
        start: Any = list(teacher.select(self.part).values())
        kept = {name: torch.ones_like(value, dtype=torch.bool) for name, value in part.items()}
        names = task.names("forget").to(task.device) if self.mask_names is None else model.tokens(self.mask_names)
        maps = [name for name in names.split(1) for _ in range(task.steps(self.mask_rounds))]
        for k in track(range(len(maps)), len(maps), "saliency maps"):
            asked = [maps[k].repeat_interleave(self.batch_size, dim=0)] * task.steps(self.mask_steps)
            sums = zero_sums(part)
            stream = counted_gradients(self.losses(model, teacher, asked), part, sums)
            minimise(stream, part, self.mask_lr, others=sums)
            restore(part, start)
            for mask, total in zip(kept.values(), sums.values(), strict=True):
                mask &= largest_share(total, self.mask_share, self.mask == "highest")
        return kept

    def unlearn(self, model: Diffusion, task: Task, prepared: Masks | None = None) -> Diffusion:
        """Train with Adam on the loss above."""
        stream = self.losses(model, model.frozen(self.part), task.conditions("forget", self.steps, self.batch_size))
        minimise(stream, model.select(self.part), self.lr, mask=prepared)
        return model

    def losses(self, model: Diffusion, teacher: Diffusion, asked: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar, for the conditions of that step, (B,) or (B, L)."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        for y in asked:
            x_t, t = self.reached(model, y, sampler)
            yield self.loss(model, teacher, x_t, t, torch.cat([y, y]))

    @torch.no_grad()
    def reached(self, model: Diffusion, y: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """x_t (2B, C, H, W) and t (2B,): those whose direction is kept, then those in which it is reversed."""
        n, steps, T = len(y), sampler.steps, len(model.alpha_bar)
        first = min(self.before_step, steps - 1)
        number = torch.cat([torch.randint(first, (n,)), torch.randint(first, steps, (n,))]).to(y.device)
        seeds = torch.randint(2**62, (n,)).tolist() * 2
        if self.count_from == "noise":
            left, t = steps - number, model.timesteps(sampler)[number]
        else:
            low, high = ((k * T / steps).round().long() for k in (number, number + 1))
            left, t = (number - 1).clamp(min=0), low + (torch.rand(2 * n).to(y.device) * (high - low)).long()
        return model.sample(torch.cat([y, y]), seeds, sampler=sampler, until=left), t

    def loss(self, model: Diffusion, teacher: Diffusion, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """L at x_t (2B, C, H, W) and t (2B,), as `reached` returns them, for conditions y of all rows."""
        n, null = len(t) // 2, model.null(len(t))
        with torch.no_grad():
            eps_null, eps_c = teacher.eps(x_t, t, null), teacher.eps(x_t, t, y)
        sign = torch.ones_like(x_t)
        sign[n:] = -1
        rows = (model.eps(x_t, t, y) - eps_null - sign * self.eta * (eps_c - eps_null)).square().flatten(1).mean(dim=1)
        if self.alpha2:
            rows = rows + self.alpha2 * (model.eps(x_t, t, null) - eps_null).square().flatten(1).mean(dim=1)
        return rows[n:].mean() + self.alpha1 * rows[:n].mean()
