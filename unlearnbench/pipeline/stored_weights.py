"""Unlearned weights in the store: only the tensors that differ from those that unlearning started from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import state_hash
from unlearnbench.pipeline.cell import Cell
from unlearnbench.storage.store import Made, Store
from unlearnbench.task import Task, on_cpu
from unlearnbench.training import seeded

START = "start"
"""Key of an entry's facts that names the weights which its tensors replace. Entries of earlier versions, which hold
whole states, have no such key."""
UNCHANGED = "unchanged"
"""Key of the facts of an unlearning with the names of the tensors that it left as they were."""


def original_state(task: Task) -> dict[str, Tensor]:
    """The original's weights, loaded on the CPU."""
    with seeded(0):
        return on_cpu(task).pretrained().state_dict()


def starting_state(cell: Cell) -> dict[str, Tensor]:
    """The weights that unlearning starts from, loaded on the CPU: the original's unless the protocol says otherwise."""
    with seeded(0):
        task = on_cpu(cell.worded)
        return (task.starting() if cell.method.trains else task.pretrained()).state_dict()


def stored_weights(
    cell: Cell, store: Store, parts: dict[str, Any], make: Callable[[], Made], force: bool = False
) -> Made:
    """The whole state and the facts of an entry, read from the store if it exists, else made and stored.

    `make` gives the whole state, and facts with `UNCHANGED`. What is read is that state bit for bit. Raises `UserError`
    where the entry was made from another original, and `Damaged` where what comes together is not what was stored.
    """
    made: dict[str, dict[str, Tensor]] = {}

    def make_changes() -> Made:
        state, facts = make()
        facts = dict(facts)
        stored, facts = changes(state, facts, facts.pop(UNCHANGED), parts.get("original"))
        made[facts[START]["whole"]] = state
        return stored, facts

    stored, facts = store.stage("weights", parts, make_changes, force)
    about = facts.get(START)
    if about is None:
        return stored, facts
    state = made.get(about["whole"])  # missing too where another process stored its own meanwhile
    if state is None:
        state = whole_state(stored, about, starting_state(cell), parts.get("original"))
    return state, {name: value for name, value in facts.items() if name != START}


def changes(
    state: Mapping[str, Tensor], facts: dict[str, Any], unchanged: Collection[str], original: str | None
) -> Made:
    """The entry of a state: its tensors but for those named, which are the starting ones bit for bit, and facts that
    name them."""
    kept = {name: value for name, value in state.items() if name not in unchanged}
    about = {"original": original, "unchanged": sorted(unchanged), "whole": state_hash(state)}
    return kept, {**facts, START: about}


def whole_state(
    stored: Mapping[str, Tensor], about: Mapping[str, Any], start: Mapping[str, Tensor], original: str | None
) -> dict[str, Tensor]:
    """The state that `changes` was given. Raises `UserError` if `original`, or its weights, are not those of then."""
    if about["original"] != original:
        raise UserError(
            f"the stored weights replace some of the original {str(about['original'])[:12]}, and the original here is "
            f"{str(original)[:12]}: give the original that they were made from"
        )
    lacking = [name for name in about["unchanged"] if name not in start]
    state = {**{name: start[name] for name in about["unchanged"] if name in start}, **stored}
    if lacking or state_hash(state) != about["whole"]:
        raise Damaged(
            "the stored weights and the original's together are not the weights that were stored: the original's files "
            "have changed since, so bring them back, or make the weights anew with --force"
        )
    return state


def unchanged_names(state: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that are the starting ones bit for bit."""
    return {name for name, value in state.items() if name in start and _equal_bits(value, start[name])}


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same numbers, zeros with their signs."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (value.detach().cpu().contiguous().flatten().view(torch.uint8) for value in (a, b))
    return torch.equal(one, other)
