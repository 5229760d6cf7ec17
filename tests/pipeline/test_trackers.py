"""Trackers: what arrives in each, and what is refused or told."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from unlearnbench.errors import UserError
from unlearnbench.pipeline import trackers
from unlearnbench.pipeline.trackers import Steady, Tracking, tracking


def test_tensorboard_holds_the_values_by_name_and_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = tracking(f"tensorboard:{tmp_path}").begun("task/3/esd/seed-0")
    tracker.log(1, {"loss": 0.5, "lambda": 2.0})
    tracker.log(2, {"loss": 0.25})
    tracker.close()
    found = EventAccumulator(str(tmp_path / "task/3/esd/seed-0"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["lambda", "loss"]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_trackio_gets_a_run_of_a_project(monkeypatch):
    calls: list = []
    fake = ModuleType("trackio")
    for name in ("init", "log", "finish"):
        setattr(fake, name, lambda *words, _called=name, **more: calls.append((_called, words, more)))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    tracker = Tracking("trackio", "mine").begun("run")
    tracker.log(3, {"a": 1.0})
    tracker.close()
    tracker.close()
    assert calls == [
        ("init", (), {"project": "mine", "name": "run"}),
        ("log", ({"a": 1.0},), {"step": 3}),
        ("finish", (), {}),
    ]


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module with the part of wandb's interface that is used, and the calls that it got.

    `wandb.init` returns a `Run` with `log(data, step)`, `define_metric(name, step_metric)` and `finish()`
    (docs.wandb.ai, Python library, Run).
    """
    calls: list = []

    class Run:
        def define_metric(self, name, step_metric=None):
            calls.append(("define_metric", name, step_metric))

        def log(self, data, step=None):
            calls.append(("log", dict(data), step))

        def finish(self):
            calls.append(("finish",))

    def init(project=None, name=None, dir=None, config=None):
        calls.append(("init", project, name, dir, config))
        return Run()

    fake = ModuleType("wandb")
    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return calls


def test_wandb_gets_a_run_whose_steps_may_go_back(fake_wandb, monkeypatch, tmp_path):
    """Scores come after all losses, at earlier steps, which wandb's own step does not allow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    tracker = tracking("wandb:mine").begun("digits-class/3/esd/seed-0")
    tracker.log(3, {"loss": 1.0})
    tracker.log(1, {"ua": 0.5})
    tracker.close()
    about = {"task": "digits-class", "forget": "3", "method": "esd", "seed": "seed-0"}
    assert fake_wandb == [
        ("init", "mine", "digits-class/3/esd/seed-0", "tracking", about),
        ("define_metric", "*", "unlearning step"),
        ("log", {"loss": 1.0, "unlearning step": 3}, None),
        ("log", {"ua": 0.5, "unlearning step": 1}, None),
        ("finish",),
    ]
    assert (tmp_path / "tracking").is_dir()


def test_wandb_that_cannot_begin_is_one_line_with_a_way_out(fake_wandb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def refused(**about):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    with pytest.raises(UserError, match=r"^wandb cannot begin \(.*api_key not.*WANDB_MODE=offline$"):
        Tracking("wandb", "mine").begun("run")


def test_a_place_may_be_left_out_and_have_a_colon(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    assert tracking("tensorboard") == ("tensorboard", "tracking")
    assert tracking("tensorboard:") == ("tensorboard", "tracking")
    assert tracking("tensorboard:C:/runs") == ("tensorboard", "C:/runs")
    assert tracking("trackio:mine") == ("trackio", "mine")


@pytest.mark.parametrize("text", ["tensorbord:x", "", "mlflow"])
def test_an_unknown_tracker_is_one_line(text, cli):
    with pytest.raises(UserError, match=r"^unknown tracker '.*tensorboard"):
        tracking(text)
    said = cli("run", "--method", "esd", "--tracker", text)
    assert said.code == 2 and len(said.errors) == 1


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("tensorboard", r"unlearnbench\[tracking\]"), ("trackio", "trackio"), ("wandb", r"unlearnbench\[wandb\]")],
)
def test_one_that_is_not_installed_names_what_to_install(kind, remedy, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"^--tracker {kind} is not installed: pip install '?{remedy}'?$"):
        tracking(kind)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^cannot write to .*file .*: name another folder with --tracker tensorboard:DIR$"
    ):
        tracking(f"tensorboard:{tmp_path / 'file'}").begun("run")


def test_a_tracker_that_fails_on_closing_is_told_too(monkeypatch):
    told: list = []
    monkeypatch.setattr(trackers, "tell", told.append)

    class Broken:
        def log(self, step, values):
            pass

        def close(self):
            raise OSError("disk full")

    Steady("mine", Broken()).close()
    assert told == ["mine failed (OSError: disk full): tracking stops here, the run goes on"]
