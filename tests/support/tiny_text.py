"""A text-to-image task over a tiny Stable Diffusion: forget "seven", which "one" takes the place of."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from tests.support import tiny_sd
from unlearnbench import Batch, Protocol, Task
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.models.stable_diffusion import StableDiffusion

TEMPLATES = ("{}", "a photo of a {}", "a red {}")


class TinyText(Task):
    """Random latents, three captions a word; the word itself is its name."""

    name = "tiny-text"
    concepts = ("seven", "three", "cat")
    protocols: ClassVar[dict[str, Protocol]] = {"default": Protocol("default", Scheduled(steps=3), judge="none")}
    provides = frozenset({"forget images", "retain images", "concept"})
    default_forget = "seven"

    def __init__(self, folder: Path, kind: str = "sd1", names: tuple[str, ...] = ("seven",), **settings):
        super().__init__("seven", **settings)
        if not folder.exists():
            tiny_sd.save(folder, kind)
        self.original, self.words = load_stable_diffusion(folder).eval(), names
        self.original.sampler = self.protocol.sampler

    def pretrained(self) -> StableDiffusion:
        return copy.deepcopy(self.original)

    def architecture(self, seed):
        return self.pretrained()

    def prompts(self, which):
        return self.words if which == "forget" else self.concepts[1:]

    def names(self, which):
        return self.original.tokens(self.prompts(which)).cpu()

    def captions(self, which):
        return self.original.tokens([each.format(word) for word in self.prompts(which) for each in TEMPLATES]).cpu()

    def data(self, which):
        sides = ("forget", "retain") if which == "both" else (which,)
        y = torch.cat([self.captions(side) for side in sides])
        return Batch(torch.randn(len(y), 4, 8, 8, generator=torch.Generator().manual_seed(len(y))), y)

    def token(self, word):
        return int(self.original.tokens([word]).flatten()[1])

    def substitute(self, y):
        return torch.where(y == self.token("seven"), self.token("one"), y)

    def forgotten(self, y):
        return (y == self.token("seven")).flatten(1).any(dim=1)

    def train(self, seed, which="both"):
        raise NotImplementedError

    model_identity = reference = floor = judge = to_uint8 = pretrain = train


@cache
def _made(kind: str) -> TinyText:
    with tempfile.TemporaryDirectory() as folder:
        return TinyText(Path(folder) / "model", kind)


def shared_text(kind: str = "sd1", names: tuple[str, ...] = ("seven",)) -> TinyText:
    """The task over a model that is made once in a process: take `pretrained()` of it to change weights."""
    task = copy.copy(_made(kind))
    task.words = names
    return task


def shaken(task: TinyText, scale: float, part: str = "full") -> StableDiffusion:
    """The task's model with noise of that size on the weights of a part, so that it predicts otherwise."""
    model, generator = task.pretrained(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.select(part).values():
            value.add_(scale * torch.randn(value.shape, generator=generator))
    return model


def predicted(model: StableDiffusion, x_t: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> list[Any]:
    """Noise predictions for each of these conditions, as arrays of float64."""
    with torch.no_grad():
        return [model.eps(x_t, t, y).double().numpy() for y in conditions]
