"""Lists of captions that papers keep, which are others' data: `fetch` brings them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearnbench.data.prompt_files import read_prompts
from unlearnbench.data.published_files import require_published
from unlearnbench.errors import Unsupported

COCO_OBJECTS = "coco_object_retain.csv"
"""AdvUnlearn's 243 captions of objects, most of them COCO's."""


def read_captions(name: str, task: Any) -> list[str]:
    """Read the captions of a published file in the task's data folder.

    Raises `UserError` with the command that fetches the file where it is missing, and `Unsupported` for a task without
    a data folder.
    """
    folder: Path | None = getattr(task, "folder", None)
    if folder is None:
        raise Unsupported(f"{task.name} has no data folder to read {name} from")
    (path,) = require_published(folder, name)
    return [row.prompt for row in read_prompts(path, default_seed=lambda number: number)]
