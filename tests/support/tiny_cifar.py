"""A small image set in the layout of `uoft-cs/cifar10`: each class a colour, with noise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

CLASSES = 10


def picture(label: int, rng: np.random.RandomState) -> np.ndarray:
    """(32, 32, 3) uint8: of the class's own colour, brighter to the right, noisy."""
    colour = np.array([label & 1, label >> 1 & 1, label >> 2 & 1]) * 90 + 40 + 60 * (label > 7)
    ramp = np.linspace(0.6, 1.0, 32)[None, :, None]
    return np.clip(colour * ramp + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)


def write(folder: Path, train: int = 60, test: int = 60) -> Path:
    """One parquet file a split, classes in turn."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.RandomState(0)
    (folder / "plain_text").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        labels, pictures = [i % CLASSES for i in range(count)], []
        for label in labels:
            buffer = io.BytesIO()
            Image.fromarray(picture(label, rng)).save(buffer, "PNG")
            pictures.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"img": pictures, "label": pa.array(labels, pa.int64())})
        pq.write_table(table, folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder
