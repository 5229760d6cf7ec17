"""The untouched model."""

from tests.support.fidelity import Fidelity
from tests.support.tiny_model import Linear, TinyTask, assert_weights, weights
from unlearnbench.methods.original import Original


def test_original_changes_nothing():
    model = Linear(0)
    assert Original().unlearn(model, TinyTask()) is model
    assert_weights(model, weights(Linear(0)), 0)


FIDELITY = Fidelity(
    method="original",
    paper="none",
    departs="A control that does nothing. No paper, hence no preset of one.",
)
