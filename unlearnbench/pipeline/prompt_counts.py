"""Count the prompts of a plan for its record: how many there are, and how many the text encoder cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnbench.data.published_files import published_files
from unlearnbench.data.sources import is_published, known_hash
from unlearnbench.records.schema import PromptsRecord
from unlearnbench.task import Plan, Task


def count_prompts(task: Task, plan: Sequence[Plan]) -> PromptsRecord | None:
    """Count the distinct prompts of a plan, and those that the task's tokenizer cuts; None for a task without prompts.

    A task that reads prompt files also says which, by role in `prompt_files`; how many of their rows are empty, in
    `empty_rows`; and what its protocol draws for them, in `empty_prompts`.
    """
    tokenizers = getattr(task, "tokenizers", None)
    if not tokenizers:
        return None
    prompts = {item.prompt for item in plan}
    length = int(tokenizers[0].model_max_length)
    cut = sum(len(tokenizers[0](prompt, verbose=False).input_ids) > length for prompt in prompts)
    files: Mapping[str, Path] = getattr(task, "prompt_files", {})
    empty: Any = getattr(task, "empty_rows", 0)
    return PromptsRecord(
        n=len(prompts),
        cut=cut,
        length=length,
        empty=empty,
        empty_drawn_as=getattr(task.protocol, "empty_prompts", None) if empty else None,
        files={path.name: known_hash(path) for path in files.values()},
        unpublished=tuple(path.name for path in files.values() if _is_other(path)),
    )


def _is_other(path: Path) -> bool:
    """Whether a file has the name of a published one, but other content."""
    published = published_files().get(path.name)
    return published is not None and not is_published(path, published.source)
