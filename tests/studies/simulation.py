"""How often intervals over seeds hold the truth: `python -m tests.studies.simulation > results/coverage.md`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unlearnbench.statistics import MANY, over_seeds

IMAGES = 250
PREFACE = """# Coverage of 95 % intervals over unlearning seeds

Made by `python -m tests.studies.simulation`: {times:,} simulated boards a row,
{IMAGES} shared images, a true share known
beforehand. Below {MANY} seeds the rule is Student's t on seed means and claims other seeds with *these* images;
from {MANY} on it is two crossed random factors and claims other seeds *and* other images. Either way it is at
least as wide as Wilson's interval for the hits of all runs together, and from {MANY} seeds on as three in the
number of images, so that it covers more than 95% where seeds hardly differ. Numbers in brackets are not
claimed. For comparison the percentile bootstrap that resamples both factors (a tenth of the boards).
"""


class World(NamedTuple):
    """Hits of seeds on shared images: image i has share q_i, of which seed s moves what is uncertain by a_s."""

    seeds: int
    share: float
    """Of hits on an image without effects."""
    seed_sd: float
    """Of a seed's effect on the share."""
    image_sd: float
    """Of an image's effect, in log-odds; 0: every image is as easy as another."""


CLAIMED = [
    World(seeds, share, seed_sd, image_sd)
    for seeds in (3, 5, 10)
    for share in (0.5, 0.8, 0.9)
    for seed_sd in (0.0, 0.02, 0.08)
    for image_sd in (0.0, 2.0)
]
"""Small and large variance of seeds and of images, shares not close to 0 or 1."""


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def drawn(world: World, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Hits (S, I) and the mean share over other seeds with these images."""
    base = np.log(world.share / (1 - world.share))
    image = logistic(base + world.image_sd * rng.normal(size=IMAGES))
    effect = world.seed_sd * np.clip(rng.normal(size=(world.seeds, 1)), -2.5, 2.5)
    share = np.clip(image + 4 * image * (1 - image) * effect, 0, 1)
    return (rng.random(share.shape) < share).astype(float), float(image.mean())


def population(world: World) -> float:
    """The mean share over other seeds and other images."""
    x, weight = np.polynomial.hermite_e.hermegauss(80)
    base = np.log(world.share / (1 - world.share))
    return float((logistic(base + world.image_sd * x) * weight).sum() / weight.sum())


def rule(hits: np.ndarray) -> tuple[float, float]:
    """The project's interval."""
    interval = over_seeds(hits.mean(axis=1).tolist(), hits, hits.shape[1])
    assert interval is not None
    return interval


def resampled(hits: np.ndarray, rng: np.random.Generator, times: int = 400) -> tuple[float, float]:
    """Percentiles after resampling seeds and images as crossed factors (Owen, AoAS 2007), for comparison."""
    seeds, images = hits.shape
    by_seed = rng.multinomial(seeds, [1 / seeds] * seeds, size=times) / seeds
    by_image = rng.multinomial(images, [1 / images] * images, size=times) / images
    low, high = np.quantile(((by_seed @ hits) * by_image).sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def coverage(
    world: World, times: int, seed: int = 0, interval: Callable[[np.ndarray], tuple[float, float]] = rule
) -> tuple[float, float]:
    """Shares of intervals that hold the truth for these images, and for other images."""
    rng = np.random.default_rng(seed)
    everywhere = population(world)
    here = other = 0
    for _ in range(times):
        hits, truth = drawn(world, rng)
        low, high = interval(hits)
        here += low <= truth <= high
        other += low <= everywhere <= high
    return here / times, other / times


def main(times: int = 4000) -> None:
    """Print the table as markdown."""
    print(PREFACE.format(times=times, IMAGES=IMAGES, MANY=MANY))
    heads = ("seeds", "share", "sd of seeds", "sd of images (log-odds)", "these images", "other images")
    print(f"| {' | '.join((*heads, 'bootstrap, other images'))} |\n|{' ---: |' * 7}")
    for world in [*CLAIMED, *(World(seeds, 0.98, 0.02, 2.0) for seeds in (3, 5, 10))]:
        here, other = (f"{value:.1%}" for value in coverage(world, times))
        rng = np.random.default_rng(1)
        boot = coverage(world, times // 10, 1, lambda hits, rng=rng: resampled(hits, rng))[1]
        shown = (here, f"({other})") if world.seeds < MANY else (f"({here})", other)
        print(
            f"| {world.seeds} | {world.share} | {world.seed_sd} | {world.image_sd} | {' | '.join(shown)} | {boot:.1%} |"
        )


if __name__ == "__main__":
    main()
