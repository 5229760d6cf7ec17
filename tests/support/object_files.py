"""Files of papers on objects in their published shapes, with made-up words.

Read in Shilin-LU/MACE@057e7a6, prompts_csv/10_objects_paraphrase.json (an object of CIFAR-10's ten names, each with a
list of three words, some of two parts), and rohitgandikota/erasing@25613d2, data/small_imagenet_prompts.csv (columns
"", case_number, prompt, evaluation_seed, class; ten rows for each of Imagenette's classes, whose names are in lower
case there, in another order than Imagenette's).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from unlearnbench.data.published_files import published_files
from unlearnbench.tasks._sd.words import CIFAR10_OBJECTS, OBJECTS


def synonyms(folder: Path, **changes: Any) -> Path:
    """Write other words for CIFAR-10's classes; `changes` replace the lists of some."""
    words = {name: [f"red {name}s", f"{name}like", f"blue {name}let"] for name in CIFAR10_OBJECTS}
    path = folder / "10_objects_paraphrase.json"
    path.write_text(json.dumps({**words, **changes}, indent=4))
    return path


def imagenette(folder: Path, rows: int = 10, without: str = "") -> Path:
    """Write prompts of Imagenette's classes."""
    path = folder / "small_imagenet_prompts.csv"
    names = [name.lower() for name in sorted(OBJECTS, key=str.lower) if name != without]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(published_files()[path.name].columns)
        every = [name for name in names for _ in range(rows)]
        writer.writerows([i, i, f"Image of {name}", 4000 + i, name] for i, name in enumerate(every))
    return path
