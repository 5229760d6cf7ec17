"""The untouched model."""

from tests.support.tiny_model import Linear, TinyTask, assert_weights, weights
from unlearnbench.methods.original import Original


def test_original_changes_nothing():
    model = Linear(0)
    assert Original().unlearn(model, TinyTask()) is model
    assert_weights(model, weights(Linear(0)), 0)
