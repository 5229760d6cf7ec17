"""Concept ablation: predict for the concept what the model predicts for its anchor (Kumari et al., ICCV 2023)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Method, Task, minimise, track
from unlearnbench.techniques.losses import prediction_loss, relabel_loss


@dataclass(frozen=True)
class ConceptAblation(Method):
    """L = || eps_theta(x_t, c*) - sg eps_theta(x_t, c) ||^2 + w_p L_prior, x an image that the original sampled for c.

    c* is a caption of the forgotten concept; its anchor c is the same caption with the task's substitute.
    target="model" is the model-based variant as paper (eq. 5) and released code train it: the anchor's prediction is
    the trained model's own, without gradient. "frozen" takes it from the original, as the derivation does (eq. 4),
    which needs a second model in memory. "noise" is the noise-based variant (eq. 6): the target is the noise of x_t.
    L_prior is the denoising loss of the anchor images under c, and w_p is `prior_weight`. Without this term and with a
    large lr, "model" follows its own drift and damages other concepts.

    The paper samples 1,000 anchor images for prompts written by a language model, the code 200. Here `images` are
    sampled for the task's captions. lr in the presets is the code's base rate times its batch (8: 4 on each of two
    GPUs). With `part` None the cross-attention is trained where the model has one, as in the paper for objects and
    styles, otherwise the whole denoiser.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {"digits-text": {"lr": 3e-4}},
        "published": {"*": {"steps": 100, "lr": 1.6e-5, "batch_size": 8, "images": 1000, "prior_weight": 0.0}},
        "released": {"*": {"steps": 100, "lr": 1.6e-5, "batch_size": 8, "images": 200, "prior_weight": 0.0}},
    }
    space = {"lr": (1e-5, 1e-3), "steps": (30, 120), "prior_weight": (0.0, 1.0)}
    steps: int = 60
    """Updates of the weights (the code's `max_train_steps`; 100 for styles, 400 for nudity)."""
    lr: float = 1e-4
    """Adam's learning rate (the code's `learning_rate` times its batch where it scales; 2e-6 x 8 for styles)."""
    batch_size: int = 32
    """Anchor images in a step (the code's `train_batch_size`, 4 on each of 2 GPUs)."""
    images: int = 96
    """Anchor images that the original draws (the paper's 1,000; the code's `num_class_images`, 200)."""
    target: Literal["model", "frozen", "noise"] = "model"
    """What is predicted for c*: the "model"'s own prediction for the anchor (the paper's eq. 5), the "frozen"
    original's (eq. 4), or the "noise" of x_t (eq. 6)."""
    prior_weight: float = 1.0
    """Weight of the anchor images' denoising loss, >= 0 (the code's `prior_loss_weight`: 0 for styles)."""
    part: str | None = None
    """Part of the model to train (the code's `parameter_group`); None: "xattn" where there is one, else "full"."""

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
        """Train with Adam on the loss above."""
        part = self.part or ("xattn" if "xattn" in model.parts() else "full")
        minimise(self.losses(model, task, prepared), model.select(part), self.lr)
        return model

    def losses(self, model: Diffusion, task: Task, prepared: Batch) -> Iterator[Tensor]:
        """Yield the loss of each step, computed on a batch of anchor images."""
        source = model.frozen() if self.target == "frozen" else model
        steps = task.steps(self.steps)
        for _ in track(range(steps), steps, "steps"):
            index = torch.randint(len(prepared.x0), (self.batch_size,))
            batch = Batch(prepared.x0[index].to(task.device), prepared.y[index].to(task.device))
            anchor = task.substitute(batch.y)
            loss = self.loss(model, source, batch, anchor)
            yield loss + self.prior_weight * model.loss(Batch(batch.x0, anchor)) if self.prior_weight else loss

    def loss(self, model: Diffusion, source: Diffusion, batch: Batch, anchor: Tensor) -> Tensor:
        """Eq. 5 or 6, a mean over all elements; `source` predicts for the anchor (B,) or (B, L)."""
        if self.target != "noise":
            return relabel_loss(model, batch, anchor, source=source)
        t, noise, x_t = model.noised(batch.x0)
        return prediction_loss(model, x_t, t, batch.y, noise)
