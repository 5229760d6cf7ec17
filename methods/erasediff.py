"""EraseDiff: keep the retain loss low under the constraint that nothing is left to unlearn (Wu et al., CVPR 2025)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, gradients, minimise
from unlearnbench.techniques.losses import WrongTarget, erasediff_forget_loss, erasediff_gradient
from unlearnbench.training import Gradients, Parameters, inner, restore, saved

PUBLISHED = {"rule": "paper", "target": "substitute", "eta": 0.1, "optimiser": "adam"}
CIFAR = {**PUBLISHED, "steps": 288, "lr": 1e-4, "batch_size": 128, "K": 2, "ema": 0.99, "part": "full"}
TEXT = {**PUBLISHED, "lr": 1e-5, "inner_lr": 1e-5, "batch_size": 16}
NAMES, CLOTHED = ("nudity", "naked", "erotic", "sexual"), ("a photo of a person wearing clothes",)
WORDS = {
    "erase": NAMES,
    "replace_with": ("a photo of a pokemon",),
    "keep": CLOTHED,
    "forget_prompts": NAMES,
    "retain_prompts": CLOTHED,
}
NUDITY = {**TEXT, **WORDS, "steps": 160, "K": 2, "part": "noxattn"}
OBJECT = {**TEXT, "replace_with": ("pokemon",), "steps": 60, "K": 1, "part": "full"}
RELEASED = "erasediff_released"


@dataclass(frozen=True)
class EraseDiff(TextMethod):
    """min L_r(theta) subject to g(theta) = L_f(theta) - min_phi L_f(phi) <= 0 (eq. 6), by first-order steps.

    L_r is the denoising loss of retain images. L_f pulls the prediction for forget images towards a wrong `target`.
    phi_K comes from K gradient steps on L_f from phi = theta. Each step is theta <- theta - lr (grad L_r + lambda
    grad g), with a multiplier lambda that depends on `rule`:

    - "paper" (Theorem 3.1): lambda = max(0, eta - <grad g, grad L_r> / ||grad g||^2). phi_K counts as a constant, so
      grad g = grad L_f and the inner loop cannot change the update. It runs with `faithful_cost` alone.
    - "barrier" (as in Liu et al., NeurIPS 2022): lambda = max(0, (eta q - <grad g, grad L_r>) / ||grad g||^2) with
      q = L_f(theta) - L_f(phi_K). Here the inner loop matters: the pull fades as q goes to zero.

    The paper names no optimiser. The default is Adam, as in the code; "sgd" follows the formula to the letter. Preset
    "published" is the paper's rule; the numbers that the paper leaves open are the code's: its steps, rates, batches
    and, on CIFAR-10, its EMA, warmed up unless the protocol brings pretraining's. So are the words for Stable
    Diffusion, where eps_f is the prediction for "a photo of a pokemon". What the released code does differs from the
    paper: see erasediff_released.
    """

    resumes = True
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"lr": 5e-4, "batch_size": 32}},
        "published": {"cifar10-class": CIFAR, "sd-nudity": NUDITY, "sd-object": OBJECT},
    }
    space = {"eta": (0.005, 0.5), "lr": (1e-4, 3e-3), "K": (1, 5), "steps": (30, 120)}
    dropped: ClassVar[dict[str, Any]] = {
        "epochs": 4,
        "rounds": 2,
        "outer": None,
        "released_lambda": 0.1,
        "drop": 0.0,
    }
    moved: ClassVar[dict[str, str]] = dict.fromkeys(("released", *dropped), RELEASED)

    steps: int = 60
    """Updates of the weights, one for each pair of forget and retain batches (ours; the code has 288 on CIFAR-10)."""
    lr: float = 1e-3
    """Learning rate of the update (the paper's xi)."""
    batch_size: int = 64
    """Forget images, and as many retain images, in each step (the code's `train_batch_size`, 128)."""
    rule: Literal["paper", "barrier"] = "paper"
    """How lambda is computed: "paper" as in Theorem 3.1, "barrier" with the inner loop's gain q (ours)."""
    target: WrongTarget = "uniform"
    """The paper's eps_f, what L_f regresses to: "uniform" noise from U[0, 1) (EraseDiff_noise) or the model's own
    prediction for another condition, the task's "substitute" (EraseDiff_rl). "uniform_both" is the code's older noise
    variant, where the draw also corrupts x_t; "random" its later one, another condition drawn once a batch."""
    eta: float = 0.02
    """How strongly the constraint pulls (the paper's eta in a_t = eta ||grad g||^2; `eta_bome` in the code), >= 0."""
    K: int = 1
    """Gradient steps of the inner loop that approximates min_phi L_f (the paper's K)."""
    inner_lr: float = 1e-3
    """Learning rate of the inner loop's plain gradient descent (ours: the code uses one rate for both loops)."""
    faithful_cost: bool = False
    """Whether rule "paper" runs the inner loop, whose result it does not need, so that its cost is measured (ours)."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """What takes the steps: "adam" as in the code, or "sgd", the paper's plain gradient descent."""
    ema: float | None = None
    """Decay in [0, 1) of the running mean of the weights that is returned (the code's `ema_rate`); None: no mean."""
    part: str = "full"
    """Part of the model to train, e.g. "full", "xattn" or "noxattn" (the code's `train_method`)."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Follow the stream of combined gradients."""
        parameters = model.select(self.part)
        stream = self.updates(model, task, parameters)
        average = model.averages(parameters)
        minimise(stream, parameters, self.lr, optimiser=self.optimiser, ema=self.ema, average=average)
        return model

    def updates(self, model: Diffusion, task: Task, parameters: Parameters) -> Iterator[Gradients]:
        """grad L_r + lambda grad g, once for each pair of batches."""
        for forget, retain in task.paired_batches(self.steps, self.batch_size):
            yield self.update(model, task, forget, retain, parameters)

    def update(self, model: Diffusion, task: Task, forget: Batch, retain: Batch, parameters: Parameters) -> Gradients:
        """grad L_r + lambda grad g for one pair of batches."""
        L_f = erasediff_forget_loss(model, task, forget, retain, self.target)
        L_r = model.loss(retain)
        a, L_r = gradients(L_r, parameters), L_r.detach()  # nothing of its graph stays for the second loss
        value = L_f()
        b = gradients(value, parameters)
        q = None
        if self.rule == "barrier" or self.faithful_cost:
            q = value.detach() - self.lowest(L_f, parameters)
        return erasediff_gradient(L_r, value, a, b, self.multiplier(a, b, q))

    def multiplier(self, a: Gradients, b: Gradients, q: Tensor | None) -> Tensor:
        """lambda for a = grad L_r and b = grad g, a scalar >= 0; zero where grad g is zero."""
        square = inner(b, b)
        bound = self.eta * square if self.rule == "paper" or q is None else self.eta * q
        return torch.where(square == 0, 0.0, ((bound - inner(a, b)) / square).clamp(min=0))

    def lowest(self, L_f: Callable[[], Tensor], parameters: Parameters) -> Tensor:
        """L_f(phi_K), a scalar, after K gradient steps from theta on the same draw; theta is put back."""
        theta = saved(parameters)
        minimise((L_f() for _ in range(self.K)), parameters, self.inner_lr, optimiser="sgd")
        with torch.no_grad():
            value = L_f()
        restore(parameters, theta)
        return value
