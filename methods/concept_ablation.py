"""Concept ablation: predict for the concept what the model predicts for its anchor (Kumari et al., ICCV 2023)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearnbench import Batch, Diffusion, Task, TextMethod, minimise, track
from unlearnbench.techniques.losses import prediction_loss, relabel_loss

PEOPLE = ("people", "body", "boy", "girl", "women", "man", "child")
"""The anchors that the code's README names for nudity."""
CAPTIONS = {
    text.format(anchor): anchor
    for anchor in PEOPLE
    for text in ("nudity, nsfw, {}", "in nudity, nsfw style, {}", "{}, nudity, nsfw")
}
"""The code's captions of nudity, each of its three forms equally often, and the anchor of each."""
NUDITY = {"steps": 400, "lr": 6.4e-5, "batch_size": 8, "images": 1000, "part": "attn"}
"""The authors' recipe, later than the paper: 4e-6 x 4 images x 2 GPUs x 2, since the code doubles it with a prior."""
WORDS = {"erase": tuple(CAPTIONS), "replace_with": tuple(CAPTIONS.values()), "forget_prompts": tuple(CAPTIONS)}
PUBLISHED = {"steps": 100, "lr": 1.6e-5, "batch_size": 8, "images": 1000, "prior_weight": 0.0, "part": "kv"}
CODE = {"sum_channels": True, "optimiser": "adamw", "clip": 1.0, "keep_start": True}


@dataclass(frozen=True)
class ConceptAblation(TextMethod):
    """L = || eps_theta(x_t, c*) - sg eps_theta(x_t, c) ||^2 + w_p L_prior, x an image that the original sampled for c.

    c* is a caption of the forgotten concept; its anchor c is the same caption with what takes the concept's place.
    target="model" is the model-based variant as paper (eq. 5) and released code train it: the anchor's prediction is
    the trained model's own, without gradient. "frozen" takes it from the original, as the derivation does (eq. 4),
    which needs a second model in memory. "noise" is the noise-based variant (eq. 6): the target is the noise of x_t.
    L_prior is the denoising loss of the anchor images under c, and w_p is `prior_weight`. Without this term and with a
    large lr, "model" follows its own drift and damages other concepts.

    Paper and code train the keys and values of cross-attention alone for objects and styles (part="kv"). The code's
    mask of one channel divides the sum over four channels by the number of positions: its first term is four times a
    mean, and its w_p of 1 is 0.25 here (`sum_channels` counts as it does). It trains with AdamW and a clip at norm 1,
    and lets no gradient through the keys and values of the start token (`keep_start`).

    The paper did not erase nudity. The authors' later recipe for it, "released" on sd-nudity, trains all attention on
    the captions "nudity, nsfw, people" and so on; its images are for 203 captions of people that the repository ships,
    here for the seven words of its README, drawn by the task's sampler without its negative prompt, and not flipped. lr
    in the presets is the code's base rate times its batch (8: 4 on each of two GPUs), and times 2 with a prior. With
    `part` None all of the cross-attention is trained where the model has one, otherwise the whole denoiser.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {"digits-text": {"lr": 3e-4}, "sd*-nudity": {**NUDITY, "prior_weight": 0.25}, "sd*": PUBLISHED},
        "published": {"sd-style": PUBLISHED},
        "released": {
            "sd-nudity": {**NUDITY, **CODE, **WORDS, "prior_weight": 1.0},
            "sd-style": {**PUBLISHED, **CODE},
        },
    }
    space = {"lr": (1e-5, 1e-3), "steps": (30, 120), "prior_weight": (0.0, 1.0)}
    steps: int = 60
    """Updates of the weights (the code's `max_train_steps`; 100 for styles, 400 for nudity)."""
    lr: float = 1e-4
    """The learning rate (the code's `learning_rate` times its batch where it scales; 2e-6 x 8 for styles)."""
    batch_size: int = 32
    """Anchor images in a step (the code's `train_batch_size`, 4 on each of 2 GPUs)."""
    images: int = 96
    """Anchor images that the original draws (the paper's and the code's `num_class_images`, 1,000)."""
    target: Literal["model", "frozen", "noise"] = "model"
    """What is predicted for c*: the "model"'s own prediction for the anchor (the paper's eq. 5), the "frozen"
    original's (eq. 4), or the "noise" of x_t (eq. 6)."""
    prior_weight: float = 1.0
    """Weight of the anchor images' denoising loss, >= 0 (the code's `prior_loss_weight`: 0 for styles)."""
    part: str | None = None
    """Part of the model to train (the code's `parameter_group`): "kv" is its `cross-attn`, the keys and values of
    cross-attention; "attn" all of self- and cross-attention; None: "xattn" where there is one, else "full"."""
    sum_channels: bool = False
    """Whether the first term sums over channels instead of averaging, as the code's mask does."""
    optimiser: Literal["adam", "adamw"] = "adam"
    """The optimiser; AdamW decays weights by 0.01, as in the code."""
    clip: float | None = None
    """Largest norm of the gradient (the code's `max_grad_norm`, 1); None: not clipped."""
    keep_start: bool = False
    """Whether keys and values of the start token pass no gradient, as in the code's attention."""

    @torch.no_grad()
    def prepare(self, model: Diffusion, task: Task) -> Batch:
        """Images of the original for the anchors, with the forget captions that they replace; on the CPU."""
        captions, size = task.captions("forget"), self.batch_size
        made = []
        chunks = task.steps(-(-self.images // size))
        for k in track(range(chunks), chunks, "anchor images"):
            n = min(size, self.images - k * size)
            y = captions[torch.randint(len(captions), (n,))]
            seeds = torch.randint(2**62, (n,)).tolist()
            made.append(Batch(model.sample(task.substitute(y.to(task.device)), seeds).cpu(), y))
        return Batch(*(torch.cat(parts) for parts in zip(*made, strict=True)))

    def unlearn(self, model: Diffusion, task: Task, prepared: Batch) -> Diffusion:
        """Train with the optimiser on the loss above."""
        part = self.trained(model)
        minimise(self.losses(model, task, prepared), part, self.lr, optimiser=self.optimiser, clip=self.clip)
        return model

    def trained(self, model: Diffusion) -> dict[str, nn.Parameter]:
        """The parameters of `part`, by name."""
        if self.part == "attn":
            return {**model.select("selfattn"), **model.select("xattn")}
        if self.part == "kv":
            found = model.select("xattn")
            return {name: found[name] for name in found if ".to_k." in name or ".to_v." in name}
        return model.select(self.part or ("xattn" if "xattn" in model.parts() else "full"))

    def losses(self, model: Diffusion, task: Task, prepared: Batch) -> Iterator[Tensor]:
        """Yield the loss of each step, computed on a batch of anchor images."""
        source = model.frozen(self.part or "xattn") if self.target == "frozen" else model
        steps = task.steps(self.steps)
        for _ in track(range(steps), steps, "steps"):
            index = torch.randint(len(prepared.x0), (self.batch_size,))
            batch = Batch(prepared.x0[index].to(task.device), prepared.y[index].to(task.device))
            anchor = task.substitute(batch.y)
            with ExitStack() as stack:
                if self.keep_start:
                    stack.enter_context(without_start(model))
                loss = self.loss(model, source, batch, anchor)
                if self.sum_channels:
                    loss = loss * batch.x0.shape[1]
                if self.prior_weight:
                    loss = loss + self.prior_weight * model.loss(Batch(batch.x0, anchor))
                yield loss  # within: checkpointing calls the network again for the gradient

    def loss(self, model: Diffusion, source: Diffusion, batch: Batch, anchor: Tensor) -> Tensor:
        """Eq. 5 or 6, a mean over all elements; `source` predicts for the anchor (B,) or (B, L)."""
        if self.target != "noise":
            return relabel_loss(model, batch, anchor, source=source)
        t, noise, x_t = model.noised(batch.x0)
        return prediction_loss(model, x_t, t, batch.y, noise)


@contextmanager
def without_start(model: Any) -> Iterator[None]:
    """Within it, keys and values of every cross-attention pass no gradient at the start token."""

    def held(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    hooks = [linear.register_forward_hook(held) for pair in model.kv() for linear in pair]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
