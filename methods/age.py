"""AGE: erase towards a mixture of words, searched for where erasing does the most damage (Bui et al., ICLR 2025)."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from unlearnbench import Condition, Diffusion, Sampler, Task, TextMethod, gradients, minimise
from unlearnbench.errors import UserError
from unlearnbench.techniques.concept_search import distances, gumbel_weights, mixed_words, spread_over
from unlearnbench.techniques.losses import away_from
from unlearnbench.techniques.partway import draw_way
from unlearnbench.techniques.retain_captions import ENGLISH_WORDS, read_captions

DIGITS = {"part": "xattn", "lr": 5e-4, "batch_size": 8, "sampler_steps": 5}
CODE = {"steps": 1000, "lr": 1e-5, "batch_size": 1, "sampler_steps": 50}
RELEASED = {
    **CODE,
    "erase": ("nudity",),
    "vocabulary": "3,000 English words",
    "closest": 100,
    "centres": 100,
    "search_lr": 1e-2,
    "temperature": 2.0,
    "mix": 1,
    "part": "noxattn",
    "as_coded": True,
}
AP_NUDITY = {**RELEASED, "target": "null", "closest": 2000, "centres": 50}
AP_STYLES = {**AP_NUDITY, "closest": 1000, "centres": 100, "part": "xattn"}
AP_STYLES.pop("erase")
OF_AP: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "digits-text": DIGITS,
        "sd*-nudity": {**CODE, "part": "noxattn"},
        "sd*": {**CODE, "part": "xattn"},
    },
    "released": {"sd-nudity": AP_NUDITY, "sd-style": AP_STYLES},
}
"""Presets of ap, from the authors' scripts (tuananhbui89/Erasing-Adversarial-Preservation@7222925, run_nudity.sh, whose
first line is commented out though the runs after it draw from its weights, and run_artist.sh). Those on objects erase
five at a time: no preset. There is no "published": the paper's settings are not checked."""


@dataclass(frozen=True)
class AGE(TextMethod):
    """min over theta of E + lambda K, while pi moves to raise both: the target concept c_t = sum_v pi_v c_v.

    E = || x0_theta(x_t, c) - [x0_0(x_t, c_t) - eta (x0_0(x_t, c) - x0_0(x_t, c_t))] ||^2 erases, K = || x0_theta(x'_t,
    c_t) - x0_0(x'_t, c_t) ||^2 keeps. c are the text states of the forgotten concept, c_v those of the words of a
    vocabulary. x0(x_t, c) = (x_t - sqrt(1 - alpha_bar_t) eps(x_t, c)) / sqrt(alpha_bar_t) is a prediction of the image;
    the index 0 means the original. The model being trained samples x_t for c, and x'_t for c_t from the same noise,
    with `start_guidance`, down to a random step of its sampler. In the letters above: lambda is `keep_weight`.

    pi, one for each forgotten name, is a Gumbel-softmax of logits, which start at 1 / V: it gives one word all the
    weight, or mixes the `mix` likeliest. After each update of theta, Adam takes `search_steps` steps on the logits, up
    E' + lambda K, where E' is E at eta=0. E' is large for words far from the concept, K for those that its erasure
    damages: together they find words that are near, and no synonyms.

    The vocabulary is what the task keeps by name, or the authors' 3,000 English words (`unlearnbench fetch
    english_3000.csv`); the `closest` words to the name, by the distance of all their text states, and of those
    `centres` that k-means in that distance chooses. target="null" erases towards the empty prompt and searches by K
    alone: AP (Bui et al., NeurIPS 2024; see `ap`).

    "released" is the authors' script for nudity (tuananhbui89/Adaptive-Guided-Erasure@b56a903), one word at a time. In
    its search E' gives no gradient, and neither does the original's part in K (`as_coded`); t lies 39 to 58 above the
    level of x_t (see `compvis_steps`), and alpha_bar belongs to the sampler's step before t. It does not start as it
    stands: two of its modules lie in another folder (SDv2). Its runs on objects erase five at a time, and those on
    objects and styles choose from word lists in one of these modules: no preset. There is no "published": the paper's
    settings are not checked.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {
            "digits-text": DIGITS,
            "sd*-nudity": {**CODE, "part": "noxattn"},
            "sd-style": {**CODE, "part": "xattn", "mix": 5},
            "sd*": {**CODE, "part": "xattn", "temperature": 0.1},
        },
        "released": {"sd-nudity": RELEASED},
    }
    space = {"lr": (1e-4, 1e-3), "eta": (0.0, 3.0), "keep_weight": (0.1, 10.0), "steps": (30, 120)}
    steps: int = 60
    """Updates of the weights (the code's `iterations`, 1,000)."""
    lr: PositiveFloat = 3e-4
    """Adam's learning rate of the weights (the code's `lr`, 1e-5)."""
    batch_size: int = 16
    """Samples x_t in a step, and as many x'_t (ours; the code takes 1)."""
    eta: NonNegativeFloat = 1.0
    """Strength of the guidance away from the concept (the code's `negative_guidance`, 1), >= 0."""
    keep_weight: NonNegativeFloat = 1.0
    """Weight of what is kept, >= 0 (the paper's lambda; the code's `lamda`, 1)."""
    target: Literal["searched", "null"] = "searched"
    """What the concept is erased towards: the "searched" mixture (AGE), or the empty prompt, "null", as
    in AP's paper."""
    vocabulary: Literal["task", "3,000 English words"] = "task"
    """The words to search among: what the "task" keeps by name (ours), or the code's (its `vocab`, EN3K)."""
    closest: PositiveInt = 100
    """How many of them, the closest to the name (the code's `gumbel_k_closest`; 100 for nudity and objects)."""
    centres: NonNegativeInt = 0
    """How many of these, chosen by k-means of their distances (the code's `gumbel_num_centers`, 100); 0: all."""
    search_steps: NonNegativeInt = 1
    """Steps of the search after each update (the code's `pgd_num_steps` less one, 1)."""
    search_lr: PositiveFloat = 1e-2
    """Adam's learning rate of the logits (the code's `gumbel_lr`, 0.01 for nudity and objects)."""
    temperature: PositiveFloat = 2.0
    """Temperature of the Gumbel-softmax (the code's `gumbel_temp`; 2, and 0.1 for objects)."""
    mix: PositiveInt = 1
    """How many words make the mixture: 1 is the code's `gumbel_hard`; 5 its `gumbel_topk` for styles."""
    compare: Literal["x0", "eps"] = "x0"
    """What the losses compare: predictions of the image, "x0" (the code), or of the noise, "eps"."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `start_guidance`, 3)."""
    sampler_steps: PositiveInt = 20
    """Steps of the sampler that makes x_t (the code's `ddim_steps`, 50)."""
    part: str = "full"
    """Part of the model to train (the code's `train_method`): "noxattn" for nudity, "xattn" for objects and styles."""
    as_coded: bool = False
    """Whether search, t and alpha_bar are the released code's (see above)."""

    def prepare(self, model: Diffusion, task: Task) -> list[Tensor]:
        """The words to search among, for each forgotten name: conditions (V, ...)."""
        told: Any = task
        y = task.names("retain").to(task.device)
        if self.vocabulary != "task" and task.limit is None:  # a trial needs no file
            english = read_captions(ENGLISH_WORDS, task, column="word")
            y = told.tokens([word for word in english if word.isalpha()]).to(task.device)  # none with a hyphen
        if not len(y):
            raise UserError(f"{self.name} needs words to search among: --set keep=… names some")
        found = []
        for name in task.names("forget").to(task.device).split(1):
            far, order = distances(model, y, name).sort(stable=True)
            order = order[: self.closest]
            order = order[spread_over(far[: self.closest], self.centres).to(order)] if self.centres else order
            found.append(y[order])
        return found

    def unlearn(self, model: Diffusion, task: Task, prepared: list[Tensor]) -> Diffusion:
        """Train with Adam on the loss above, and the logits of the mixtures against it."""
        teacher = model.frozen(self.part)
        with torch.no_grad():
            words = [teacher.embed(y.to(task.device)) for y in prepared]
        logits = [c.states.new_full((len(c.states),), 1 / len(c.states)).requires_grad_() for c in words]
        engine = torch.optim.Adam(logits, lr=self.search_lr)
        stream = self.losses(model, teacher, task, words, logits, engine)
        others: dict[str, Tensor | torch.optim.Optimizer] = {**named(logits), "search": engine}
        minimise(stream, model.select(self.part), self.lr, others=others)
        return model

    def losses(
        self,
        model: Diffusion,
        teacher: Diffusion,
        task: Task,
        words: Sequence[Condition],
        logits: Sequence[Tensor],
        engine: torch.optim.Optimizer,
    ) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar; before all but the first, search."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        names = task.names("forget").to(task.device)
        for step, y in enumerate(task.conditions("forget", self.steps, self.batch_size)):
            which = (y[:, None] == names).view(len(y), len(names), -1).all(dim=2).int().argmax(dim=1).tolist()
            for _ in range(self.search_steps if step else 0):
                damage = self.loss(model, teacher, sampler, y, self.mixture(words, logits, which), search=True)
                for value, grad in zip(logits, gradients(-damage, named(logits)).values(), strict=True):
                    value.grad = grad
                engine.step()
            with torch.no_grad():
                c_t = self.mixture(words, logits, which)
            yield self.loss(model, teacher, sampler, y, c_t)

    def mixture(self, words: Sequence[Condition], logits: Sequence[Tensor], which: Sequence[int]) -> Condition:
        """The target concept c_t of each row, which[b] being the number of its name."""
        drawn = [mixed_words(words[k], gumbel_weights(logits[k][None], self.temperature, self.mix)) for k in which]
        first, *more = drawn
        for other in more:
            first = first.join(other)
        return first

    def loss(
        self, model: Diffusion, teacher: Diffusion, sampler: Sampler, y: Tensor, c_t: Condition, search: bool = False
    ) -> Tensor:
        """E + lambda K at newly sampled x_t and x'_t; for a search E' + lambda K, which differs in gradients too."""
        way = draw_way(model, sampler, len(y), t_above=self.as_coded)
        x, other, t = way.x_t(model, y), way.x_t(model, c_t), way.t
        weight = self.weight(model, t)
        with torch.no_grad() if self.as_coded or not search else nullcontext():
            kept = teacher.eps(other, t, c_t)
            goal = teacher.eps(x, t, c_t if self.target == "searched" else teacher.null(len(t)))
        loss = self.keep_weight * (weight * (model.eps(other, t, c_t) - kept)).square().mean()
        if search and not goal.requires_grad:
            return loss
        if not search:
            with torch.no_grad():
                goal = away_from(goal, teacher.eps(x, t, y), self.eta)
        return loss + (weight * (model.eps(x, t, y) - goal)).square().mean()

    def weight(self, model: Diffusion, t: Tensor) -> Tensor:
        """sqrt((1 - alpha_bar_t) / alpha_bar_t) (B, 1, 1, 1), which makes differences of noise those of images."""
        if self.as_coded:  # the first timestep of the sampler's step that t is drawn from
            stride = len(model.alpha_bar) // self.sampler_steps
            t = (t - t % stride + 1).clamp(max=len(model.alpha_bar) - 1)
        signal, noise = model.signal(t)
        return noise / signal if self.compare == "x0" else torch.ones_like(noise)


def named(logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """Logits by the number of their name."""
    return {f"logits {k}": value for k, value in enumerate(logits)}
