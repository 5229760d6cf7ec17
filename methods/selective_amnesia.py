"""Selective Amnesia: learn other images for the concept under a Fisher penalty (Heng & Soh, NeurIPS 2023)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, gradients, minimise, track

PUBLISHED = {
    "steps": 20000,
    "lr": 1e-4,
    "batch_size": 128,
    "gamma": 1.0,
    "lam": 10.0,
    "reduction": "sum",
    "surrogate": "uniform",
    "replay": "generated",
    "replay_images": 4500,
    "fisher_concepts": "all",
    "fisher_samples": 5000,
    "fisher_timesteps": 1000,
    "ema": 0.9999,
}
CODE = {"clip": 1.0, "fisher_range": "unit", "fisher_drop": 0.1, "paired_timesteps": True, "shared_timesteps": True}


class Prepared(NamedTuple):
    """What the original provides; None where real images or uniform noise are used instead."""

    fisher: dict[str, Tensor]
    replay: Batch | None
    surrogate: Batch | None


@dataclass(frozen=True)
class SelectiveAmnesia(TextMethod):
    """L = E_q(x|c_f) L(x, c_f) + gamma E L(x_r, c_r) + lam sum_i F_i (theta_i - theta*_i)^2.

    q is the surrogate: "uniform", x ~ U[-1, 1] (the paper's for DDPM), or "substitute", images that the original draws
    of the substitute (its choice for text-to-image). x_r is generative replay, `replay_images` drawn by the original,
    or "real" retain images. F is the diagonal Fisher information, the mean over samples of (sum_t grad L_t)^2 over all
    T timesteps.

    Of the T timesteps `fisher_timesteps` are taken, one from each of as many equal slices, and the sum is scaled by T /
    fisher_timesteps. In expectation this is the same sum; its square exceeds the full one's by the variance of that
    draw. The samples are those of the replay, that is, of retained concepts; with fisher_concepts="all" the forgotten
    concept has its share of them, as in the code. With replay="real" they are training images.

    gamma and lam are the paper's, and `reduction` says what its losses are over the D elements of x. On CIFAR-10 they
    are sums, and F is that of sums. The default divides that loss by D, which changes nothing but the weight of Adam's
    eps and what `clip` does. The default lam is for 60 steps: the paper's 10, made for 20,000 steps, would hold every
    weight in place over so few.

    Preset "published" for CIFAR-10 takes 500 images a class, all ten for F, nine for the replay, and returns the
    running mean `ema`, which the paper evaluates. "released" does what the code does besides: it clips gradients, F is
    of images in [0, 1] with 10 % of the conditions dropped, timesteps come in pairs t, T - 1 - t, and surrogate and
    replay have the same ones. The running mean begins with the unlearning, or continues pretraining's as in the code
    under a protocol that starts from raw weights, such as erasediff-cvpr25; then the replay is drawn with that mean.
    Two things of the code are not offered: it stretches its generated images to the full range and flips those of the
    replay, and it draws them in 1,000 steps with dropout on, where ours take the protocol's steps.

    On Stable Diffusion the code takes means (reduction="mean"), lam 50 and AdamW, which the default there has too. Its
    replay and F are of 4,999 sentences of a language model, which no preset brings, hence none is "published" there.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"surrogate": "substitute", "part": "noxattn", "batch_size": 32}},
        "published": {"cifar10-class": PUBLISHED},
        "released": {"cifar10-class": {**PUBLISHED, **CODE}},
    }
    version = 2
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
    reduction: Literal["normalised", "sum", "mean"] = "normalised"
    """What losses, F's too, are over the D elements of x: the "sum" (the code's on CIFAR-10), that loss divided by D,
    "normalised" (ours), or the "mean" (the code's on Stable Diffusion)."""
    fisher_concepts: Literal["retain", "all"] = "retain"
    """Whose images F is taken of: "retain" concepts' (ours), or "all" with equal shares (the code)."""
    fisher_range: Literal["model", "unit"] = "model"
    """The range of F's images: the "model"'s, [-1, 1], or "unit", [0, 1] (the code's, which forgets to scale them)."""
    fisher_drop: float = 0.0
    """Share in [0, 1] of F's conditions replaced by the null condition (the code's `cond_drop_prob`, 0.1)."""
    paired_timesteps: bool = False
    """Whether timesteps come in pairs t, T - 1 - t (as in the code for CIFAR-10)."""
    shared_timesteps: bool = False
    """Whether surrogate and replay images have the same timesteps (as in the code for CIFAR-10)."""
    optimiser: Literal["adam", "adamw"] = "adam"
    """What takes the steps: "adam" (the code on CIFAR-10), or "adamw" with weight decay 0.01 (on Stable Diffusion)."""

    def prepare(self, model: Diffusion, task: Task) -> Prepared:
        """Draw replay and surrogate images with the original, and compute its Fisher information."""
        replay = surrogate = None
        if self.replay == "generated":
            y = _some(task.captions("retain"), task.steps(self.replay_images)).to(task.device)
            replay = Batch(self.drawn(model, y), y)
        if self.surrogate == "substitute":
            y = _some(task.captions("forget"), task.steps(self.surrogate_images)).to(task.device)
            surrogate = Batch(self.drawn(model, task.substitute(y)), y)
        samples = self.samples(model, task, replay)
        return Prepared(self.fisher(model, samples, task.steps(self.fisher_timesteps)), replay, surrogate)

    def samples(self, model: Diffusion, task: Task, replay: Batch | None) -> Batch:
        """The images that F is taken of, and their conditions."""
        n, forgotten = task.steps(self.fisher_samples), 0
        if self.fisher_concepts == "all":
            names = [len(task.captions(side)) for side in ("forget", "retain")]
            forgotten = round(n * names[0] / sum(names))
        kept = n - forgotten
        if replay is None:
            chosen = next(task.batches(1, kept, "retain"))
            more = next(task.batches(1, forgotten, "forget")) if forgotten else None
        else:
            y = _some(task.captions("forget"), forgotten).to(task.device) if forgotten else replay.y[:0]
            chosen = Batch(replay.x0[:kept], replay.y[:kept])
            more = Batch(self.drawn(model, y), y) if forgotten else None
        if more is not None:
            chosen = Batch(torch.cat([chosen.x0, more.x0]), torch.cat([chosen.y, more.y]))
        if self.fisher_range == "unit":
            chosen = Batch(((chosen.x0 + 1) / 2).clamp(0, 1), chosen.y)
        return chosen

    def drawn(self, model: Diffusion, y: Tensor) -> Tensor:
        """Images (n, C, H, W) for conditions y, drawn by the model's own sampler."""
        parts = y.split(self.batch_size)
        with torch.no_grad(), model.averaged():
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
                condition = model.condition(many, self.fisher_drop)
                error = model(model.add_noise(x0, noise, t), t, condition) - model.target(x0, noise, t)
                for name, grad in gradients(error.square().mean() * len(t) * T / count, parameters).items():
                    total[name] += grad
            for name, value in total.items():
                fisher[name] += value.square() / n
        return fisher

    def unlearn(self, model: Diffusion, task: Task, prepared: Prepared) -> Diffusion:
        """Train with Adam on the loss above."""
        losses, parameters = self.losses(model, task, prepared), model.select(self.part)
        average = model.averages(parameters)
        minimise(losses, parameters, self.lr, optimiser=self.optimiser, ema=self.ema, average=average, clip=self.clip)
        return model

    def losses(self, model: Diffusion, task: Task, prepared: Prepared) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar."""
        parameters = model.select(self.part)
        origin = {name: value.detach().clone() for name, value in parameters.items()}
        names = task.captions("forget").to(task.device)
        real = task.batches(self.steps, self.batch_size, "retain")  # a lazy stream: unused where replay is generated
        D, steps = math.prod(model.shape), task.steps(self.steps)
        scale, pull = {"normalised": (1, D), "sum": (D, D**2), "mean": (1, 1)}[self.reduction]
        weight = self.lam * pull
        for _ in track(range(steps), steps, "steps"):
            if prepared.surrogate is None:
                y = _some(names, self.batch_size)
                surrogate = Batch(2 * torch.rand(self.batch_size, *model.shape, device=y.device) - 1, y)
            else:
                surrogate = _batch(prepared.surrogate, self.batch_size)
            replay = next(real) if prepared.replay is None else _batch(prepared.replay, self.batch_size)
            moved = [(prepared.fisher[name] * (parameters[name] - origin[name]).square()).sum() for name in origin]
            forgetting, keeping = self.denoising(model, surrogate, replay)
            yield scale * forgetting + scale * self.gamma * keeping + weight * torch.stack(moved).sum()

    def denoising(self, model: Diffusion, surrogate: Batch, replay: Batch) -> tuple[Tensor, Tensor]:
        """The losses of surrogate and replay, means over all elements."""
        if not self.shared_timesteps:
            forgetting = model.loss(surrogate, paired=self.paired_timesteps)
            return forgetting, model.loss(replay, paired=self.paired_timesteps)
        t, noise, x_t = model.noised(surrogate.x0, paired=self.paired_timesteps)
        forgetting = (model(x_t, t, surrogate.y) - model.target(surrogate.x0, noise, t)).square().mean()
        noise = torch.randn_like(replay.x0)
        keeping = model(model.add_noise(replay.x0, noise, t), t, replay.y) - model.target(replay.x0, noise, t)
        return forgetting, keeping.square().mean()


def _some(y: Tensor, n: int) -> Tensor:
    return y[torch.randint(len(y), (n,)).to(y.device)]


def _batch(batch: Batch, n: int) -> Batch:
    index = torch.randint(len(batch.x0), (n,)).to(batch.x0.device)
    return Batch(batch.x0[index], batch.y[index])
