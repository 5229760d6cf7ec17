"""SAeUron: rescale the features of a sparse autoencoder that respond to the concept (Cywiński & Deja, ICML 2025)."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from unlearnbench import Diffusion, Sampler, Task, TextMethod, minimise, track
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.techniques.sparse_autoencoder import NAME, Rescaled, SparseAutoencoder, rescale
from unlearnbench.training import own_batches

RUN = {"images": 100, "retain_images": 300, "sampler_steps": 50, "steps": 1200, "batch_size": 4096}


class Activations(NamedTuple):
    """Vectors (images, steps, positions, C) of a block during sampling, in half precision on the CPU."""

    forget: Tensor
    retain: Tensor


@dataclass(frozen=True)
class SAeUron(TextMethod):
    """f_i <- multiplier mean_c(f_i) f_i, for the features i of the concept, wherever f_i > mean(f_i), at every step.

    f are the features of a sparse autoencoder x ~ sum_i f_i d_i + b of the output of one transformer block of the
    U-Net, a vector for each position, with `k` features at a time and `expansion` times as many as the vector is long.
    What the autoencoder does not explain is kept. mean_c is over positions of images of the concept, mean over all
    images, both at this step of the sampler. Features of the concept are those whose score is above the `percentile` of
    all scores: score_i = mean_c(f_i) / sum_j mean_c(f_j) - mean_o(f_i) / sum_j mean_o(f_j), with mean_o over the other
    images. The network's own weights stay as they are.

    The autoencoder is trained on activations of images that the original draws for `images` forget captions and
    `retain_images` retain captions, in `sampler_steps` steps of the task's sampler: only of the guided half, and of as
    many positions as make `vectors`. The loss is the share of variance that is not explained, with the k B largest
    features of a batch of B, plus `aux_weight` times that which dead features leave of the error. Adam, a rate that
    falls linearly, gradients of norm 1 at most.

    At timesteps between the sampler's, the nearest step's features count. The paper trains two autoencoders, on 50
    styles and 20 objects of UnlearnCanvas, which `sd-unlearncanvas` erases one by one, with an autoencoder each: there
    is no "published" nor "released". The defaults for Stable Diffusion are the code's settings
    (cywinski/SAeUron@1a4302a) with fewer vectors. Its hook adds the autoencoder's error with the wrong sign
    (utils/hooks.py:140); here the error is kept.
    """

    resumes = True
    requires = frozenset({"concept", "xattn"})
    trains = False
    presets = {
        "default": {
            "digits-text": {"batch_size": 512, "steps": 200, "k": 16, "percentile": 98.0, "multiplier": -60.0},
            "sd-style": {**RUN, "block": "last", "percentile": 99.999, "multiplier": -1.0},
            "sd*": {**RUN, "percentile": 99.99, "multiplier": -5.0},
        }
    }
    space = {"percentile": (95.0, 99.95), "multiplier": (-200.0, -1.0), "k": (4, 64), "steps": (100, 600)}
    block: str = "second"
    """The transformer block: the "second" or the "last" of the first level on the way up that has any, or its name,
    such as mid_block.attentions.0 (the code's up_blocks.1.attentions.1, the second, for objects, and .2, the last, for
    styles)."""
    percentile: Annotated[float, Field(ge=0, le=100)] = 99.8
    """Percentile of scores above which features are the concept's, in [0, 100] (the code's `percentile`, 99.999 for
    styles, 99.99 to 99.999 for objects)."""
    multiplier: float = -5.0
    """Scale of the features, in units of the concept's mean (the code's `multiplier`, -1 for styles, -1 to -30 for
    objects)."""
    expansion: PositiveInt = 16
    """Features for each dimension of the vectors (the code's `expansion_factor`, 16)."""
    k: PositiveInt = 32
    """Features that a vector has (the code's `k`, 32)."""
    images: PositiveInt = 32
    """Images of the concept whose activations are looked at (ours)."""
    retain_images: PositiveInt = 64
    """Images of what is kept whose activations are looked at (ours)."""
    sampler_steps: PositiveInt = 20
    """Steps of the sampler that draws them (the code's `num_inference_steps`, 50)."""
    vectors: PositiveInt = 1_000_000
    """Activations that are kept, at most, of all images, steps and positions together (ours; the code keeps all)."""
    steps: int = 300
    """Updates of the autoencoder (the code's 5 epochs for objects, 10 for styles)."""
    batch_size: PositiveInt = 1024
    """Vectors in a step (the code's `effective_batch_size`, 4,096)."""
    lr: PositiveFloat = 4e-4
    """Adam's learning rate at the start (the code's `lr`, 4e-4)."""
    aux_weight: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of the dead features' term, >= 0 (the code's `auxk_alpha`, 1/32)."""
    dead_after: PositiveInt = 10_000_000
    """Vectors after which a feature that none of them used is dead (the code's `dead_feature_threshold`, 10
    million)."""
    draw_batch: PositiveInt = 8
    """Images drawn at once (the code's `batch_size` of prompts, 100)."""

    def wrap(self, model: Any, task: Task) -> Diffusion:
        """Add the autoencoder to its block, with no feature chosen."""
        block = self.place(model)
        width = block.in_channels
        autoencoder = SparseAutoencoder(width, self.expansion * width, self.k)
        rescale(model, block, Rescaled(autoencoder, model.timesteps(self.sampler(model))))
        return model

    def sampler(self, model: Diffusion) -> Sampler:
        """The task's sampler with `sampler_steps`."""
        return replace(model.sampler, steps=self.sampler_steps)

    def place(self, model: Any) -> Any:
        """The transformer block; raises `Unsupported` with the blocks that the model has if there is none such."""
        model.select("xattn")
        kinds = {
            name: block for name, block in model.unet.named_modules() if type(block).__name__ == "Transformer2DModel"
        }
        rising = [name for name in kinds if name.startswith("up_blocks.")]
        level = [name for name in rising if name.split(".")[1] == rising[0].split(".")[1]]
        own = {"second": level[min(1, len(level) - 1)], "last": level[-1]}.get(self.block, self.block)
        if own not in kinds:
            raise Unsupported(f"this model has no block {own!r}: it has {', '.join(kinds)}")
        return kinds[own]

    @torch.no_grad()
    def prepare(self, model: Any, task: Task) -> Activations:
        """Activations of the block during sampling."""
        kept = self.vectors // ((self.images + self.retain_images) * self.sampler_steps)
        sides = []
        for which, count in (("forget", self.images), ("retain", self.retain_images)):
            captions = task.captions(which)  # type: ignore[arg-type]
            if not len(captions):
                raise UserError(f"{self.name} needs prompts to {which}, of which there are none: give {which}_prompts")
            y = captions[torch.randint(len(captions), (count,))].split(self.draw_batch)
            chunks = task.steps(len(y))
            parts = [self.drawn(model, y[k].to(task.device), kept) for k in track(range(chunks), chunks, "activations")]
            sides.append(torch.cat(parts))
        return Activations(*sides)

    def drawn(self, model: Any, y: Tensor, kept: int) -> Tensor:
        """Activations (B, steps, positions, C) of images for y, at up to `kept` random positions of each step."""
        found: list[Tensor] = []

        def keep(_block: nn.Module, _args: Any, output: Any) -> None:
            x = output[0][-len(y) :].flatten(2).mT  # the last rows are the prompts', behind those of the null condition
            found.append(x[:, torch.randperm(x.shape[1])[: max(1, kept)].to(x.device)].half().cpu())

        hook = self.place(model).register_forward_hook(keep)
        try:
            with own_batches():
                model.sample(y, torch.randint(2**62, (len(y),)).tolist(), sampler=self.sampler(model))
        finally:
            hook.remove()
        return torch.stack(found, dim=1)

    def unlearn(self, model: Any, task: Task, prepared: Activations) -> Diffusion:
        """Train the autoencoder and choose the features."""
        added = getattr(self.place(model), NAME)
        autoencoder = added.autoencoder
        every, steps = torch.cat([side.flatten(0, 2) for side in prepared]), task.steps(self.steps)
        turns = iter(track(range(steps), steps, "steps"))
        minimise(
            autoencoder.updates(every, turns, self.batch_size, self.aux_weight, self.dead_after),
            dict(autoencoder.named_parameters()),
            lambda step: self.lr * (1 - step / steps),
            others={"unused": autoencoder.unused},
        )
        with torch.no_grad():
            concept, others = (means(autoencoder, side) for side in prepared)
            self.choose(added, concept, others, self.share)
        return model

    @property
    def share(self) -> float:
        """The concept's share of the images."""
        return self.images / (self.images + self.retain_images)

    def choose(self, added: Rescaled, concept: Tensor, others: Tensor, share: float) -> None:
        """Set what is rescaled, from mean features (steps, features) of the concept's images and of others."""
        parts = [mean / (mean.sum(dim=1, keepdim=True) + 1e-8) for mean in (concept, others)]
        score = parts[0] - parts[1]
        ordered, place = score.sort(dim=1).values, self.percentile / 100 * (score.shape[1] - 1)
        below, beyond = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        added.chosen.copy_(score > below.lerp(beyond, place % 1)[:, None])
        added.scale.copy_(self.multiplier * concept)
        added.above.copy_(share * concept + (1 - share) * others)


def means(autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    """Mean features (steps, features) of activations x (images, steps, positions, C)."""
    like, total = autoencoder.bias, autoencoder.bias.new_zeros(x.shape[1], len(autoencoder.decoder))
    for image in x:
        total += autoencoder.features(image.to(like.device, like.dtype)).mean(dim=1)
    return total / len(x)
