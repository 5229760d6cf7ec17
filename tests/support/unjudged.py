"""A method on a task without a whole run: unlearn, load what would be stored, draw. Whole runs judge besides.

Judging, scoring and recording are the same for every method, so that a few whole runs try them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from unlearnbench.method import Method
from unlearnbench.pipeline import cell as cell_module
from unlearnbench.pipeline import unlearning
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.sampling import _sampled
from unlearnbench.task import Task


def unlearned(method: Method, task: Task) -> dict[str, Any]:
    """The cost of unlearning; fails unless stored weights, loaded anew, draw finite images of every group planned."""
    task.protocol = replace(task.protocol, sampler=replace(task.protocol.sampler, steps=1))  # that it draws is enough
    cell = Cell(method, task)
    cell_module.require(cell)
    state, about = unlearning.unlearn(cell)
    model = unlearning.loaded(cell, state)
    items = list({item.group: item for item in task.plan()}.values())
    assert {"forget", "retain"} <= {item.group for item in items}
    with torch.inference_mode():
        drawn = _sampled(task, model, items)
    assert len(drawn) == len(items) and drawn.isfinite().all()
    return about["cost"]
