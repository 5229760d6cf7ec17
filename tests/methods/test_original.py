"""The untouched model."""

from tests.support.fidelity import Fidelity
from tests.support.tiny_model import Linear, TinyTask, assert_weights, weights
from unlearnbench.methods.original import Original
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.verification.conformance import TinyDigits

FIDELITY = Fidelity(
    method="original",
    paper="none",
    departs="A control that does nothing. No paper, hence no preset of one.",
)


def test_original_changes_nothing():
    model = Linear(0)
    assert Original().unlearn(model, TinyTask()) is model
    assert_weights(model, weights(Linear(0)), 0)


def test_a_run_of_the_original_costs_no_weights():
    task = TinyDigits("3")
    _, facts = unlearn(Cell(Original(), task), task.pretrained().eval())
    assert facts["cost"]["trained_parameters"] == facts["cost"]["stored_size"] == 0
