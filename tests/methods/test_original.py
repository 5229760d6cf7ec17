"""The control that does nothing."""

from __future__ import annotations

from tests.support.fidelity import Fidelity
from unlearnbench.hashing import state_hash
from unlearnbench.methods.original import Original
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.verification.conformance import TinyDigits

FIDELITY = Fidelity(
    "original",
    "none",
    departs="A control of this project, hence without presets: the model that the task starts from, untouched.",
)


def test_the_original_is_what_is_measured():
    task = TinyDigits("3")
    state, facts = unlearn(Cell(Original(), task))
    assert state_hash(state) == state_hash(task.pretrained().state_dict())
    assert facts["cost"]["trained_parameters"] == facts["cost"]["stored_size"] == 0
