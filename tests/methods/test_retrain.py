"""Training anew without what is forgotten."""

import torch

from tests.support.fidelity import Fidelity
from unlearnbench.methods.retrain import Retrain
from unlearnbench.tasks import digits_class
from unlearnbench.verification.conformance import TinyDigits


def trained(monkeypatch, run):
    """The labels and the number of the batches that a training run takes."""
    seen = []
    plain = TinyDigits._stream
    monkeypatch.setattr(digits_class, "STEPS", 12)

    def spied(self, *arguments):
        for batch in plain(self, *arguments):
            seen.append(batch.y)
            yield batch

    monkeypatch.setattr(TinyDigits, "_stream", spied)
    model = run(TinyDigits("3", limit=None))
    return model, torch.cat(seen), len(seen)


def test_retrain_sees_retained_digits_alone_for_the_originals_number_of_steps(monkeypatch):
    with monkeypatch.context() as patch:
        _, labels, steps = trained(patch, lambda task: task.train(0))
    assert (labels == 3).any()
    assert steps == 12
    with monkeypatch.context() as patch:
        model, labels, steps = trained(patch, lambda task: Retrain().unlearn(task.pretrained(), task))
    assert not (labels == 3).any()
    assert set(labels.tolist()) == set(range(10)) - {3}
    assert steps == 12
    before = TinyDigits().pretrained().state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_retrain_depends_on_the_unlearning_seed_and_on_nothing_else():
    def run(seed, outer):
        torch.manual_seed(outer)
        task = TinyDigits(seed=seed)
        return Retrain().unlearn(task.pretrained(), task).state_dict()

    one, same, other = run(1, 0), run(1, 99), run(2, 0)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(one["unet.conv_in.weight"], other["unet.conv_in.weight"])


FIDELITY = Fidelity(
    method="retrain",
    paper="none",
    departs="The gold standard: the original's recipe, which the task defines. No paper, hence no preset of one.",
)
