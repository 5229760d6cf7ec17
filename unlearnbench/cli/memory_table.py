"""Show how much memory methods take on a GPU, by precision and savings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from unlearnbench.cli.console import out, print_table

if TYPE_CHECKING:
    from unlearnbench.pipeline.memory import MemoryPlan

HEADS = ("none", "check.", "+ micro", "+ 8bit")
"""Columns for the rungs of `LADDER`."""


def show_memory(plans: Mapping[str, MemoryPlan]) -> None:
    """Print the peak memory of unlearning, a row for each method, and with what it fits a card of 24 GB."""
    from unlearnbench.pipeline.memory import COMMON, LADDER

    rows = []
    for name, plan in plans.items():
        if plan.uncounted:
            continue
        enough = plan.savings_for(COMMON)
        fits = "too big" if enough is None else HEADS[LADDER.index(enough)]
        cells = [byte_count(plan.peaks["fp32", savings]) for savings in LADDER]
        rows.append([name, *cells, byte_count(plan.peaks["bf16", LADDER[1]]), fits])
    if not rows:
        return
    heads = ["method", *HEADS, "bf16", f"{COMMON} GB with"]
    print_table("GPU memory of unlearning in fp32, by --memory: counted, not measured", heads, [("", rows)])
    out.print(
        "check.: checkpointing; + micro: microbatches too; + 8bit: adam8bit too; bf16: with checkpointing; none: no "
        "option; too big: with all options; — the batch cannot be split. Without --memory a run takes checkpointing "
        f"where a card of {COMMON} GB needs it, and micro-batches where memory ends.",
        soft_wrap=True,
        highlight=False,
    )


def byte_count(count: int | None) -> str:
    """MiB or GiB."""
    if count is None:
        return "—"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
