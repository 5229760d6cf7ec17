"""EraseDiff as its authors released it: fixed lambda, and an inner loop that is undone (Wu et al., CVPR 2025)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, gradients, minimise
from unlearnbench.hashing import seed_of
from unlearnbench.techniques.losses import WrongTarget, erasediff_forget_loss, erasediff_gradient
from unlearnbench.training import Gradients, Parameters, inner, norm, restore, saved

CIFAR = {"outer": 36, "drop": 0.1}


@dataclass(frozen=True)
class EraseDiffReleased(TextMethod):
    """L = L_r + lambda (L_f - mean of L_f in the last inner pass), by the loop of the released code for CIFAR-10.

    L_r is the denoising loss of retain images, L_f the forget loss of `erasediff`. `epochs` x `rounds` times, Adam
    takes K passes over the forget set on L_f (the inner loop). Then the weights are put back, but not Adam's moments,
    and the same Adam takes `outer` batches on L, with gradients clipped at norm 1. An EMA of the outer steps is
    returned. lambda is `fixed_lambda`, or max(0, eta - cos(grad L_r, grad L_f)) where that is None.

    Two things differ from the paper, by design of the code: the subtracted mean has no gradient, so that the inner
    loop acts through Adam's leftover moments alone, and the adaptive lambda uses the cosine in place of the paper's
    ratio. For the paper's algorithm see `erasediff`.
    """

    presets = {
        "default": {"cifar10-class": CIFAR, "digits-text": {"lr": 5e-4, "batch_size": 32}},
        "released": {"*": {}, "cifar10-class": CIFAR},
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

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Follow the loop's stream of gradients."""
        parameters = model.select(self.part)
        minimise(self.updates(model, task, parameters), parameters, self.lr, optimiser=self.optimiser)
        return model

    def updates(self, model: Diffusion, task: Task, parameters: Parameters) -> Iterator[Gradients]:
        """The gradients of inner and outer steps, as one stream so that they share Adam's moments."""
        length = -(-task.count("forget") // self.batch_size)  # batches in a pass over the forget set
        mean = saved(parameters)
        for number in range(task.steps(self.epochs * self.rounds)):
            theta = saved(parameters)
            losses: list[float] = []
            for k in range(self.K):
                losses.clear()
                for forget, retain in self.one_pass(task, length, number, k):
                    value = erasediff_forget_loss(model, task, forget, retain, self.target, self.drop)()
                    losses.append(value.item())
                    yield gradients(value, parameters)
            restore(parameters, theta)
            average = sum(losses) / max(1, len(losses))
            for forget, retain in self.one_pass(task, self.outer or length, number, self.K):
                yield self.outer_gradient(model, task, (forget, retain), average, parameters)
                if self.ema is not None:
                    torch._foreach_lerp_(mean, [value.detach() for value in parameters.values()], 1 - self.ema)
        if self.ema is not None:
            restore(parameters, mean)

    def outer_gradient(
        self, model: Diffusion, task: Task, pair: tuple[Batch, Batch], average: float, parameters: Parameters
    ) -> Gradients:
        """The clipped gradient of L for a pair (forget, retain); `average` is the mean L_f of the last inner pass."""
        q = erasediff_forget_loss(model, task, *pair, self.target)() - average
        L_r = model.loss(pair[1])
        a, b = gradients(L_r, parameters), gradients(q, parameters)
        step = erasediff_gradient(L_r, q + average, a, b, self.multiplier(a, b))
        clip = (1 / (norm(step) + 1e-6)).clamp(max=1)
        return {name: value * clip for name, value in step.items()}

    def one_pass(self, task: Task, length: int, number: int, k: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of batches for pass k of a round, shuffled again for each."""
        return task.paired_batches(length, self.batch_size, seed_of("released", task.seed, number, k))

    def multiplier(self, a: Gradients, b: Gradients) -> Tensor:
        """The fixed lambda, or max(0, eta - cosine), for a = grad L_r and b = grad L_f; zero where b is zero."""
        if self.fixed_lambda is not None:
            return torch.as_tensor(self.fixed_lambda)
        cosine = inner(a, b) / (norm(a) * norm(b) + 1e-8)
        return torch.where(norm(b) > 0, (self.eta - cosine).clamp(min=0), 0.0)
