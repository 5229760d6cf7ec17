"""Selective Amnesia: learn other images for the concept under a Fisher penalty (Heng & Soh, NeurIPS 2023)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Method, Task, gradients, minimise, track

PUBLISHED = {
    "steps": 20000,
    "lr": 1e-4,
    "batch_size": 128,
    "lam": 10.0,
    "ema": 0.9999,
    "replay_images": 4500,
    "fisher_samples": 4500,
    "fisher_timesteps": 1000,
}


class Prepared(NamedTuple):
    """What the original provides; None where real images or uniform noise are used instead."""

    fisher: dict[str, Tensor]
    replay: Batch | None
    surrogate: Batch | None


@dataclass(frozen=True)
class SelectiveAmnesia(Method):
    """L = E_q(x|c_f) L(x, c_f) + gamma E L(x_r, c_r) + lam sum_i F_i (theta_i - theta*_i)^2.

    q is the surrogate: "uniform", x ~ U[-1, 1] (the paper's for DDPM), or "substitute", images that the original draws
    of the substitute (its choice for text-to-image). x_r is generative replay, `replay_images` drawn by the original,
    or "real" retain images. F is the diagonal Fisher information, the mean over samples of (sum_t grad L_t)^2 over all
    T timesteps.

    Of the T timesteps `fisher_timesteps` are taken, one from each of as many equal slices, and the sum is scaled by T /
    fisher_timesteps. In expectation this is the same sum; its square exceeds the full one's by the variance of that
    draw. The samples are those of the replay, that is, of retained concepts; with replay="real" they are training
    images.

    gamma and lam are the paper's. Its losses are sums over the D elements of x, these are means. F is therefore D^2
    times smaller here, and with the whole loss divided by D the last term is lam D F; gamma stays as it is. The default
    lam is for 60 steps: the paper's 10, made for 20,000 steps, would hold every weight in place over so few. Preset
    "published" for CIFAR-10 takes 500 images of each of nine classes and returns the running mean `ema`, which the
    paper evaluates. "released" also clips gradients, as the code does. The code continues pretraining's running mean;
    ours begins with the unlearning (see `minimise`).
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {"digits-text": {"surrogate": "substitute", "part": "noxattn", "batch_size": 32}},
        "published": {"*": PUBLISHED},
        "released": {"*": {**PUBLISHED, "clip": 1.0}},
    }
    space = {"lam": (1e-4, 1.0), "gamma": (0.3, 3.0), "lr": (1e-4, 3e-3), "steps": (30, 120)}
    steps: int = 60
    """Updates of the weights (the code's `n_iters`, 20,000 on CIFAR-10)."""
    lr: float = 1e-3
    """Adam's learning rate (the code's `lr`, 1e-4 on CIFAR-10)."""
    batch_size: int = 64
    """Surrogate images, and as many replayed ones, in a step (the code's `batch_size`, 128)."""
    gamma: float = 1.0
    """Weight of the replay loss, >= 0 (the paper's gamma, 1)."""
    lam: float = 0.01
    """Weight of the Fisher penalty, >= 0 (the paper's lambda; 10 on CIFAR-10, 50 on Stable Diffusion)."""
    surrogate: Literal["uniform", "substitute"] = "uniform"
    """The paper's q(x | c_f): "uniform" noise in [-1, 1], or images that the original draws of the task's
    "substitute"."""
    surrogate_images: int = 50
    """Surrogate images that the original draws (ours); read with surrogate="substitute"."""
    replay: Literal["generated", "real"] = "generated"
    """What stands for the retained concepts: images "generated" by the original (the paper), or "real" ones (ours)."""
    replay_images: int = 100
    """Images that are drawn for replay (500 a class in the code: 4,500 on CIFAR-10)."""
    fisher_samples: int = 25
    """Images that the Fisher information F is averaged over (500 a class in the code)."""
    fisher_timesteps: int = 20
    """Timesteps taken for each of them, scaled to all T (ours; the paper takes all 1,000)."""
    ema: float | None = None
    """Decay in [0, 1) of the running mean of the weights that is returned (the code's `ema_rate`, 0.9999); None: no
    mean."""
    clip: float | None = None
    """Largest norm of the gradient (the code's `grad_clip`, 1); None: not clipped."""
    part: str = "full"
    """Part of the model to train: "full", or "noxattn" (the code's on Stable Diffusion)."""

    def prepare(self, model: Diffusion, task: Task) -> Prepared:
        """Draw replay and surrogate images with the original, and compute its Fisher information."""
        replay = surrogate = None
        if self.replay == "generated":
            y = _some(task.captions("retain"), task.steps(self.replay_images)).to(task.device)
            replay = Batch(self.drawn(model, y), y)
        if self.surrogate == "substitute":
            y = _some(task.captions("forget"), task.steps(self.surrogate_images)).to(task.device)
            surrogate = Batch(self.drawn(model, task.substitute(y)), y)
        n = task.steps(self.fisher_samples)
        samples = next(task.batches(1, n, "retain")) if replay is None else Batch(replay.x0[:n], replay.y[:n])
        return Prepared(self.fisher(model, samples, task.steps(self.fisher_timesteps)), replay, surrogate)

    def drawn(self, model: Diffusion, y: Tensor) -> Tensor:
        """Images (n, C, H, W) for conditions y, drawn by the model's own sampler."""
        parts = y.split(self.batch_size)
        with torch.no_grad():
            return torch.cat(
                [
                    model.sample(some, torch.randint(2**62, some.shape[:1]).tolist())
                    for some in track(parts, len(parts), "batches")
                ]
            )

    def fisher(self, model: Diffusion, samples: Batch, count: int) -> dict[str, Tensor]:
        """Mean over samples of (T / count sum_t grad L_t)^2, L_t a mean over elements; each t has its own noise."""
        parameters, T = model.select(self.part), len(model.alpha_bar)
        fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}
        n = len(samples.x0)
        for x, y in track(zip(*(column.split(1) for column in samples), strict=True), n, "samples"):
            total = {name: torch.zeros_like(value) for name, value in parameters.items()}
            slices = torch.arange(count, device=x.device) + torch.rand(count, device=x.device)
            for t in (slices * T / count).long().clamp(max=T - 1).split(self.batch_size):
                x0, many = (column.expand(len(t), *column.shape[1:]) for column in (x, y))
                noise = torch.randn_like(x0)
                error = model(model.add_noise(x0, noise, t), t, many) - model.target(x0, noise, t)
                for name, grad in gradients(error.square().mean() * len(t) * T / count, parameters).items():
                    total[name] += grad
            for name, value in total.items():
                fisher[name] += value.square() / n
        return fisher

    def unlearn(self, model: Diffusion, task: Task, prepared: Prepared) -> Diffusion:
        """Train with Adam on the loss above."""
        minimise(self.losses(model, task, prepared), model.select(self.part), self.lr, ema=self.ema, clip=self.clip)
        return model

    def losses(self, model: Diffusion, task: Task, prepared: Prepared) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar."""
        parameters = model.select(self.part)
        origin = {name: value.detach().clone() for name, value in parameters.items()}
        names = task.captions("forget").to(task.device)
        real = task.batches(self.steps, self.batch_size, "retain")  # a lazy stream: unused where replay is generated
        weight, steps = self.lam * math.prod(model.shape), task.steps(self.steps)
        for _ in track(range(steps), steps, "steps"):
            if prepared.surrogate is None:
                y = _some(names, self.batch_size)
                surrogate = Batch(2 * torch.rand(self.batch_size, *model.shape, device=y.device) - 1, y)
            else:
                surrogate = _batch(prepared.surrogate, self.batch_size)
            replay = next(real) if prepared.replay is None else _batch(prepared.replay, self.batch_size)
            moved = [(prepared.fisher[name] * (parameters[name] - origin[name]).square()).sum() for name in origin]
            yield model.loss(surrogate) + self.gamma * model.loss(replay) + weight * torch.stack(moved).sum()


def _some(y: Tensor, n: int) -> Tensor:
    return y[torch.randint(len(y), (n,)).to(y.device)]


def _batch(batch: Batch, n: int) -> Batch:
    index = torch.randint(len(batch.x0), (n,)).to(batch.x0.device)
    return Batch(batch.x0[index], batch.y[index])
