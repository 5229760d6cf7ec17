"""EraseDiff as its authors released it: fixed lambda, and an inner loop that is undone (Wu et al., CVPR 2025)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, gradients, minimise
from unlearnbench.hashing import seed_of
from unlearnbench.techniques.losses import WrongTarget, erasediff_forget_loss, erasediff_gradient
from unlearnbench.training import Gradients, Parameters, inner, norm, restore, saved

CIFAR = {
    "epochs": 4,
    "rounds": 2,
    "K": 2,
    "outer": 36,
    "lr": 1e-4,
    "batch_size": 128,
    "target": "random",
    "fixed_lambda": 0.1,
    "clip": 1.0,
    "ema": 0.99,
    "part": "full",
    "drop": 0.1,
    "drop_target": 0.1,
    "outer_drop": 0.1,
    "shared_timesteps": True,
    "paired_timesteps": True,
}
TEXT = {
    "nested": True,
    "lr": 1e-5,
    "batch_size": 16,
    "target": "substitute",
    "fixed_lambda": 1.0,
    "clip": None,
    "ema": None,
}
NAMES, CLOTHED = ("nudity", "naked", "erotic", "sexual"), ("a photo of a person wearing clothes",)
WORDS = {
    "erase": NAMES,
    "replace_with": ("a photo of a pokemon",),
    "keep": CLOTHED,
    "forget_prompts": NAMES,
    "retain_prompts": CLOTHED,
}
NUDITY = {**TEXT, **WORDS, "epochs": 5, "K": 2, "part": "noxattn", "repeated": "both", "outer_steps": 159}
OBJECT = {
    **TEXT,
    "replace_with": ("pokemon",),
    "epochs": 2,
    "K": 1,
    "part": "full",
    "repeated": "forget",
    "outer_steps": 59,
}


@dataclass(frozen=True)
class EraseDiffReleased(TextMethod):
    """L = L_r + lambda (L_f - mean of L_f in the last inner pass), by the loop of the released code for CIFAR-10.

    L_r is the denoising loss of retain images, L_f the forget loss of `erasediff`. `epochs` x `rounds` times, Adam
    takes K passes over the forget set on L_f (the inner loop). Then the weights are put back, but not Adam's moments,
    and the same Adam takes `outer` batches on L, with gradients clipped at norm `clip`. An EMA of the outer steps is
    returned. lambda is `fixed_lambda`, or max(0, eta - cos(grad L_r, grad L_f)) where that is None.

    Two things differ from the paper, by design of the code: the subtracted mean has no gradient, so that the inner
    loop acts through Adam's leftover moments alone, and the adaptive lambda uses the cosine in place of the paper's
    ratio. For the paper's algorithm see `erasediff`.

    The code for CIFAR-10 does not run as it stands: its loop uses a loss that only another function defines, the branch
    of the adaptive lambda asks for the gradient of L_r by the null class, which L_r does not depend on, and the mode of
    its README does not exist. Preset "released" is what it does with that loss defined (`torch.nn.MSELoss`), fixed
    lambda and the mode that there is: 10 % of the conditions are dropped in the
    outputs and targets of L_f, each by its own draw, but not in L_r; forget images of the outer loop have the retain
    images' timesteps; timesteps come in pairs. It draws c_m among the classes 1 to 9, which is right for class 0 alone;
    here c_m is that of a retain image. "default" for CIFAR-10 leaves out what of this can only be an oversight: targets
    and outer outputs keep their conditions, and timesteps are drawn for every image.

    On Stable Diffusion the loop is `nested`: an inner pass and an outer one alternate K times in an epoch, and before
    every outer pass the weights of the epoch's beginning are put back, so that what the one before reached is lost. All
    steps take the first batch of forget images, and for nudity of retain images too (`repeated`). The scripts recommend
    the weights after 159 outer steps, for a class after 59. The code encodes an image twice there, for output and
    target, and takes "a photo of a pokemon" for c_m; it neither clips nor averages.
    """

    presets: ClassVar[dict] = {
        "default": {"cifar10-class": {"outer": 36, "drop": 0.1}, "digits-text": {"lr": 5e-4, "batch_size": 32}},
        "released": {"cifar10-class": CIFAR, "sd-nudity": NUDITY, "sd-object": OBJECT},
    }
    space = {"lr": (3e-5, 3e-3), "fixed_lambda": (0.01, 1.0), "K": (1, 3)}

    epochs: int = 4
    """How often the `rounds` are repeated (the code's `unl_eps`)."""
    rounds: int = 2
    """Inner loops, each followed by an outer one, in an epoch (the code's `S_steps`)."""
    K: int = 2
    """Passes over the forget set in each inner loop (the code's `K_steps`)."""
    outer: int | None = None
    """Batches in each outer loop (36 in the code, where 4,500 retain images in batches of 128 end it); None: one pass
    over the forget set."""
    lr: float = 1e-4
    """Learning rate of the one optimiser of both loops (the code's `lr`)."""
    batch_size: int = 128
    """Forget images, and as many retain images, in each step (the code's `train_batch_size`, 128)."""
    target: WrongTarget = "random"
    """What L_f regresses to (the paper's eps_f): "random" is the model's prediction for another condition, drawn once
    a batch, "uniform_both" the code's older noise variant; "uniform" and "substitute" as in `erasediff`."""
    fixed_lambda: float | None = 0.1
    """Weight of the forget term, >= 0 (the paper's lambda; the code's `lambda_bome`); None: max(0, eta - cosine)."""
    eta: float = 0.1
    """Largest pull of the adaptive lambda (the paper's eta; the code's `eta_bome`); read where `fixed_lambda` is
    None."""
    drop: float = 0.0
    """Share in [0, 1] of forget conditions replaced by the null condition in the inner loop (the code's
    `cond_drop_prob`)."""
    ema: float | None = 0.99
    """Decay in [0, 1) of the running mean of the weights that is returned (the code's `ema_rate`); None: no mean."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """What takes the steps: "adam" as in the code, or "sgd" (ours), with which the inner loop has no effect at all."""
    part: str = "full"
    """Part of the model to train (the code's `train_method` on Stable Diffusion)."""
    drop_target: float = 0.0
    """Share in [0, 1] of the conditions c_m of L_f's targets replaced by the null condition, in both loops (0.1 in the
    code for CIFAR-10)."""
    outer_drop: float = 0.0
    """The same share for the forget conditions in the outer loop (0.1 in the code for CIFAR-10)."""
    shared_timesteps: bool = False
    """Whether forget images of the outer loop have the retain images' timesteps (as in the code for CIFAR-10)."""
    paired_timesteps: bool = False
    """Whether timesteps come in pairs t, T - 1 - t (as in the code for CIFAR-10)."""
    clip: float | None = 1.0
    """Largest norm of the outer gradients (the code's `grad_clip`, 1 on CIFAR-10); None: not clipped."""
    nested: bool = False
    """Whether an inner and an outer pass alternate K times in an epoch, each outer one from the epoch's first weights
    (the code on Stable Diffusion); `rounds` is not read then."""
    repeated: Literal["none", "forget", "both"] = "none"
    """Which sides take their first batch in every step ("both" in the code for nudity, "forget" for a class)."""
    outer_steps: int | None = None
    """Outer steps in all, after which the run ends (159 for nudity, 59 for a class: the weights that the code's scripts
    recommend); None: no such end."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Follow the loop's stream of gradients."""
        parameters = model.select(self.part)
        minimise(self.updates(model, task, parameters), parameters, self.lr, optimiser=self.optimiser)
        return model

    def updates(self, model: Diffusion, task: Task, parameters: Parameters) -> Iterator[Gradients]:
        """The gradients of inner and outer steps, as one stream so that they share Adam's moments."""
        length = -(-task.count("forget") // self.batch_size)  # batches in a pass over the forget set
        mean = model.averages(parameters) or saved(parameters)
        outer_steps = 0
        for number, theta, passes in self.rounds_of(task, parameters):
            losses: list[float] = []
            for k in range(passes):
                losses.clear()
                for forget, retain in self.one_pass(task, length, number, k):
                    value = self.forget_loss(model, task, forget, retain, self.drop)
                    losses.append(value.item())
                    yield gradients(value, parameters)
            restore(parameters, theta)
            average = sum(losses) / max(1, len(losses))
            for forget, retain in self.one_pass(task, self.outer or length, number, self.K):
                yield self.outer_gradient(model, task, (forget, retain), average, parameters)
                if self.ema is not None:
                    torch._foreach_lerp_(mean, [value.detach() for value in parameters.values()], 1 - self.ema)
                outer_steps += 1
                if outer_steps == self.outer_steps:
                    break
            if outer_steps == self.outer_steps:
                break
        if self.ema is not None:
            restore(parameters, mean)

    def rounds_of(self, task: Task, parameters: Parameters) -> Iterator[tuple[int, list[Tensor], int]]:
        """Yield each round's number, the weights that its outer loop starts from and its inner passes."""
        if not self.nested:
            for number in range(task.steps(self.epochs * self.rounds)):
                yield number, saved(parameters), self.K
            return
        for epoch in range(task.steps(self.epochs)):
            theta = saved(parameters)
            for j in range(self.K):
                yield epoch * self.K + j, theta, 1

    def forget_loss(
        self, model: Diffusion, task: Task, forget: Batch, retain: Batch, drop: float, t: Tensor | None = None
    ) -> Tensor:
        """L_f, a scalar, at timesteps t (B,) if they are given."""
        return erasediff_forget_loss(
            model, task, forget, retain, self.target, drop,
            drop_target=self.drop_target, paired=self.paired_timesteps, timesteps=t,
        )()  # fmt: skip

    def outer_gradient(
        self, model: Diffusion, task: Task, pair: tuple[Batch, Batch], average: float, parameters: Parameters
    ) -> Gradients:
        """The clipped gradient of L for a pair (forget, retain); `average` is the mean L_f of the last inner pass."""
        forget, retain = pair
        if self.shared_timesteps:
            t, noise, x_t = model.noised(retain.x0, paired=self.paired_timesteps)
            L_r = (model(x_t, t, retain.y) - model.target(retain.x0, noise, t)).square().mean()
            L_f = self.forget_loss(model, task, forget, retain, self.outer_drop, t)
        else:
            L_f = self.forget_loss(model, task, forget, retain, self.outer_drop)
            L_r = model.loss(retain, paired=self.paired_timesteps)
        q = L_f - average
        a, b = gradients(L_r, parameters), gradients(q, parameters)
        step = erasediff_gradient(L_r, q + average, a, b, self.multiplier(a, b))
        if self.clip is None:
            return step
        scale = (self.clip / (norm(step) + 1e-6)).clamp(max=1)
        return {name: value * scale for name, value in step.items()}

    def one_pass(self, task: Task, length: int, number: int, k: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of batches for pass k of a round, shuffled again for each, unless a side repeats its first batch."""
        if self.repeated == "none":
            yield from task.paired_batches(length, self.batch_size, seed_of("released", task.seed, number, k))
            return
        first = next(task.paired_batches(1, self.batch_size))
        shuffled = task.batches(length, self.batch_size, "retain", seed_of("released", task.seed, number, k))
        for retain in shuffled if self.repeated == "forget" else repeat(first[1], task.steps(length)):
            yield first[0], retain

    def multiplier(self, a: Gradients, b: Gradients) -> Tensor:
        """The fixed lambda, or max(0, eta - cosine), for a = grad L_r and b = grad L_f; zero where b is zero."""
        if self.fixed_lambda is not None:
            return torch.as_tensor(self.fixed_lambda)
        cosine = inner(a, b) / (norm(a) * norm(b) + 1e-8)
        return torch.where(norm(b) > 0, (self.eta - cosine).clamp(min=0), 0.0)
