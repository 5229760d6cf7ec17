"""Train the CIFAR-10 network from scratch. Every step has its own seed, so training can resume at any step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearnbench.compute.device import recipe_autocast
from unlearnbench.compute.precision import Resources, out_of_memory, too_little
from unlearnbench.data.image_sets import Images
from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import seed_of
from unlearnbench.reporting import tell, track
from unlearnbench.training import Diverged, own_batches, seeded

STEPS, BATCH, RATE, EMA, DROP, CLIP = 200_000, 512, 2e-4, 0.9999, 0.1, 1.0
"""EraseDiff's recipe; it uses as many images as the 800,000 batches of 128 of SA and SalUn."""
RECIPE = {"steps": STEPS, "batch": BATCH, "rate": RATE, "ema": EMA, "drop": DROP, "clip": CLIP}
PAYS = 5000
"""Number of steps from which compiling, which takes a minute or two, saves time."""
KEPT_EVERY = 1000
"""Steps between saved states; Ctrl-C saves at once."""


class TrainingImages(NamedTuple):
    """Some rows of a memory-mapped set of images."""

    images: Images
    rows: np.ndarray

    def batch(self, index: Tensor, generator: torch.Generator, device: str) -> Batch:
        """Images in [-1, 1], half of them mirrored, and their classes, for indices of rows."""
        rows = self.rows[index.numpy()]
        x = torch.from_numpy(self.images.x[rows]).float() / 127.5 - 1
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
        return Batch(x.to(device), torch.from_numpy(self.images.y[rows]).to(device))


Drawn = tuple[Batch, Tensor, Tensor, Tensor]
"""Batch, timesteps, noise, and which rows keep their class."""


def antithetic(n: int, T: int, generator: torch.Generator) -> Tensor:
    """Timesteps (n,): half of them random, the others T - 1 minus these, as in the papers' code."""
    half = torch.randint(T, (n // 2 + 1,), generator=generator)
    return torch.cat([half, T - 1 - half])[:n]


def draw_batch(pictures: TrainingImages, step: int, size: int, seed: int, T: int, device: str) -> Drawn:
    """Batch, timesteps, noise and which rows keep their class for one step, from the step's number alone."""
    n = len(pictures.rows)
    places = torch.arange(step * size, (step + 1) * size)
    orders = {epoch: _order(n, epoch, seed) for epoch in (places // n).unique().tolist()}
    index = torch.tensor([int(orders[place // n][place % n]) for place in places.tolist()])
    generator = torch.Generator().manual_seed(seed_of("step", seed, step) >> 1)
    batch = pictures.batch(index, generator, device)
    t, noise = antithetic(size, T, generator), torch.randn(batch.x0.shape, generator=generator)
    shown = torch.rand(size, generator=generator) >= DROP
    return batch, t.to(device), noise.to(device), shown.to(device)


def _order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of("epoch", seed, epoch) >> 1))


def train_ddpm(
    model: Diffusion, pictures: TrainingImages, steps: int, seed: int, *, size: int = BATCH, keep: Path | None = None
) -> None:
    """Train with Adam 2e-4 on the denoising loss, dropping 10 % of classes, clipping gradients at 1; ends as the moving
    average.

    Uses bf16 autocast on CUDA, and compiles if there are enough steps. With `keep`, model, optimiser, average and step
    are saved there every `KEPT_EVERY` steps and when training is interrupted, and a later call continues from them. A
    batch that does not fit into memory is processed in parts. Raises `Diverged`.
    """
    device = model.alpha_bar.device.type
    values = dict(model.named_parameters())
    mean = {name: value.detach().clone() for name, value in values.items()}
    engine = torch.optim.Adam(values.values(), lr=RATE)
    about = {"seed": seed, "size": size, "rows": len(pictures.rows)}
    done = _read(keep, model, engine, mean, about) if keep is not None else 0
    model.train()
    whole = True  # whether weights, optimiser and mean are of one step
    part = size
    pays = Resources(compile=device == "cuda" and steps - done >= PAYS)
    try:
        with pays.compiled(model, must=False), seeded(seed), own_batches():
            numbers = range(done, steps)
            stream = _ahead(
                lambda step: draw_batch(pictures, step, size, seed, len(model.alpha_bar), device), numbers, device
            )
            for step, item in zip(numbers, track(stream, len(numbers), "steps", size), strict=True):
                part = _descend(model, item, part, seed_of("dropout", seed, step) >> 1)
                norm = torch.nn.utils.clip_grad_norm_(values.values(), CLIP)
                if not norm.isfinite():
                    raise Diverged(step, "the gradient")
                whole = False
                engine.step()
                engine.zero_grad()
                decay = min(EMA, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(mean.values()), [value.detach() for value in values.values()], 1 - decay)
                done, whole = step + 1, True
                if keep is not None and done % KEPT_EVERY == 0:
                    _write(keep, values, engine, mean, {**about, "done": done})
    except BaseException:
        if keep is not None and done and whole:
            _write(keep, values, engine, mean, {**about, "done": done})
        raise
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(mean[name])
    model.eval()


def _ahead(make: Callable[[int], Drawn], numbers: range, device: str) -> Iterator[Drawn]:
    """Yield the data of each step. On CUDA the next step's data are prepared on the CPU while the device works."""
    if device != "cuda":
        yield from map(make, numbers)
        return
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, numbers[0]) if numbers else None
        for step in numbers:
            assert coming is not None
            item = coming.result()
            coming = pool.submit(make, step + 1) if step + 1 in numbers else None
            yield item


def _descend(model: Diffusion, item: Drawn, part: int, seed: int) -> int:
    """Compute gradients of the mean loss, `part` images at a time, and fewer if these do not fit into memory.

    Returns the number of images per part from now on. `seed` is for dropout.
    """
    n = len(item[1])
    while True:
        torch.manual_seed(seed)
        try:
            for start in range(0, n, part):
                _backwards(model, item, slice(start, start + part))
            return part
        except Exception as error:
            if not out_of_memory(error):
                raise
            if part == 1:
                raise too_little("training on one image", error, None) from error
            part = (part + 1) // 2
            model.zero_grad()
            tell(f"too little memory for {n} images: {part} at once, their gradients added up")


def _backwards(model: Diffusion, item: Drawn, some: slice) -> None:
    """Add the gradient of these images' share of the mean loss; after an error none of it stays in memory."""
    (batch, *others), device = item, model.alpha_bar.device.type
    t, noise, shown = (column[some] for column in others)
    with recipe_autocast(device, torch.bfloat16, enabled=device == "cuda"):
        condition = model.embed(batch.y[some]).where(shown, model.null(len(t)))
        predicted = model(model.add_noise(batch.x0[some], noise, t), t, condition)
    loss = (predicted.float() - noise).square().mean() * (len(t) / len(item[1]))
    loss.backward()


def _write(
    path: Path,
    values: Mapping[str, Tensor],
    engine: torch.optim.Optimizer,
    mean: Mapping[str, Tensor],
    about: Mapping[str, int],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".new-{os.getpid()}")  # another process may be training the same model
    torch.save(
        {
            "model": {name: value.detach() for name, value in values.items()},
            "engine": engine.state_dict(),
            "mean": dict(mean),
            **about,
        },
        new,
    )
    new.replace(path)


def _read(
    path: Path,
    model: Diffusion,
    engine: torch.optim.Optimizer,
    mean: Mapping[str, Tensor],
    about: Mapping[str, int],
) -> int:
    """Restore weights, optimiser and average, and return the steps done; 0 if nothing was saved."""
    if not path.is_file():
        return 0
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)  # Adam's step stays there
        if others := {name: kept[name] for name, value in about.items() if kept[name] != value}:
            raise UserError(f"{path} is of another training ({others}): delete it, or name another folder with --out")
        model.load_state_dict(kept["model"])
        engine.load_state_dict(kept["engine"])
        for name, value in mean.items():
            value.copy_(kept["mean"][name])
        return int(kept["done"])
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any error
        raise Damaged(f"{path} cannot be resumed: delete it to start the training again") from error
