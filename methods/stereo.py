"""STEREO: find new words that bring the concept back, then erase it and them at once (Srivatsan et al., CVPR 2025)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import one_hot

from unlearnbench import Condition, Diffusion, Task, TextMethod, minimise, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.concept_search import embed_word, inversion_losses, mean_word, mixed_words, slots
from unlearnbench.techniques.losses import esd_target, prediction_loss
from unlearnbench.techniques.partway import draw_way
from unlearnbench.techniques.prompts import in_turn
from unlearnbench.training import restore, saved

Word = Sequence[Tensor]
"""A word's embedding (D,), one for each text encoder."""
CODE = {
    "rounds": 2,
    "steps": 200,
    "search_steps": 200,
    "inversion_steps": 3000,
    "lr": 2e-5,
    "search_lr": 5e-6,
    "inversion_lr": 5e-3,
    "batch_size": 1,
    "sampler_steps": 50,
    "part": "noxattn",
}


@dataclass(frozen=True)
class STEREO(TextMethod):
    """L = || eps_theta(x_t, c) - [eps_0(x_t, null) + a D(anchor) - b mean_k D(c_k)] ||^2, c one of the c_k.

    D(c) = eps_0(x_t, c) - eps_0(x_t, null). c_k are the concept's names and the words v_1 ... v_K of a first stage. An
    anchor is a prompt that puts the concept in a context: it keeps the context, as the c_k take the concept away. Both
    are drawn in turn, so that all come equally often. In the letters above: a is `anchor_scale`, b `erase_scale`, K
    `rounds`.

    The first stage ("search thoroughly enough") repeats K times: erase, from a copy of the original, the last word
    found, at first the concept's names, by || eps_theta(x_t, c) - [eps'(x_t, null) - eta (eps'(x_t, c) - eps'(x_t,
    null))] ||^2, where eps' is the model before this round and eta is `search_eta`; then learn v_k, one new word in
    place of the name, by textual inversion: min || eps - eps_theta(x_t, c(v_k)) ||^2 over forget images, a K-th of
    them for each word. The second stage ("robustly erase once") trains the original on L. In both, the model being
    trained samples x_t for c with `start_guidance`, down to a random step of its sampler. All three train with AdamW.

    The formulas are those of the authors' code (koushiksrivats/robust-concept-erasing@86f124f, utils/stereo.py and
    apg.py). There, guidance of 2 in the first stage means eta = 0 here: the plain prediction for the empty prompt. Of
    the guidance scale of 2 in the second, 1 is taken for the anchor and -3 for the c_k: a = 1, b = 3. Its normalised
    guidance leaves predictions as they are, since its threshold is 0. It asks the networks at a t 19 above the level of
    x_t, learns words with templates ("a photo of a …"), and starts them at a given word, such as "person"; here images
    have captions of their own, and words start at the mean of what takes the concept's place. Anchors are the task's
    captions of the concept (`forget_prompts`), which in the code a language model wrote. There is no "released", since
    these anchors, a file of 200 sentences for nudity, are not among the files that `fetch` knows; nor "published": the
    paper's settings are not checked.
    """

    resumes = True
    requires = frozenset({"concept", "forget images", "xattn"})
    presets = {
        "default": {
            "digits-text": {"part": "xattn", "lr": 5e-4, "search_lr": 5e-4, "batch_size": 8, "sampler_steps": 5},
            "sd*": CODE,
        },
    }
    space = {"lr": (1e-4, 1e-3), "erase_scale": (0.5, 5.0), "anchor_scale": (0.0, 3.0), "steps": (30, 120)}
    rounds: PositiveInt = 2
    """Words to be found (the code's `n_iterations` and `num_of_adv_concepts`, 2 in its README)."""
    steps: int = 60
    """Updates of the last erasure (the code's `iterations`, 200)."""
    search_steps: PositiveInt = 30
    """Updates of the erasure before each word (the code's `iterations` too, 200)."""
    inversion_steps: PositiveInt = 60
    """Updates of a new word (the code's `ti_max_train_steps`, 3,000)."""
    lr: PositiveFloat = 3e-4
    """Learning rate of the last erasure (the code's `reo_lr`, 2e-5)."""
    search_lr: PositiveFloat = 3e-4
    """Learning rate of the erasures before (the code's `ste_lr`, 5e-6)."""
    inversion_lr: PositiveFloat = 5e-2
    """Learning rate of a new word (the code's `ci_lr`, 5e-3)."""
    batch_size: PositiveInt = 16
    """Samples x_t in a step, and images in a step of an inversion (the code takes 1)."""
    anchor_scale: NonNegativeFloat = 1.0
    """Guidance towards the anchor, >= 0 (the code's `compositional_guidance_scale` of 2, less one)."""
    erase_scale: NonNegativeFloat = 3.0
    """Guidance away from the concept and the words found, >= 0 (the code's same setting, plus one)."""
    search_eta: NonNegativeFloat = 0.0
    """Strength of the negative guidance in the first stage, >= 0 (the code's `negative_guidance` of 2, less two)."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `guidance_scale`, 3)."""
    sampler_steps: PositiveInt = 20
    """Steps of the sampler that makes x_t (the code's `nsteps`, 50)."""
    part: str = "noxattn"
    """Part of the model to train (the code's `train_method`, noxattn for nudity)."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Search words by erasing and inverting in turn, then erase the concept and the words from the original."""
        part, names = model.select(self.part), task.names("forget").to(task.device)
        if self.rounds > (images := len(task.data("forget").y)):
            raise UserError(
                f"rounds={self.rounds} leaves a word without an image: {task.name} has {images} forget images"
            )
        original, words = saved(part), list[Word]()
        for k in range(task.steps(self.rounds)):
            asked = self.asked(model, names, words[-1:] or None)
            before = model.frozen(self.part)
            minimise(self.erasing(model, before, task, asked), part, self.search_lr, optimiser="adamw")
            del before
            words.append(self.inverted(model, task, names, k))
        restore(part, original)
        asked = self.asked(model, names, None).join(self.asked(model, names, words))
        stream = self.erasing_all(model, model.frozen(self.part), task, asked)
        minimise(stream, part, self.lr, optimiser="adamw")
        return model

    @torch.no_grad()
    def asked(self, model: Any, names: Tensor, words: Sequence[Word] | None) -> Condition:
        """The names' conditions, or those of new words, each a prompt of its own."""
        if words is None:
            return model.embed(names)
        y, slot = slots(model, names[:1], names[:1])
        first, *more = [embed_word(model, y, slot, word) for word in words]
        for other in more:
            first = first.join(other)
        return first

    def erasing(self, model: Diffusion, before: Diffusion, task: Task, asked: Condition) -> Iterator[Tensor]:
        """Yield the first stage's loss of each step, for conditions that come in turn."""
        for c in self.drawn(task, self.search_steps, asked):
            x_t, t = self.partway(model, c)
            yield prediction_loss(model, x_t, t, c, esd_target(before, x_t, t, c, self.search_eta))

    def inverted(self, model: Any, task: Task, names: Tensor, k: int) -> list[Tensor]:
        """The k-th new word, learnt from its share of the forget images."""
        data = task.data("forget")
        y, slot = slots(model, data.y[k :: self.rounds].to(task.device), names)
        named = slot.any(dim=1)
        if not named.any():
            raise UserError(f"no caption of {task.name}'s forget images names what is to be erased: --set erase=…")
        x0 = data.x0[k :: self.rounds].to(task.device)[named]
        word = [nn.Parameter(value) for value in mean_word(model, task.substitute(names))]
        steps = task.steps(self.inversion_steps)
        turns = track(range(steps), steps, "inversion")
        stream = inversion_losses(model, x0, y[named], slot[named], word, self.batch_size, turns)
        minimise(stream, {f"word {i}": value for i, value in enumerate(word)}, self.inversion_lr, optimiser="adamw")
        return [value.detach() for value in word]

    def erasing_all(self, model: Diffusion, original: Diffusion, task: Task, asked: Condition) -> Iterator[Tensor]:
        """Yield the loss L of each step, for conditions and anchors that come in turn."""
        captions = task.captions("forget").to(task.device)
        anchors = in_turn(len(captions), self.batch_size)
        for c in self.drawn(task, self.steps, asked):
            x_t, t = self.partway(model, c)
            target = self.target(original, x_t, t, asked, captions[next(anchors).to(captions.device)])
            yield prediction_loss(model, x_t, t, c, target)

    @torch.no_grad()
    def target(self, original: Diffusion, x_t: Tensor, t: Tensor, asked: Condition, anchor: Tensor) -> Tensor:
        """eps_0(x_t, null) + a D(anchor) - b mean_k D(c_k), (B, C, H, W)."""
        n = len(asked.states)
        eps_null = original.eps(x_t, t, original.null(len(t)))
        each = torch.eye(n, device=x_t.device).unsqueeze(1).expand(-1, len(t), -1)
        eps_c = torch.stack([original.eps(x_t, t, mixed_words(asked, one)) for one in each]).mean(dim=0)
        towards = self.anchor_scale * (original.eps(x_t, t, anchor) - eps_null)
        return eps_null + towards - self.erase_scale * (eps_c - eps_null)

    def drawn(self, task: Task, steps: int, asked: Condition) -> Iterator[Condition]:
        """Yield as many batches of these conditions, in turn."""
        rows, steps = in_turn(len(asked.states), self.batch_size), task.steps(steps)
        for _ in track(range(steps), steps, "steps"):
            yield mixed_words(asked, one_hot(next(rows), len(asked.states)).to(asked.states))

    def partway(self, model: Diffusion, c: Condition) -> tuple[Tensor, Tensor]:
        """x_t (B, C, H, W) that the model samples down to a random step, and t (B,)."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        way = draw_way(model, sampler, len(c.states))
        return way.x_t(model, c), way.t
