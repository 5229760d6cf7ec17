"""Corruptions that people see through, and images that show nothing: what a judge must recognise, and what refuse.

Twelve kinds in five severities, after ImageNet-C (Hendrycks and Dietterich, ICLR 2019), in sizes that suit images of 8
to 512 pixels; nine kinds of images without any concept.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

Strength = Tensor
"""How strong a corruption is, (N,), from 0 (none) to 1 (severity 5)."""
SEVERITIES: Final = (1, 2, 3, 4, 5)
LEAST_CONTRAST, DARKEST, BRIGHTEST = 0.25, 0.25, 0.6
"""At full strength: share of the contrast and of the light that is left, and how far pixels move towards white."""
BLUR, SHIFT, SMALLER, LARGER, TURN = 0.09, 0.15, 0.3, 0.3, 0.4
"""At full strength: the blur's standard deviation and the shift as shares of the width; change of scale; radians."""
NOISE, WORST_JPEG, BEST_JPEG = 0.2, 15, 95
"""At full strength: the noise's standard deviation as a share of the range; the quality of JPEG at 1 and at 0."""


def _each(strength: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return strength.view(-1, 1, 1, 1)


def _contrast(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Move all pixels towards mid-grey."""
    return 0.5 + (x - 0.5) * (1 - _each(strength) * (1 - LEAST_CONTRAST))


def _darker(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Take light away: all pixels move towards black."""
    return x * (1 - _each(strength) * (1 - DARKEST))


def _brighter(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Add light: all pixels move towards white."""
    return x + (1 - x) * _each(strength) * BRIGHTEST


def _blur(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur, each image by its own width."""
    deviation = _each(strength) * BLUR * x.shape[-1] + 1e-3
    reach = max(1, round(3 * BLUR * x.shape[-1]))
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (steps / deviation[:, 0, 0]) ** 2).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    n, channels, height, width = x.shape
    rows = F.pad(x, (reach, reach, reach, reach), mode="replicate").reshape(1, n * channels, height + 2 * reach, -1)
    weights = kernel.repeat_interleave(channels, dim=0)[:, None]
    rows = F.conv2d(rows, weights[:, :, None, :], groups=n * channels)
    return F.conv2d(rows, weights[:, :, :, None], groups=n * channels).view(n, channels, height, width)


def _moved(x: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Turn by an angle (N,), enlarge by a scale (N,) and shift by shares of the width (N, 2); the rim is repeated."""
    zero = torch.zeros_like(angle)
    turn = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], dim=1).view(-1, 2, 3)
    turn = turn / scale.view(-1, 1, 1)
    turn[:, :, 2] = -2 * shift
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _shift(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Shift in a random direction."""
    direction = 2 * torch.pi * torch.rand(len(x), generator=generator)
    towards = torch.stack([direction.cos(), direction.sin()], dim=1) * (strength * SHIFT)[:, None]
    return _moved(x, torch.zeros_like(strength), torch.ones_like(strength), towards)


def _smaller(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink about the middle."""
    return _moved(x, torch.zeros_like(strength), 1 - strength * SMALLER, torch.zeros(len(x), 2))


def _larger(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarge about the middle."""
    return _moved(x, torch.zeros_like(strength), 1 + strength * LARGER, torch.zeros(len(x), 2))


def _turned(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Turn left or right."""
    side = 2.0 * (torch.rand(len(x), generator=generator) < 0.5) - 1
    return _moved(x, side * strength * TURN, torch.ones_like(strength), torch.zeros(len(x), 2))


def _thicker(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Widen bright strokes: blend with the maximum of three by three pixels."""
    return x + (F.max_pool2d(x, 3, 1, padding=1) - x) * _each(strength) * 0.8


def _thinner(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Thin bright strokes: blend with the minimum of three by three pixels."""
    return x + (-F.max_pool2d(-x, 3, 1, padding=1) - x) * _each(strength) * 0.6


def _noisy(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise, equal in all channels of a grey image."""
    channels = 1 if bool((x == x[:, :1]).all()) else x.shape[1]
    return x + torch.randn(len(x), channels, *x.shape[2:], generator=generator) * _each(strength) * NOISE


def _jpeg(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Compress as JPEG, in colour without subsampling; an image of fewer than 16 pixels is enlarged for it."""
    from PIL import Image

    grow = -(-16 // x.shape[-1])
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8)
    done = []
    for image, amount in zip(pixels.repeat_interleave(grow, 2).repeat_interleave(grow, 3), strength, strict=True):
        file = io.BytesIO()
        quality = round(BEST_JPEG + (WORST_JPEG - BEST_JPEG) * float(amount))
        shown = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        Image.fromarray(shown).save(file, "jpeg", quality=quality, subsampling=0)
        back = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
        done.append(F.avg_pool2d(back, grow)[: x.shape[1]])
    return torch.stack(done)


CORRUPTIONS: Final[Mapping[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]]] = {
    "contrast": _contrast,
    "darker": _darker,
    "brighter": _brighter,
    "blur": _blur,
    "shift": _shift,
    "smaller": _smaller,
    "larger": _larger,
    "turned": _turned,
    "thicker": _thicker,
    "thinner": _thinner,
    "noise": _noisy,
    "jpeg": _jpeg,
}
"""Each takes images (N, C, H, W) in [0, 1], strengths (N,) in [0, 1] and a generator; it returns their like."""


def corrupted(images: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt uint8 images (N, 3, H, W) by one kind, at a severity from 1 to 5."""
    strength = torch.full((len(images),), severity / len(SEVERITIES))
    x = CORRUPTIONS[kind](images.float() / 255, strength, generator)
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def corrupt_some(x: Tensor, share: float, generator: torch.Generator, without: frozenset[str] = frozenset()) -> Tensor:
    """Corrupt a share of images (N, C, H, W) in [0, 1], each by one random kind and strength, for training a judge.

    `without` names kinds that are left out, such as the slow "jpeg".
    """
    kinds = [kind for kind in CORRUPTIONS if kind not in without]
    chosen = torch.randint(len(kinds), (len(x),), generator=generator)
    chosen[torch.rand(len(x), generator=generator) >= share] = -1
    strength = torch.rand(len(x), generator=generator)
    done = x.clone()
    for number, kind in enumerate(kinds):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            done[rows] = CORRUPTIONS[kind](x[rows], strength[rows], generator).clamp(0, 1)
    return done


# ---- images that show nothing --------------------------------------------------------------------------------------


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator)


def _gaussian(x: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + 0.25 * torch.randn(x.shape, generator=generator)


def _binary(x: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(x.shape, generator=generator) < 0.5).to(x)


def _plain(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(x), x.shape[1], 1, 1, generator=generator).expand_as(x)


def _ramp(x: Tensor, generator: torch.Generator) -> Tensor:
    """Light that falls off in a random direction."""
    n, channels, height, width = x.shape
    angle = 2 * torch.pi * torch.rand(n, 1, 1, 1, generator=generator)
    down, right = torch.linspace(-0.7, 0.7, height).view(1, 1, -1, 1), torch.linspace(-0.7, 0.7, width)
    slope = 0.5 + 0.5 * (angle.cos() * right + angle.sin() * down)
    return slope * torch.rand(n, channels, 1, 1, generator=generator).expand(-1, -1, height, width)


def _stripes(x: Tensor, generator: torch.Generator) -> Tensor:
    """Bars across the whole image, upright or level."""
    n, _, height, width = x.shape
    period = 2 + torch.randint(3, (n, 1, 1, 1), generator=generator)
    level = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    place = torch.where(level, torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1))
    scale = max(1, width // 8)
    return ((place // scale) % period < period / 2).to(x).expand_as(x)


def _blots(x: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth random light and dark."""
    coarse = torch.rand(len(x), x.shape[1], 3, 3, generator=generator)
    return F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)


def _shuffled_pixels(x: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels of a real image in random order, so that its colours are right."""
    order = torch.rand(len(x), 1, x[0, 0].numel(), generator=generator).argsort(dim=2)
    return x.flatten(2).gather(2, order.expand(-1, x.shape[1], -1)).view_as(x)


def _faint(x: Tensor, generator: torch.Generator) -> Tensor:
    """A real image that drowns in noise."""
    return 0.5 + 0.15 * (x - 0.5) + 0.35 * torch.randn(x.shape, generator=generator)


NON_IMAGES: Final[Mapping[str, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "uniform noise": _uniform,
    "Gaussian noise": _gaussian,
    "black and white noise": _binary,
    "plain": _plain,
    "ramp": _ramp,
    "stripes": _stripes,
    "blots": _blots,
    "shuffled pixels": _shuffled_pixels,
    "drowned in noise": _faint,
}
"""Each takes real images (N, C, H, W) in [0, 1] and a generator, and returns as many without a concept."""
NOISES: Final = ("uniform noise", "Gaussian noise", "black and white noise")
"""Those that a judge must refuse nearly always."""


def non_images(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Make as many images without a concept as there are uint8 images (N, 3, H, W); grey where those are grey."""
    x = images.float() / 255
    grey = bool((images == images[:, :1]).all())
    made = NON_IMAGES[kind](x[:, :1] if grey else x, generator).expand_as(x)
    return (made * 255).round().clamp(0, 255).to(torch.uint8)
