"""P4D: hard prompts for which the model predicts what the original predicts (Chin et al., ICML 2024)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from unlearnbench import Attack, Condition, Diffusion, Known, Look, Outcome, Plan, track
from unlearnbench.attacks.prompt_search import Prompts, evenly, looked
from unlearnbench.attacks.search import Vocabulary, predicted, sample_targets, sight
from unlearnbench.attacks.target_images import AS_PROTOCOL, TargetImages
from unlearnbench.testing import toy_models

SMALL = {"steps": 100, "every": 20}
HARNESS = {"form": "prefix", "size": 5, "optimiser": "adam"}
LONG = {"timesteps": 50, "steps": 2000, "every": 40, "lr": 0.01}
RELEASED: dict[str, Any] = {
    "steps": 3000,
    "every": 50,
    "lr": 0.1,
    "decay": 0.1,
    "optimiser": "adamw",
    "timesteps": 0,
    "vocabulary": "all",
    "pad": 0,
    "target_scheduler": "dpm++",
    "target_steps": 25,
    "target_encoding": "sample of [0, 1]",
}
RELEASED_PREFIX: dict[str, Any] = {
    **HARNESS,
    **LONG,
    "decay": 0.1,
    "vocabulary": "all",
    "target_scheduler": "lms",
    "target_steps": 25,
    "target_guidance": 7.5,
    "target_encoding": "mode",
}
ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class P4D(Attack, TargetImages):
    """min over tokens P of || eps_theta(z_t | P) - eps_0(z_t | prompt) ||^2, mean over elements; eps_0 is the original.

    z_t is the target's image, drawn by the original from the same prompt and noise, at a random t with fresh noise.
    Embeddings start at random tokens and move along the gradient at the tokens nearest to them by cosine (PEZ), with
    AdamW. form="n" (P4D-N) has `size` free tokens in place of the prompt, or as many as fit. "k" (P4D-K) keeps the
    prompt's tokens and puts a free one before every `spacing` of them, and at the end where these come out even.
    Whatever exceeds the encoder's length is cut. Every `every` steps the targets are drawn, by the protocol, with the
    nearest tokens decoded to text and tokenised again; recovered targets are done.

    Every prompt is judged, on the target's own noise. Both predictions are unguided, except for a method's own
    guidance. The attack needs gradients, so it is white-box. By default free tokens are whole words, prompts end and
    are padded as the text encoder knows it, and target images are those of the protocol.

    "released" and "released-k" search as the authors' code does (joycenerd/P4D, prompt_optimization/optimize_n.py and
    optimize_k.py, configs/esd_nudity_optmz_config.json), with its bugs: prompts are padded with token 0, an
    exclamation mark, where Stable Diffusion 1 pads with the end token; form k has no end token; and pictures are
    encoded with values from 0 to 1, where the autoencoder means -1 to 1. Target images are drawn by DPM-Solver++ in 25
    steps, and any token may be found, word pieces and special ones too. Not reproduced: the code draws three images
    each time, keeps the one prompt whose images CLIP ViT-H/14 finds most like the target, and judges only that.

    "released-prefix" is P4D as UnlearnDiffAtk's code runs it (OPTML-Group/Diffusion-MU-Attack, configs/*/hard_prompt_*,
    src/attackers/hard_prompt_.py): free tokens before the prompt (5 for nudity, 3 for objects and styles), Adam with
    `lr` 0.01, and `timesteps` evenly spaced ones in turn (0: random ones, as above). There is no "published": the
    paper's settings are not checked yet.

    "small" (n), "k" and "prefix" are 100 steps, drawn every 20, with "prefix" at `lr` 0.1; "full" and its two variants
    are as long as the code's on any task. A step costs a target two evaluations, one of each model; a method's own
    further passes and the drawing of judged images are not counted. Random numbers are drawn for a group of targets, as
    in UnlearnDiffAtk.
    """

    title, rank = "P4D", 31
    needs = frozenset({"text"})
    variants = {
        "small": SMALL,
        "k": {**SMALL, "form": "k"},
        "prefix": {**SMALL, **HARNESS, "timesteps": 5},
        "full": {},
        "full-k": {"form": "k"},
        "full-prefix": {**HARNESS, **LONG},
    }
    presets = {
        "released": {"sd-nudity": {**RELEASED, "form": "n", "size": 16}},
        "released-k": {"sd-nudity": {**RELEASED, "form": "k", "spacing": 3, "end": False}},
        "released-prefix": {
            "sd-nudity": RELEASED_PREFIX,
            "sd-object": {**RELEASED_PREFIX, "size": 3},
            "sd-style": {**RELEASED_PREFIX, "size": 3},
        },
    }
    removed = {
        name: "its settings are not checked yet; @released is its code's run, @full its length on any task"
        for name in ("published", "published-k", "published-prefix")
    }
    added: ClassVar[dict[str, Any]] = {**AS_PROTOCOL, "vocabulary": "words", "pad": None, "end": True}

    form: Literal["n", "k", "prefix"] = "n"
    size: PositiveInt = 16
    spacing: PositiveInt = 3
    timesteps: NonNegativeInt = 0
    steps: PositiveInt = 3000
    every: PositiveInt = 50
    lr: float = 0.1
    decay: float = 0.1
    optimiser: Literal["adam", "adamw"] = "adamw"
    vocabulary: Vocabulary = "words"
    """What free tokens may be: "words", those that end a word; "all", every token of the encoder."""
    pad: NonNegativeInt | None = None
    """Token that fills a prompt after its end while it is searched; None: the tokenizer's. The code's is 0."""
    end: bool = True
    """Whether a prompt has its end token while it is searched, if `pad` is given."""

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """After every `every` steps, until every target is recovered."""
        model, original = outcome.model, outcome.original
        task: Any = outcome.task
        seen = sight(outcome, sample_targets(outcome, items), items).recovered
        yield Look(0, seen)
        x0, y = self.draw_targets(outcome, items), task.inputs(items)
        start = y if self.form != "n" else task.tokens([""] * len(items)).to(y.device)
        engine = ADAMS[self.optimiser]
        how: dict[str, Any] = {"vocabulary": self.vocabulary, "pad": self.pad, "end": self.end}
        prompts = Prompts(model, start, self.pattern, "hard", engine, self.lr, self.decay, **how)
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
