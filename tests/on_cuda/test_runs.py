"""Whole runs with `--device cuda`: records, trajectories, attacks, and an unlearning that goes on where it stopped."""

import pytest
import torch

from tests.support import tiny_data
from tests.support.light_judges import light_detectors
from tests.support.pretended_cuda import NAME, PretendedCuda
from tests.support.small_world import read_only
from unlearnbench import registry
from unlearnbench.errors import Failed
from unlearnbench.pipeline import trajectory
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.checkpoints import RunCheckpoints
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.tasks.digits_class import DigitsClass

TRAINED = ("--set", "steps=2", "--set", "batch_size=4")


@pytest.fixture
def card():
    with PretendedCuda() as device:
        yield device


@pytest.mark.usefixtures("small", "fresh_store")
def test_a_run_with_a_trajectory_and_attacks(card, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(trajectory, "FORGET_IMAGES", 4)
    monkeypatch.setattr(trajectory, "RETAIN_IMAGES", 1)
    words = ("--method", "erasediff", *TRAINED, "--device", "cuda", "--results", "out")
    said = cli("run", *words, "--eval-every", "2", "--attacks", "relearn@1")
    assert said.code == 0, said.err
    record = read_only(tmp_path / "out")
    assert record.status == "ok", record.reason
    assert (record.environment["device"], record.environment["device_type"]) == (NAME, "cuda")
    assert record.scores["peak_memory"].value > 0 and not record.judge_error
    assert record.attacks["relearn@1"].status == "ok"
    assert [point.step for point in record.trajectory.points] == [0, 2]
    before = card.counted()
    assert cli("run", *words).code == 0
    assert card.counted() - before < 50, "the second time everything is there"


@pytest.mark.usefixtures("fresh_store")
def test_a_run_of_a_stable_diffusion_with_its_witnesses(card, cli, tmp_path):
    data = tiny_data.folder(tmp_path / "data")
    with light_detectors():
        said = cli(
            *("run", "--task", "sd-nudity", "--protocol", "smoke", "--data", data, "--method", "esd", *TRAINED),
            *("--set", "sampler_steps=3", "--device", "cuda", "--precision", "bf16", "--results", "out"),
        )
    assert said.code == 0, said.err
    record = read_only(tmp_path / "out")
    assert record.status in ("ok", "unreliable") and not record.witness_error, record.reason
    assert record.environment["device_type"] == "cuda" and record.scores["clip_score"].value is not None


def test_an_unlearning_that_was_stopped_goes_on_with_the_cards_random_numbers(card, tmp_path):
    cell = Cell(registry.load_method("erasediff")(steps=4, batch_size=3), DigitsClass("3", device="cuda"))

    def weights(folder=None, stop=None):
        kept = RunCheckpoints(folder, cell.method, cell.task, every=0.0)
        real = kept.reached

        def reached(state, step):
            real(state, step)
            if step == stop:
                raise InterruptedError

        kept.reached = reached
        return unlearn(cell, checkpoints=kept)[0]

    whole = weights()
    with pytest.raises(Failed, match="InterruptedError"):
        weights(tmp_path / "kept", stop=2)
    torch.cuda.manual_seed(5)
    found = weights(tmp_path / "kept")
    assert [name for name, value in whole.items() if not torch.equal(value, found[name])] == []
