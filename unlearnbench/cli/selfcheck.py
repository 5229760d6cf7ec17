"""`selfcheck`: check metrics, tasks, attacks and controls against known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.reporting import bars

selfchecking = typer.Typer()


@selfchecking.command()
def selfcheck(
    task: Annotated[str, typer.Option(help="Task; see `unlearnbench list tasks`.")] = "digits-class",
    forget: Annotated[str | None, typer.Option(help="Concept to forget.")] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Also attack the controls with the standard attacks.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also show what passed.")] = False,
) -> None:
    """Test metrics, attacks, judge and controls on known answers.

    Also tests sampling and judging. Exits with 1 if one test fails."""
    task_class = registry.load_task(task)
    concept = task_class.resolve_concept(forget or task_class.default_forget)

    from itertools import chain
    from tempfile import TemporaryDirectory

    from unlearnbench.compute.device import pick_device
    from unlearnbench.storage.store import Store
    from unlearnbench.verification import selfcheck_attacks
    from unlearnbench.verification.selfcheck import STAGES, selfcheck_findings

    counts: dict[str, list[bool]] = {}
    made = task_class(concept, device=pick_device(device.value))
    stages = STAGES + 1 + len(selfcheck_attacks.CONTROLS) * attacks
    with TemporaryDirectory() as folder, bars(err, stages) as begin:
        about = made, Store(), Path(folder), begin
        for found in chain(selfcheck_findings(*about), selfcheck_attacks.attack_findings(*about, on_controls=attacks)):
            counts.setdefault(found.subject, []).append(found.passed)
            line = f"{found.subject}: {found.case}: {found.found}, expected {found.expected}"
            if not found.passed:
                err.print(f"✗ {line}", markup=False, highlight=False, soft_wrap=True)
            elif verbose:
                out.print(f"✓ {line}", markup=False, highlight=False, soft_wrap=True)
    rows = [[name, f"{sum(passed)} of {len(passed)}", "✓" if all(passed) else "✗"] for name, passed in counts.items()]
    print_table(f"{task}, forget {concept}", ["what", "as known", ""], [("", rows)], prose=[""])
    wrong = sum(not passed for found in counts.values() for passed in found)
    total = sum(map(len, counts.values()))
    out.print(f"{total - wrong} of {total} as known", highlight=False)
    raise typer.Exit(1 if wrong else 0)
