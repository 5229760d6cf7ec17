"""P4D: hard prompts for which the model predicts what the original predicts (Chin et al., ICML 2024)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from unlearnbench import Attack, Condition, Diffusion, Known, Look, Outcome, Plan, track
from unlearnbench.attacks.prompt_search import Prompts, evenly, looked
from unlearnbench.attacks.search import predicted, sample_targets, sight
from unlearnbench.testing import toy_models

SMALL = {"steps": 100, "every": 20}
HARNESS = {"form": "prefix", "size": 5, "optimiser": "adam"}
ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class P4D(Attack):
    """min over tokens P of || eps_theta(z_t | P) - eps_0(z_t | prompt) ||^2, mean over elements; eps_0 is the original.

    z_t is the target's image, drawn by the original from the same prompt and noise, at a random t with fresh noise.
    Embeddings start at random tokens and move along the gradient at the tokens nearest to them by cosine (PEZ), with
    AdamW. form="n" (P4D-N) has `size` free tokens in place of the prompt, or as many as fit. "k" (P4D-K) keeps the
    prompt's tokens and puts a free one before every `spacing` of them, and at the end where these come out even.
    Whatever exceeds the encoder's length is cut. Every `every` steps the targets are drawn, by the protocol, with the
    nearest tokens decoded to text and tokenised again; recovered targets are done.

    The defaults, the loss and both forms follow the released code (joycenerd/P4D: prompt_optimization/, configs/
    esd_nudity_optmz_config.json), which was read; whether the paper has the same is unverified. The code draws three
    images each time, keeps the prompt whose images CLIP finds most like the target, and judges that one alone. Here
    every prompt is judged, on the target's own noise, and special tokens are never free ones. Both predictions are
    unguided, except for a method's own guidance. The attack needs gradients, so it is white-box.

    form="prefix" is P4D in UnlearnDiffAtk's harness (hard_prompt_esd_nudity_P4D.json, src/tasks/P4D_.py, read): `size`
    = 5 tokens before the prompt, Adam with `lr` 0.01, and `timesteps` evenly spaced ones in turn (0: random ones, as
    above).

    "small" (n), "k" and "prefix" are 100 steps, drawn every 20, with "prefix" at `lr` 0.1; "published" and its two
    variants are as published. A step costs a target two evaluations, one of each model; a method's own further passes
    and the drawing of judged images are not counted. Random numbers are drawn for a group of targets, as in
    UnlearnDiffAtk.
    """

    title, rank = "P4D", 31
    needs = frozenset({"text"})
    variants = {
        "small": SMALL,
        "k": {**SMALL, "form": "k"},
        "prefix": {**SMALL, **HARNESS, "timesteps": 5},
        "published": {},
        "published-k": {"form": "k"},
        "published-prefix": {**HARNESS, "timesteps": 50, "steps": 2000, "every": 40, "lr": 0.01},
    }

    form: Literal["n", "k", "prefix"] = "n"
    size: PositiveInt = 16
    spacing: PositiveInt = 3
    timesteps: NonNegativeInt = 0
    steps: PositiveInt = 3000
    every: PositiveInt = 50
    lr: float = 0.1
    decay: float = 0.1
    optimiser: Literal["adam", "adamw"] = "adamw"

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """After every `every` steps, until every target is recovered."""
        model, original = outcome.model, outcome.original
        task: Any = outcome.task
        seen = sight(outcome, sample_targets(outcome, items), items).recovered
        yield Look(0, seen)
        x0, y = sample_targets(outcome, items, model=original), task.inputs(items)
        start = y if self.form != "n" else task.tokens([""] * len(items)).to(y.device)
        engine = ADAMS[self.optimiser]
        prompts = Prompts(model, start, self.pattern, "hard", engine, self.lr, self.decay)
        for step in track(range(1, self.steps + 1), self.steps, "P4D"):
            left = (seen != 1).nonzero()[:, 0].to(x0.device)
            if not len(left):
                yield Look(2 * self.steps, seen)
                return
            t = self.times(step, len(items), len(model.alpha_bar)).to(left)
            x_t, t = model.add_noise(x0, torch.randn(x0.shape).to(x0), t)[left], t[left]
            with torch.no_grad():
                goal = original.eps(x_t, t, y[left])
            prompts.step(partial(apart, goal, model, x_t, t), left)
            if step % self.every == 0 or step == self.steps:
                seen = looked(outcome, items, prompts, seen)
                yield Look(2 * step, seen)

    def pattern(self, n: int) -> list[int]:
        """Where free tokens stand in a prompt of n."""
        if self.form != "k":
            return [0] * self.size + list(range(1, n + 1))
        return [
            0 if j % (self.spacing + 1) == 0 else j - j // (self.spacing + 1) for j in range(n + n // self.spacing + 1)
        ]

    def times(self, step: int, n: int, T: int) -> Tensor:
        """Timesteps (n,): random, or from an even schedule upwards, equally long at each."""
        if not self.timesteps:
            return torch.randint(T, (n,))
        schedule = evenly(self.timesteps, T)
        return torch.full((n,), schedule[(step - 1) * len(schedule) // self.steps])

    def known(self) -> Iterator[Known]:
        """Other words bring back what only the name has lost; nothing brings back what is not there."""
        yield Known("hidden behind its name", toy_models.attacked_outcome("hidden", text=True), 1.0, quality="bad")
        yield Known("lost", toy_models.attacked_outcome("lost", text=True), 0.0, quality="good")


def apart(goal: Tensor, model: Diffusion, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """|| eps_theta(x_t, c) - goal ||^2 for each row (B,), mean over its elements."""
    return (predicted(model, x_t, t, condition) - goal).square().flatten(1).mean(dim=1)
