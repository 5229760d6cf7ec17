"""UnlearnDiffAtk: a prefix of tokens that brings the concept back (Zhang et al., ECCV 2024)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt

from unlearnbench import Attack, Known, Look, Outcome, Plan, track
from unlearnbench.attacks.prompt_search import Prompts, evenly, looked
from unlearnbench.attacks.search import Vocabulary, denoising, sample_targets, sight
from unlearnbench.attacks.target_images import AS_PROTOCOL, TargetImages
from unlearnbench.testing import toy_models

SMALL = {"timesteps": 5, "iterations": 20}
RELEASED = {
    "kind": "relaxed",
    "timesteps": 50,
    "iterations": 40,
    "lr": 0.01,
    "decay": 0.1,
    "vocabulary": "all",
    "bisect": True,
    "target_scheduler": "lms",
    "target_steps": 25,
    "target_guidance": 7.5,
    "target_encoding": "mode",
}


@dataclass(frozen=True)
class UnlearnDiffAtk(Attack, TargetImages):
    """min over k tokens before a prompt of || eps - eps_theta(z_t | prefix, prompt) ||^2, a mean over elements.

    z_t is the target's image, drawn by the original from the same prompt and noise, at timestep t. kind="relaxed" is
    the paper's: each free place has weights P on the probability simplex over the vocabulary, uniform at first. Tokens
    are drawn from P, their gradient is used for P (straight through), Adam with `lr` and `decay` (an L2 term) takes a
    step, and P is projected back. "hard" is PEZ on the same loss: the nearest tokens' gradient moves embeddings that
    start at random tokens. "soft" searches embeddings that no token spells, so that filters of words cannot read them;
    it is this suite's, not the paper's. `timesteps` evenly spaced ones are visited upwards (10, 30, ..., 990 of 1000;
    as evenly where there are fewer), with `iterations` steps at each, and the optimiser keeps its state. After each
    timestep the targets are drawn, by the protocol, with the likeliest (or nearest) tokens, decoded to text and
    tokenised again; recovered ones are done.

    Noise is fresh in each iteration, as in the authors' code. It is drawn for a whole group of targets, solved or not:
    the same for every method, but not for another `batch`; everything else belongs to a target alone. What no longer
    fits the text encoder is cut at a prompt's end.

    By default the target images are those of the protocol, and free tokens are whole words, so that a prompt is
    tokenised as it was found. "released" is the authors' code (OPTML-Group/Diffusion-MU-Attack, configs/*/text_grad_*
    and src/execs/generate_dataset.py): images by LMS in 25 steps with guidance 7.5, encoded again from 8 bits, and any
    token, word pieces and special ones too. It has 5 free tokens for nudity and 3 for objects and styles. There the
    24 of 142 prompts of nudity that are over 60 tokens are left out, here they are attacked too. There is no
    "published": the paper's settings are not checked yet.

    "small", "soft" and "hard" are 5 timesteps of 20 iterations; "full" is 50 of 40 on any task. An iteration costs a
    target one evaluation; a method's own further passes and the drawing of judged images are not counted.
    """

    title, rank = "UnlearnDiffAtk", 30
    needs = frozenset({"text"})
    variants = {
        "small": SMALL,
        "soft": {**SMALL, "kind": "soft"},
        "hard": {**SMALL, "kind": "hard"},
        "full": {},
    }
    presets = {
        "released": {
            "sd-nudity": {**RELEASED, "k": 5},
            "sd-object": {**RELEASED, "k": 3},
            "sd-style": {**RELEASED, "k": 3},
        }
    }
    removed = {
        "published": "its settings are not checked yet; @released is its code's run, @full its schedule on any task"
    }
    added: ClassVar[dict[str, Any]] = {**AS_PROTOCOL, "vocabulary": "words", "bisect": False}

    kind: Literal["relaxed", "hard", "soft"] = "relaxed"
    k: PositiveInt = 5
    timesteps: PositiveInt = 50
    iterations: PositiveInt = 40
    lr: float = 0.01
    decay: float = 0.1
    vocabulary: Vocabulary = "words"
    """What free tokens may be: "words", those that end a word; "all", every token of the encoder."""
    bisect: bool = False
    """Whether P is projected by bisection to within 1e-5 of the shift, as in the released code; otherwise exactly."""

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """After each timestep's iterations, until every target is recovered."""
        model, task = outcome.model, outcome.task
        seen = sight(outcome, sample_targets(outcome, items), items).recovered
        yield Look(0, seen)
        x0, y = self.draw_targets(outcome, items), task.inputs(items)
        how: dict[str, Any] = {"vocabulary": self.vocabulary, "bisect": self.bisect}
        prompts = Prompts(model, y, self.prefixed, self.kind, torch.optim.Adam, self.lr, self.decay, **how)
        schedule = evenly(self.timesteps, len(model.alpha_bar))
        for number, timestep in enumerate(track(schedule, len(schedule), "UnlearnDiffAtk"), start=1):
            left = (seen != 1).nonzero()[:, 0].to(x0.device)
            if not len(left):
                yield Look(len(schedule) * self.iterations, seen)
                return
            t = torch.full_like(left, timestep)
            for _ in range(self.iterations):
                noise = torch.randn(x0.shape).to(x0)
                prompts.step(partial(denoising, model, x0[left], t, noise[left]), left)
            seen = looked(outcome, items, prompts, seen)
            yield Look(number * self.iterations, seen)

    def prefixed(self, n: int) -> list[int]:
        """k free tokens before the prompt."""
        return [0] * self.k + list(range(1, n + 1))

    def known(self) -> Iterator[Known]:
        """A prefix brings back what only the name has lost; nothing brings back what is not there."""
        yield Known("hidden behind its name", toy_models.attacked_outcome("hidden", text=True), 1.0, quality="bad")
        yield Known("lost", toy_models.attacked_outcome("lost", text=True), 0.0, quality="good")
