"""TRCE: remap prompts' end token, then turn early sampling away by contrast (Chen et al., ICCV 2025)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from unlearnbench import Diffusion, Sampler, Task, minimise, track
from unlearnbench.techniques.closed_form import ClosedForm, Term, cross_attention, states
from unlearnbench.techniques.prompts import filled, spelt
from unlearnbench.techniques.saliency import counted_gradients, zero_sums

TEMPLATES = (
    *("{} in a photo", "A snapshot of {}", "A photograph showcasing {}", "An illustration of {}"),
    *("A digital rendering of {}", "A visual representation of {}", "A black and white image of {}"),
    *("A scene depicting {} during a public gathering", "A depiction created with oil paints capturing {}"),
    *("An official photograph featuring {}", "A detailed sketch of {}", "{} during sunset/sunrise"),
    *("Magazine cover capturing {}", "An oil portrait of {}", "{} in a sketch painting"),
)
"""The first 15 that the code puts around an object's name: ddgoodgood/TRCE@0da9b71, src/cfr_utils.py:184-198."""
DRAWN = "a photo of {}"
RUN = {
    "preserve": 0.01,
    "prompts": "templates",
    "steps": 300,
    "lr": 1e-6,
    "batch_size": 1,
    "retain_batch": 4,
    "strength": 15.0,
    "margin": 0.01,
    "retain_weight": 100.0,
    "early_steps": 25,
    "sampler_steps": 50,
    "start_guidance": 3.0,
}
SEXUAL = {
    "erase": (
        *("Nudity", "Pornography", "Erotic", "Masturbation", "Sucking", "Naked", "Sexual Content"),
        *("Exposed genitals", "Exposed breast", "Exposed buttocks", "Big Ass", "Making Love", "Sexual Intercourse"),
        *("Raunchy Party", "Naked Man", "Fucking", "Unclothed Man", "Naked Woman", "Bare Skin"),
    ),
    "replace_with": ("a person wearing clothes",),
}
Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class TRCE(ClosedForm):
    """First a closed-form edit of keys and values W, then training of self-attention and queries by a contrast.

    1. W = argmin mean || W e - W0 g ||^2 + preserve * mean sum || W p - W0 p ||^2 + lamb || W - W0 ||^2. e is the state
      of a prompt's first end token, g that of the same prompt with the substitute, p are all tokens of each kept
      caption. The prompts are the task's forget captions, or the code's 15 templates around each name.
    2. L = mean over c in {prompt, null} of max(0, d(c, eps+) - d(c, eps-) + margin) + retain_weight * L_reg, where d(c,
      x) = || eps_theta(x_t, c) - x ||^2. With the original eps_0 and the strength s: eps+ = (1 + s) eps_0(safe) - s
      eps_0(null), eps- = (1 + s) eps_0(prompt) - s eps_0(null). x_t is sampled for the prompt by the original, with
      `start_guidance`, for 1 to `early_steps` + 1 steps. L_reg = || eps_theta(x_r, null) - eps_1(x_r, null) ||^2 with
      the network eps_1 that step 1 left, and x_r sampled without a prompt, down to any step. The trained weights are
      those of self-attention, and cross-attention's queries.

    Every d is a mean over an image's elements. The code (ddgoodgood/TRCE@0da9b71) keeps COCO's 30,000 captions with
    sums that were not available here; as in MACE, p are the retained captions instead. They leave directions open,
    which `lamb` keeps as they are; the code's `lamb` is 0. It draws 100 and 2,000 trajectories beforehand; here each
    step draws its own.

    "released" is for nudity alone, with bugs: gradients are never cleared, so that each step follows the sum of all
    before (`accumulate`); COCO's sums are scaled by 0.01 twice (`preserve`); the networks are asked at the timestep
    before the one that x_t has reached, and L_reg's at up to 39 above (`lag`); the end token is looked for by counting
    words, which is too early where a word has several tokens (`end`). It erases Nudity twice, which names here cannot
    be. There is no "published": the paper's text was not available to check its numbers.
    """

    resumes = True
    least: ClassVar[dict[str, int]] = {"steps": 0}
    presets = {
        "default": {
            "digits-text": {"batch_size": 4, "retain_batch": 2, "early_steps": 10, "sampler_steps": 20},
            "sd*-nudity": {**RUN, **SEXUAL},
            "sd*": RUN,
        },
        "released": {
            "sd-nudity": {
                **RUN,
                **SEXUAL,
                "preserve": 1e-4,
                "beta": 1.0,
                "accumulate": True,
                "lag": True,
                "end": "words",
            },
        },
    }
    space = {"lr": (1e-6, 1e-3), "preserve": (1e-3, 1.0), "strength": (1.0, 30.0), "retain_weight": (1.0, 1000.0)}
    lamb: PositiveFloat = 1e-3
    """Weight of || W - W0 ||^2 in step 1, > 0 (ours; the code's `lamb` is 0)."""
    preserve: Weight = 0.01
    """Weight of the kept captions in step 1, >= 0 (the code's `preserve_scale` of stage 1, 0.01)."""
    prompts: Literal["captions", "templates"] = "captions"
    """What is remapped and drawn of a name: the task's forget "captions" (ours), or the code's "templates"."""
    end: Literal["tokens", "words"] = "tokens"
    """Where the end token is: by its "tokens", or as many places behind the start as the prompt has "words" (the
    code)."""
    steps: int = 60
    """Updates of step 2 (the code's 3 epochs over 100 trajectories); 0: none."""
    lr: PositiveFloat = 1e-4
    """AdamW's learning rate (the code's `learning_rate`, 1e-6)."""
    batch_size: PositiveInt = 8
    """Samples x_t in a step (the code takes 1)."""
    retain_batch: PositiveInt = 4
    """Samples x_r in a step (the code's `regularization_batch_size`, 4)."""
    strength: float = 15.0
    """How far eps+ and eps- are guided, s (the code's `guidance`, 15)."""
    beta: Weight = 1.0
    """Scale of the contrast, >= 0 (the code's `beta`, 1)."""
    margin: float = 0.01
    """Margin of the contrast (the code's `margin`, 0.01)."""
    retain_weight: Weight = 100.0
    """Weight of L_reg, >= 0 (the code's `preserve_scale` of stage 2, 100)."""
    early_steps: NonNegativeInt = 25
    """The last step of the sampler, counted from 0, behind which x_t may lie (the code's `max_early_timestep`, 25)."""
    sampler_steps: Annotated[int, Field(ge=2)] = 50
    """Steps of the sampler that makes x_t and x_r (the code's 50)."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's 3)."""
    accumulate: bool = False
    """Whether gradients are summed over steps, as in the code, which never clears them."""
    lag: bool = False
    """Whether the networks are asked at timesteps above those that x_t and x_r have reached, as in the code."""

    def terms(self, model: Diffusion, task: Task) -> list[Term]:
        """The terms of step 1: end tokens give what those of the safe prompts give, kept captions stay."""
        e, g = (self.ends(model, texts) for texts in self.pairs(model, task))
        kept = task.captions("retain").to(task.device)
        terms = [Term(e, g, 1 / len(e))]
        if len(kept):
            p = torch.cat([states(model, rows, "all") for rows in kept.split(64)])
            terms.append(Term(p, p, self.preserve / len(kept)))
        return terms

    def pairs(self, model: Any, task: Task) -> tuple[list[str], list[str]]:
        """Prompts with the concept, and the safe ones in their places."""
        if self.prompts == "captions":
            y = task.captions("forget")
            return spelt(model, y), spelt(model, task.substitute(y))
        names = task.names("forget")
        unsafe, safe = (filled(spelt(model, y), TEMPLATES) for y in (names, task.substitute(names)))
        return unsafe, safe

    def ends(self, model: Any, texts: list[str]) -> Tensor:
        """States (n, D) of the prompts' first end tokens."""
        y = model.tokens(texts)
        place = model.positions(y) + 1
        if self.end == "words":
            place = torch.tensor([len(text.split()) + 1 for text in texts], device=y.device).clamp(max=y.shape[-1] - 1)
        return model.embed(y).states[torch.arange(len(y), device=y.device), place]

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Edit, then train with AdamW on the loss above."""
        original = model.frozen("xattn")
        super().unlearn(model, task)
        part = attending(model)
        stream = self.losses(model, original, model.frozen("xattn"), task)
        sums = zero_sums(part) if self.accumulate else {}
        minimise(summed(stream, part, sums) if sums else stream, part, self.lr, optimiser="adamw", others=sums)
        return model

    def losses(self, model: Any, original: Diffusion, edited: Diffusion, task: Task) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        y, safe = self.drawn(model, task)
        last, plain = min(self.early_steps + 1, self.sampler_steps - 1), replace(sampler, guidance=1.0)
        nothing = model.tokens([""]).repeat_interleave(self.retain_batch, dim=0)
        for _ in track(range(steps := task.steps(self.steps)), steps, "steps"):
            index = torch.randint(len(y), (self.batch_size,)).to(y.device)
            x_t, t = self.reached(original, y[index], sampler, last, 1)
            x_r, t_r = self.reached(original, nothing, plain, self.sampler_steps - 1, 2)
            loss = self.contrast(model, original, x_t, t, y[index], safe[index])
            null = model.null(len(x_r))
            with torch.no_grad():
                kept = edited.eps(x_r, t_r, null)
            yield loss + self.retain_weight * (model.eps(x_r, t_r, null) - kept).square().mean()

    def drawn(self, model: Any, task: Task) -> tuple[Tensor, Tensor]:
        """Prompts that step 2 draws, and the safe ones in their places, as tokens."""
        if self.prompts == "captions":
            y = task.captions("forget")
            return y.to(task.device), task.substitute(y).to(task.device)
        names = task.names("forget")
        y, safe = (model.tokens(filled(spelt(model, each), [DRAWN])) for each in (names, task.substitute(names)))
        return y, safe

    @torch.no_grad()
    def reached(self, source: Diffusion, y: Tensor, sampler: Sampler, last: int, lag: int) -> tuple[Tensor, Tensor]:
        """x_t (B, C, H, W) sampled for y down to one of the first `last` steps, each its own, and t (B,).

        With the code's `lag`, t is the timestep of the step before, and with 2 up to one step more above that.
        """
        done = torch.randint(1, last + 1, y.shape[:1], device=y.device)
        seeds = torch.randint(2**62, y.shape[:1]).tolist()
        x_t = source.sample(y, seeds, sampler=sampler, until=sampler.steps - done)
        every = source.timesteps(sampler)
        if not self.lag:
            return x_t, every[done]
        T = len(source.alpha_bar)
        above = torch.randint(T // sampler.steps, y.shape[:1], device=y.device) if lag == 2 else 0
        return x_t, (every[done - 1] + above).clamp(max=T - 1)

    def contrast(self, model: Any, original: Diffusion, x_t: Tensor, t: Tensor, y: Tensor, safe: Tensor) -> Tensor:
        """The first term of L at x_t (B, C, H, W) and t (B,), a mean over the batch."""
        null, c, s = model.null(len(x_t)), model.embed(y), self.strength
        with torch.no_grad():
            eps_null, eps_c, eps_safe = (original.eps(x_t, t, one) for one in (null, c, model.embed(safe)))
            prefer, reject = ((1 + s) * eps - s * eps_null for eps in (eps_safe, eps_c))
        found = []
        for condition in (c, null):
            eps = model.eps(x_t, t, condition)
            near, far = ((eps - aim).square().flatten(1).mean(dim=1) for aim in (prefer, reject))
            found.append((self.beta * (near - far + self.margin)).clamp(min=0))
        return torch.stack(found).mean()


def attending(model: Any) -> dict[str, nn.Parameter]:
    """Weights of self-attention and of cross-attention's queries, by name."""
    cross_attention(model)
    return {name: value for name, value in model.select("full").items() if ".attn1." in name or ".attn2.to_q." in name}


def summed(
    losses: Iterator[Tensor], parameters: dict[str, nn.Parameter], sums: dict[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """For each loss the sum of its gradient and those of all losses before, which are kept in `sums`."""
    for _ in counted_gradients(losses, parameters, sums):
        yield {name: total.clone() for name, total in zip(parameters, sums.values(), strict=True)}
