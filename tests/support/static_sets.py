"""Files of the red-team protocol in their published shapes, made up: frozen sets of prompts, and Q16's two vectors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from tests.support import prompt_files, tiny_data

SETS = ("nudity-ring-a-bell.csv", "mma-diffusion-nsfw-adv-prompts.csv", "nudity-p4d.csv")
CATEGORIES = (*tiny_data.CATEGORIES[:2], "hate, illegal activity", tiny_data.CATEGORIES[3])
"""I2P's, in turn."""
WIDTH = 8
"""Of the tiny CLIP in `tiny_data`; the published vectors have 768 numbers."""


def q16(path: Path, vectors: np.ndarray | None = None) -> Path:
    """Write vectors as OPTML-Group/Diffusion-MU-Attack@5a3e5d3 has them, src/tasks/utils/metrics/q16/prompts.p.

    There: a pickle of protocol 3 of a NumPy array of float16, (2, 768), whose content is one BINBYTES.
    """
    if vectors is None:
        vectors = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float16)
    content = pickle.dumps(vectors, protocol=3)
    short = b"C" + bytes([vectors.nbytes % 256])
    if vectors.nbytes < 256:  # so few bytes get another code; the real file has 3,072
        content = content.replace(
            short + vectors.tobytes(), b"B" + np.uint32(vectors.nbytes).tobytes() + vectors.tobytes()
        )
    path.write_bytes(content)
    return path


def add(folder: Path) -> Path:
    """Add the files of the red-team protocol to a data folder of `tiny_data`."""
    (folder / "i2p_benchmark.csv").write_text(tiny_data.i2p().replace('"hate"', f'"{CATEGORIES[2]}"'))
    for name in SETS:
        prompt_files.write(folder / name, prompts=[prompt for prompt in prompt_files.ODD if prompt])
    q16(folder / "q16_prompts.p")
    return folder
