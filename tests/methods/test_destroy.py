"""New weights for all of the network."""

from tests.support.fidelity import Fidelity
from tests.support.tiny_model import Linear, TinyTask, assert_weights, weights
from unlearnbench.methods.destroy import Destroy


def test_destroy_draws_every_weight_anew_and_not_the_original_ones():
    model = Destroy().unlearn(Linear(0), TinyTask())
    again, other = Destroy().unlearn(Linear(0), TinyTask()), Destroy().unlearn(Linear(0), TinyTask(seed=4))
    assert_weights(again, weights(model), 0)
    for name, value in model.named_parameters():
        assert (value != getattr(Linear(0), name)).all()
        assert (value != getattr(other, name)).all()


FIDELITY = Fidelity(
    method="destroy",
    paper="none",
    departs="A control with random weights. No paper, hence no preset of one.",
)
