"""Where memory ends, training and attacks go on with fewer images at once and the same result, and say so."""

from contextlib import contextmanager

import pytest
import torch

from tests.support.short_runs import short
from unlearnbench.compute.evaluation_budget import capped
from unlearnbench.errors import OutOfMemory
from unlearnbench.metrics.unlearndiffatk import UnlearnDiffAtk
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.dry_run import probe
from unlearnbench.pipeline.fingerprint import drafted
from unlearnbench.pipeline.monitor import Watch
from unlearnbench.pipeline.runner import unlearned
from unlearnbench.reporting import told_by
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.testing import toy_models
from unlearnbench.training import splitting

pytestmark = pytest.mark.usefixtures("small")


@contextmanager
def room_for(rows, network=ClassUNet):
    """A device on which the gradient of no more than so many rows fits; yields the lines that are told."""
    real, lines = network.predict, []

    def narrow(self, x_t, t, condition):
        if len(x_t) > rows and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return real(self, x_t, t, condition)

    with pytest.MonkeyPatch.context() as patch, told_by(lines.append):
        patch.setattr(network, "predict", narrow)
        yield lines


def cell_of(name="finetune", **settings):
    return Cell(short(name, **{"batch_size": 16, **settings}), DigitsClass("3"))


def weights(cell, folder, watch=None):
    return unlearned(cell, drafted(cell, {}), Store(folder), watch=watch)


def test_unlearning_starts_again_with_half_and_ends_at_the_same_weights(tmp_path):
    whole, facts = weights(cell_of(), tmp_path / "whole")
    assert "microbatch" not in facts["environment"]
    watch = Watch("cpu")
    with room_for(5) as lines, capped(None) as count:
        parts, facts = weights(cell_of(), tmp_path / "parts", watch)
    assert facts["environment"]["microbatch"] == 4
    assert [line for line in lines if "too little memory for finetune" in line] == [
        "too little memory for finetune with 16 images at once: it starts again with 8 at a time",
        "too little memory for finetune with 8 images at once: it starts again with 4 at a time",
    ]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert watch.steps == 2, "those of the last start"
    assert count.evaluations == 2 * 16, "no more than whole batches cost"


def test_the_dry_run_says_what_fits():
    with room_for(9):
        assert probe(cell_of(), seconds=0.01).microbatch == 8
    assert probe(cell_of(), seconds=0.01).microbatch is None


def test_where_not_even_one_image_fits_it_is_one_line_and_nothing_is_kept(tmp_path):
    with room_for(0), pytest.raises(OutOfMemory, match="finetune ran out of memory") as caught:
        weights(cell_of(batch_size=2), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loss_that_cannot_be_split_says_why(tmp_path):
    with room_for(5), pytest.raises(OutOfMemory, match="smaller parts do not help, because the loss reads outputs"):
        weights(cell_of("blindspot"), tmp_path)


def test_an_attack_searches_the_same_in_smaller_parts():
    outcome = toy_models.attacked_outcome("hidden", text=True)
    attack = UnlearnDiffAtk().configured("small", outcome.task)
    whole = attack.measure(outcome)
    with room_for(2, toy_models.PictureModel) as lines, splitting() as micro:
        parts = attack.measure(outcome)
    assert micro.size == 2 and lines[-1].endswith("it starts again with 2 at a time")
    assert parts.per_image.tolist() == whole.per_image.tolist()
    assert parts.spent.tolist() == whole.spent.tolist()
