"""Lists of captions and words that papers keep, which are others' data: `fetch` brings them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearnbench.data.prompt_files import read_prompts
from unlearnbench.data.published_files import require_published
from unlearnbench.errors import Unsupported

COCO_OBJECTS = "coco_object_retain.csv"
"""AdvUnlearn's 243 captions of objects, most of them COCO's."""
ENGLISH_WORDS = "english_3000.csv"
"""AP's and AGE's 3,000 common English words."""


def read_captions(name: str, task: Any, column: str | None = None) -> list[str]:
    """Read the captions of a published file in the task's data folder, from its column of prompts or the one given.

    Raises `UserError` with the command that fetches the file where it is missing, and `Unsupported` for a task without
    a data folder.
    """
    folder: Path | None = getattr(task, "folder", None)
    if folder is None:
        raise Unsupported(f"{task.name} has no data folder to read {name} from")
    (path,) = require_published(folder, name)
    return [row.prompt for row in read_prompts(path, column=column, default_seed=lambda number: number)]
