"""ESD: fine-tune towards the teacher's prediction guided away from the concept (Gandikota et al., ICCV 2023)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from unlearnbench import Diffusion, Sampler, Task, TextMethod, minimise
from unlearnbench.techniques.losses import esd_target, prediction_loss

PUBLISHED = {"steps": 1000, "lr": 1e-5, "batch_size": 1, "eta": 1.0, "sampler_steps": 50}
RELEASED = {**PUBLISHED, "steps": 200, "lr": 5e-5, "x_t_from": "teacher", "x_t_scale": 2}
"""The diffusers code's: its `negative_guidance` of 2 counts from eps_0(x_t, c), which is an eta of 1."""
NUDITY = {"erase": ("nudity",)}
OF_ESD_U: dict[str, dict[str, dict[str, Any]]] = {
    "published": {"sd-nudity": {**PUBLISHED, **NUDITY}, "sd-object": PUBLISHED},
    "released": {"sd-nudity": {**RELEASED, **NUDITY, "part": "layers"}},
}
"""Presets of esd_u. The paper erases nudity by this one word. The newer code names no run with its `esd-u`: "released"
has its script's defaults, with the paper's word."""


@dataclass(frozen=True)
class ESD(TextMethod):
    """L = || eps_theta(x_t, c) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 (eq. 7).

    x_t is sampled by the model being trained, with `start_guidance`, down to a random step of its sampler. Needs no
    images. In the paper's letters: eta is `eta`, theta* is the teacher eps_0. `part` is ESD-x (xattn), ESD-u (noxattn)
    or full. `retain_weight` adds the denoising loss of retain images, which the paper does not have (see esd_retain).

    The paper erases styles with ESD-x, nudity and objects with ESD-u: the presets for those are esd_u's. Its code of
    the time draws t within a step of the sampler, 39 to 58 above the level at which its x_t stops; here t is that
    level. The newer code, on diffusers, samples x_t by the original (`x_t_from`), at 1,024 pixels although SD v1.4
    draws 512 (`x_t_scale`), with the scheduler that the weights name (PNDM, here the task's) and in bfloat16. Its
    README asks for `--train_method xattn`, which its script does not know: nothing would be trained, and the optimiser
    refuses that. "released" is what `esd-x`, the script's own name, does. The paper has no classes, and SalUn released
    no code for its comparison on CIFAR-10: there is no preset for that.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {"digits-text": {"part": "xattn", "lr": 5e-4, "batch_size": 16}},
        "published": {"sd-style": {**PUBLISHED, "part": "xattn"}},
        "released": {"sd-style": {**RELEASED, "part": "xattn"}},
    }
    space = {"lr": (1e-4, 1e-3), "eta": (0.5, 3.0), "steps": (30, 120)}
    steps: int = 60
    """Updates of the weights (the code's `iterations`, 1,000)."""
    lr: float = 3e-4
    """Adam's learning rate (the code's `lr`, 1e-5)."""
    batch_size: int = 32
    """Samples x_t in a step (ours; the code takes 1)."""
    eta: float = 1.0
    """Strength of the negative guidance (the paper's eta; the code's `negative_guidance`), >= 0."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `start_guidance`, 3)."""
    sampler_steps: int = 20
    """Steps of the sampler that makes x_t (the code's `ddim_steps`, 50)."""
    retain_weight: float = 0.0
    """Weight of the denoising loss of retain images, >= 0 (ours; 0 in the paper)."""
    part: str = "full"
    """Part of the model to train (the code's `train_method`): "xattn" is ESD-x, "noxattn" ESD-u; "layers" is the newer
    code's `esd-u`, all linear layers and convolutions but those of cross-attention, without norms."""
    x_t_from: Literal["model", "teacher"] = "model"
    """Who samples x_t: the "model" being trained (the paper), or the original, "teacher" (the newer code)."""
    x_t_scale: PositiveInt = 1
    """Sides of x_t as multiples of the model's own (the newer code's `height` of 1,024 is 2 for SD v1.4)."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on the loss above."""
        part = layers(model) if self.part == "layers" else model.select(self.part)
        minimise(self.losses(model, model.frozen(self.part), task), part, self.lr)
        return model

    def losses(self, model: Diffusion, teacher: Diffusion, task: Task) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        retain = task.batches(self.steps, self.batch_size, "retain") if self.retain_weight else None
        for y in task.conditions("forget", self.steps, self.batch_size):
            x_t, t = self.partway(model if self.x_t_from == "model" else teacher, y, sampler)
            loss = self.loss(model, teacher, x_t, t, y)
            yield loss if retain is None else loss + self.retain_weight * model.loss(next(retain))

    def partway(self, source: Diffusion, y: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """x_t (B, C, H, W) that `source` samples down to a random step, and t (B,)."""
        channels, height, width = shape = source.shape
        source.shape = channels, self.x_t_scale * height, self.x_t_scale * width
        try:
            x_t, t = source.partway(y, sampler)
        finally:
            source.shape = shape
        return x_t, t

    def loss(self, model: Diffusion, teacher: Diffusion, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Eq. 7 at x_t (B, C, H, W) and t (B,), a mean over all elements."""
        return prediction_loss(model, x_t, t, y, esd_target(teacher, x_t, t, y, self.eta))


def layers(model: Diffusion) -> dict[str, nn.Parameter]:
    """Weights and biases of the denoiser's linear layers and convolutions, without those of cross-attention."""
    own = {
        id(value)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and "attn2" not in name
        for value in module.parameters(recurse=False)
    }
    return {name: value for name, value in model.select("full").items() if id(value) in own}
