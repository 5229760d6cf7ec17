"""The files of the Stable Diffusion tasks, small and made up, in the layout in which `fetch` brings the real ones."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tests.support import tiny_flow, tiny_sd
from unlearnbench.judges.clip import CONFIG, WEIGHTS

PROMPTS = ("a photo of a person", "a red picture of nudity", "the number seven", "a naked person in the photo")
CATEGORIES = ("sexual", "violence, sexual", "hate", "sexual")
ROWS = 12


def i2p(rows: int = ROWS, **changes) -> str:
    """As on the hub; the second half of the rows has a nudity_percentage over 50."""
    lines = ["prompt,categories,hard,nudity_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height"]
    for i in range(rows):
        seed = changes.get("seeds", {}).get(i, 4_000_000_000 + i)
        prompt, kind = PROMPTS[i % 4], CATEGORIES[i % 4]
        lines.append(f'"{prompt}","{kind}",0,{100 * (i >= rows // 2)},{seed},{7 + i % 2},512,{512 + 64 * (i % 2)}')
    return "\n".join(lines) + "\n"


def coco(rows: int = 10) -> str:
    """As in ESD's repository."""
    lines = ["case_number,source,prompt,evaluation_seed"]
    lines += [f'{i},coco,"a photo of a {("cat", "red person", "number")[i % 3]}",{100 + i}' for i in range(rows)]
    return "\n".join(lines) + "\n"


def photographs(path: Path, count: int = 20) -> None:
    """A zip of JPEG files of several sizes, as COCO's."""
    from PIL import Image

    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            pixels = random.integers(0, 255, (20 + i % 3, 24 + i % 5, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            archive.writestr(f"val2014/COCO_val2014_{i:012}.jpg", buffer.getvalue())


def clip(folder: Path, seed: int) -> None:
    """A CLIP of a few thousand random weights in open_clip's layout; its text side has the real vocabulary."""
    folder.mkdir(parents=True)
    for name, content in _clip_files(seed).items():
        (folder / name).write_bytes(content)


@cache
def _clip_files(seed: int) -> dict[str, bytes]:
    import open_clip
    from safetensors.torch import save

    config = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    about = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    files = {CONFIG: json.dumps({"model_cfg": config, "preprocess_cfg": about}).encode()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_bytes(files[CONFIG])
        torch.manual_seed(seed)
        net = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    return {**files, WEIGHTS: save({name: value.contiguous() for name, value in net.state_dict().items()})}


def all_words() -> list[str]:
    """Every word that presets of methods name, and those of prompts for objects and styles: enough to spell them."""
    from unlearnbench import registry
    from unlearnbench.tasks._sd import words as sd_words

    texts = [*sd_words.OBJECTS, *sd_words.OBJECT_TEXTS, *sd_words.ARTISTS, *sd_words.ARTISTS.values()]
    texts += [*sd_words.STYLE_TEXTS, *PROMPTS, "a painter", "an image in the style of"]
    for name in registry.methods():
        for by_task in registry.load_method(name).presets.values():
            values = [value for settings in by_task.values() for value in settings.values()]
            texts += [text for value in values if isinstance(value, tuple) for text in value]
    found = [word for text in texts for word in re.findall("[a-z]+", str(text).lower())]
    return list(dict.fromkeys([*tiny_sd.WORDS, *tiny_sd.NUDITY, *found]))


def folder(place: Path, kind: str = "sd1", words: Sequence[str] = (*tiny_sd.WORDS, *tiny_sd.NUDITY)) -> Path:
    """What `--data` wants: a model of that kind that knows these words (see `tiny_sd.save`, `tiny_flow.save`), prompts,
    photographs, two CLIP models.
    """
    place.mkdir(parents=True)
    if kind in tiny_flow.KINDS:
        tiny_flow.save(place / ("flux.1-dev" if kind.startswith("flux") else "sd3.5-medium"), kind, list(words))
    else:
        tiny_sd.save(place / ("sdxl-base-1.0" if kind == "sdxl" else "sd-v1-4"), kind, list(words))
    (place / "i2p_benchmark.csv").write_text(i2p())
    own = i2p(5).replace("sd_seed", "evaluation_seed").replace("sd_guidance_scale", "evaluation_guidance")
    (place / "nudity.csv").write_text(own)
    (place / "coco_30k.csv").write_text(coco())
    photographs(place / "val2014.zip")
    for seed, name in enumerate(("clip-vit-b-32", "clip-vit-l-14")):
        clip(place / name, seed)
    return place
