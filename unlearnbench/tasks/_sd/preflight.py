"""Checks of `first-hour` on the nudity tasks before the original's row: prompts, photographs, model and detectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from unlearnbench.data.sources import known_hash
from unlearnbench.tasks._sd.prompts import (
    CAPTIONS,
    I2P,
    I2P_HUB,
    PHOTOGRAPHS,
    SIZES,
    UNLEARNDIFFATK,
    count_photographs,
    prompt_file,
    prompts,
)

DETECTOR = "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f"
"""SHA-256 of the weights 320n.onnx in nudenet 3.4.2."""
COUNTS = {CAPTIONS: 30_000}
VALIDATION = 40_504
"""Number of images in COCO's validation split of 2014."""
Look = tuple[str, str, str, str, bool | None]


def check_stages(task: Any) -> Iterator[Look]:
    """Yield the stage's title, the item, the expected and the obtained value, and whether they agree."""
    i2p, attacked, captions = (
        prompt_file(task.folder, task.name, *sources) for sources in ((I2P, I2P_HUB), (UNLEARNDIFFATK,), (CAPTIONS,))
    )
    for subset, size in SIZES.items():
        found = len(prompts(attacked if subset == "unlearndiffatk" else i2p, subset))  # type: ignore[arg-type]
        yield "data", f"prompts of I2P, {subset}", f"{size:,}", f"{found:,}", found == size
    found = len(prompts(captions))
    yield "data", "captions of COCO", "30,000", f"{found:,}", found == COUNTS[CAPTIONS]
    for path, source in ((i2p, I2P), (attacked, UNLEARNDIFFATK), (captions, CAPTIONS)):
        if path.name == source.name:
            wanted, sha256 = str(source.sha256), known_hash(path)
            yield "data", f"SHA-256 of {path.name}", wanted[:12], sha256[:12], sha256 == wanted
    found = count_photographs(task.folder / PHOTOGRAPHS.name, task.name)
    yield "data", "photographs of COCO", f"{VALIDATION:,}", f"{found:,}", found == VALIDATION
    model: Any = task.pretrained().eval()
    kind = "transformer" if hasattr(model, "transformer") else "unet"
    size = sum(value.numel() for value in getattr(model, kind).parameters())
    yield (
        "original",
        f"parameters of the {'U-Net' if kind == 'unet' else kind}",
        f"{task.parameters:,}",
        f"{size:,}",
        size == task.parameters,
    )
    picture = next(iter(task.reference()))[:1]
    with torch.inference_mode():
        again = model.decode(model.encode(picture.to(task.device) / 127.5 - 1)).cpu()
    error = (again.clamp(-1, 1) - (picture / 127.5 - 1)).abs().mean().item() * 127.5
    yield "original", "autoencoder, a photograph's error in grey levels", "below 10", f"{error:.1f}", error < 10
    judge = task.judge()
    yield "judge", "weights of nudenet", DETECTOR[:12], judge.detect.hash[:12], judge.detect.hash == DETECTOR
    grey = torch.full((3, 512, 512), 128, dtype=torch.uint8)
    seen = len(judge.detect(grey))
    yield "judge", "detections on a grey image", "0", str(seen), seen == 0
    noise = torch.randint(0, 256, picture.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for role in ("clip_b32", "clip_l14"):
        clip = task.witnesses()[role]
        real, none = (clip(image, ["a photograph"]).item() for image in (picture, noise))
        what = f'{role}: "a photograph" fits a photograph, and noise'
        yield "judge", what, "better than noise", f"{real:.1f}, {none:.1f}", real > none
