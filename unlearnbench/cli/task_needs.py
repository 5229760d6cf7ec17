"""Show what a task's protocols take: images, network evaluations, files, cards; hours are not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.cli.console import out, print_table
from unlearnbench.cli.memory_table import byte_count

if TYPE_CHECKING:
    from unlearnbench.task import Task


def show_needs(task: type[Task]) -> None:
    """Print a line for each protocol of a task that needs files, then its files, the card and what hours depend on."""
    from unlearnbench.pipeline.planning import all_files, methods_by_card, protocol_sizes

    files = all_files(task)
    if files is None:
        return
    rows = [
        [name, *(("—", "—") if size is None else (f"{size.images:,}", _short(size.evaluations)))]
        for name, size in protocol_sizes(task).items()
    ]
    print_table(f"what a run on {task.name} draws", ["protocol", "images", "evaluations"], [("", rows)])
    if any("—" in row for row in rows):
        out.print("—: its prompts are in a file that is not there yet, see below", soft_wrap=True, highlight=False)
    more = f" and {files.small} small ones of unknown size" if files.small else ""
    for line in (
        f"files: {files.files}, {byte_count(files.size)}{more}; `unlearnbench fetch --task {task.name}` brings them, "
        f"with --list it names licences, hashes and addresses",
        f"card, for unlearning with default settings: {_cards(methods_by_card(task))}; by method: `unlearnbench list "
        f"--task {task.name}`",
        f"hours: not measured by this project; `unlearnbench run --task {task.name} --protocol NAME --method METHOD "
        "--dry-run` needs none of the files, and on a GPU times single evaluations and multiplies",
    ):
        out.print(line, soft_wrap=True, highlight=False)


def _cards(counts: dict[int | None, int]) -> str:
    """`12 GB for 14 methods, 24 GB for 9`."""
    if not counts:
        return "not counted for this model"
    from unlearnbench.pipeline.memory import CARDS

    sizes = sorted(size for size in counts if size is not None)
    said = [f"{size} GB for {counts[size]}{' methods' if size == sizes[0] else ''}" for size in sizes]
    return ", ".join([*said, *([f"more than {CARDS[-1]} GB for {counts[None]}"] if None in counts else [])])


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1e3:,.0f} k" if count < 1e6 else f"{count / 1e6:,.1f} M"
