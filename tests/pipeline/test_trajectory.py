"""Trajectories beside records: what they hold, that nothing else changes by them, and when they are made anew."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from tests.support.small_world import (
    FORGET_IMAGES,
    RETAIN_IMAGES,
    ROOT,
    comparable,
    made_record,
    small_protocol,
    write_method,
    write_nudge,
)
from unlearnbench import registry
from unlearnbench.compare.record_diff import record_differences
from unlearnbench.errors import UserError
from unlearnbench.methods.original import Original
from unlearnbench.pipeline import measuring, runner, trajectory
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.pipeline.trackers import Steady
from unlearnbench.pipeline.trajectory import followed, held_out
from unlearnbench.plots.files import svg
from unlearnbench.plots.trajectory import trajectory_figure
from unlearnbench.records.provenance import details, repeat_command
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.records.trajectory import HeldOut, PointRecord, SeriesRecord, TrajectoryRecord
from unlearnbench.report.page import build_page
from unlearnbench.reporting import told_by
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.training import Diverged
from unlearnbench.verification.validate import find_problems

SCORES = ["ua", "ra", "ua_closed", "coherence"]
WEIGHT = 'weight = next(iter(model.select("full").values()))\n'
SCRIPT = "<script>alert(1)</script>"


def ascent(steps=4):
    cls = registry.load_method("gradient_ascent")
    own = {"steps": steps, "batch_size": 8}
    method = cls.configured({**cls.preset("default", DigitsClass.name), **own})
    return Cell(method, DigitsClass("3"), overrides=own)


def shown(record):
    return svg(trajectory_figure("t", {"a": [record]}), "t")


def made(body, tmp_path, **about):
    path = write_method(tmp_path, body, head="from unlearnbench import note", **about)
    return Cell(registry.load_method(str(path))(), DigitsClass("3"))


class Tracked(list):
    """A tracker, and the kind of it, that remembers."""

    def begun(self, name):
        self.name, self.closed = name, False
        return self

    def log(self, step, values):
        self += [(step, name, value) for name, value in values.items()]

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def drawn_before(tmp_path_factory):
    """A store in which the original was drawn, as no test here is about that."""
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        runner.run_cell(Cell(Original(), DigitsClass("3")), Store(folder / "store"), folder / "results")
    return folder / "store"


@pytest.fixture(scope="module")
def run_before(drawn_before, tmp_path_factory):
    """A store and results in which `ascent()` was run besides: without a trajectory, and followed at every 2 steps."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        few_points(patch)
        for every in (None, 2):
            made[every] = tmp_path_factory.mktemp("run")
            shutil.copytree(made[None] if every else drawn_before.parent, made[every], dirs_exist_ok=True)
            store, results = Store(made[every] / "store"), made[every] / "results"
            followed(ascent(), every, store, results) if every else runner.run_cell(ascent(), store, results)
    return made


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "before")
    return Store(tmp_path / "before/store"), tmp_path / "before/results"


@pytest.fixture
def places(drawn_before, tmp_path):
    return Store(shutil.copytree(drawn_before, tmp_path / "store")), tmp_path / "results"


@pytest.fixture
def finished(run_before, tmp_path):
    """The record of a run that nobody followed, and a copy of where it lies."""
    store, results = copied(run_before[None], tmp_path)
    return runner.run_cell(ascent(), store, results), store, results


@pytest.fixture
def followed_before(run_before, tmp_path):
    """The record of a run that was followed, and a copy of where it lies."""
    store, results = copied(run_before[2], tmp_path)
    return followed(ascent(), 2, store, results), store, results


@pytest.fixture
def unlearned(monkeypatch):
    """Names of the methods that unlearned."""
    calls: list[str] = []
    for module in (runner, trajectory):
        before = module.unlearn

        def unlearn(cell, *words, before=before):
            calls.append(cell.method.name)
            return before(cell, *words)

        monkeypatch.setattr(module, "unlearn", unlearn)
    return calls


def few_points(patch):
    patch.setattr(trajectory, "FORGET_IMAGES", 4)
    patch.setattr(trajectory, "RETAIN_IMAGES", 1)


@pytest.fixture
def small_points(monkeypatch):
    few_points(monkeypatch)


pytestmark = pytest.mark.usefixtures("small", "small_points")


def test_a_run_is_followed_step_by_step_and_its_result_is_as_without(places, finished):
    store, results = places
    record = followed(ascent(), 2, store, results)
    kept = record.trajectory
    assert [point.step for point in kept.points] == [0, 2, 4] and kept.steps == 4 and kept.every == 2
    assert kept.rule == "last step"
    assert all(list(point.scores) == SCORES and point.missing == 0 for point in kept.points)
    assert kept.points[0].scores["ua"] < 0.5 < kept.points[0].scores["ra"], "the start is the original"
    assert kept.n == {"ua": 4, "ra": 9, "ua_closed": 4, "coherence": 4}
    assert kept.points[-1].seconds == pytest.approx(record.scores["unlearn_time"].value, abs=1e-5)
    assert list(kept.watched) == ["gradient norm"] and kept.watched["gradient norm"].steps == (1, 2, 3, 4)
    assert list((store.root / "watched").iterdir()) == [], "weights on the way are deleted"
    assert read_record(record.path(results)) == record

    plain = finished[0]
    assert plain.trajectory is None and plain.weights == record.weights and plain.key == record.key
    assert plain.result() == record.result()
    without = record.model_copy(update={"trajectory": None})
    assert comparable(without) == comparable(plain)
    assert record_differences(without, record) == []


def test_a_trajectory_that_is_there_answers_at_once_and_needs_no_store_to_write_to(
    followed_before, unlearned, monkeypatch
):
    first, store, results = followed_before
    monkeypatch.setattr(runner, "require_writable", lambda *words: pytest.fail("it looked"))
    assert followed(ascent(), 2, store, results) == first
    assert runner.run_cell(ascent(), store, results) == first, "without --eval-every it stays"
    assert unlearned == []


def test_a_finished_run_is_unlearned_anew_for_another_trajectory_alone(finished, unlearned):
    plain, store, results = finished
    images = plain.path(results).with_suffix(".parquet").stat().st_mtime_ns
    first = followed(ascent(), 2, store, results)
    other = followed(ascent(), 3, store, results)
    assert unlearned == ["gradient_ascent"] * 2
    assert [point.step for point in other.trajectory.points] == [0, 3, 4]
    assert plain.path(results).with_suffix(".parquet").stat().st_mtime_ns == images
    for record in (first, other):
        assert record.model_copy(update={"trajectory": None, "revision": 1, "content_hash": ""}) == plain.model_copy(
            update={"content_hash": ""}
        )
    ends = {json.dumps(record.trajectory.points[-1].scores) for record in (first, other)}
    assert len(ends) == 1, "the same weights on the same noise"


def test_a_change_of_the_held_out_images_makes_points_anew(followed_before, unlearned, monkeypatch):
    _, store, results = followed_before
    monkeypatch.setattr(trajectory, "FORGET_IMAGES", 5)
    assert followed(ascent(), 2, store, results).trajectory.n["ua"] == 5
    assert len(unlearned) == 1


def test_weights_that_come_out_otherwise_cost_nothing_that_was_finished(finished):
    record, store, results = finished
    weights, said = {**record.weights, "unlearned": "0" * 64}, []
    before = write_record(record.model_copy(update={"weights": weights}), record.path(results))
    with told_by(said.append):
        found = followed(ascent(), 2, store, results)
    assert "unlearned anew" in said[0] and "other weights" in said[1], "it says so before the time is spent, and after"
    assert found.result() == before.result() and found.weights == weights
    kept = read_record(found.path(results)).trajectory
    assert [point.step for point in kept.points] == [0, 2, 4] and kept.other_weights == record.weights["unlearned"]
    assert "second unlearning" in dict(details(found))["trajectory"]
    assert "second unlearning" in shown(found)
    assert followed(ascent(), 2, store, results) == found, "it is not made again"

    write_record(record, record.path(results))
    same = followed(ascent(), 2, store, results)
    assert same.trajectory.other_weights is None and "second unlearning" not in shown(same)


def test_an_unlearning_anew_that_diverges_costs_nothing_either(finished, monkeypatch):
    (record, store, results), said = finished, []

    def diverges(cell, watch):
        raise Diverged(1, "the loss")

    monkeypatch.setattr(trajectory, "unlearn", diverges)
    with told_by(said.append):
        found = followed(ascent(), 2, store, results)
    assert found.status == "ok" and found.result() == record.result() and found.weights == record.weights
    assert "the loss is not finite at step 1" in said[-1] and "diverged" in found.trajectory.other_weights


def test_a_forced_run_is_followed_anew_and_one_that_nobody_follows_keeps_the_trajectory(finished, unlearned):
    _, store, results = finished
    kept = followed(ascent(), 2, store, results, force=True).trajectory
    assert kept.every == 2 and len(unlearned) == 1
    assert runner.run_cell(ascent(), store, results, force=True).trajectory == kept


def test_a_method_without_steps_has_its_end_alone(places, tmp_path):
    cell = Cell(registry.load_method(str(write_nudge(tmp_path)))(), DigitsClass("3"))
    kept = followed(cell, 1, *places).trajectory
    assert [point.step for point in kept.points] == [0] and kept.steps == 0 and kept.watched == {}
    assert kept.points[0].seconds > 0


def test_a_run_that_diverges_is_followed_as_far_as_it_came(places, tmp_path):
    body = f"""{WEIGHT}
losses = (weight.sum() * (1 if k < 2 else float("nan")) for k in range(3))
minimise(losses, {{"w": weight}}, 1e-6)
return model"""
    record = followed(made(body, tmp_path), 1, *places)
    assert record.status == "diverged" and record.step == 2
    assert [point.step for point in record.trajectory.points] == [0, 1, 2]
    assert len(record.trajectory.watched["gradient norm"].values) == 2


def test_points_whose_samples_are_no_images_have_no_scores(places, monkeypatch):
    def fails(*words, **more):
        raise Diverged(0, "a sample")

    real = measuring.observed
    monkeypatch.setattr(measuring, "observed", lambda cell, judge, model, about, *rest: (
        fails() if about.get("step") == 2 else real(cell, judge, model, about, *rest)))  # fmt: skip
    points = followed(ascent(), 2, *places).trajectory.points
    assert points[1].scores == dict.fromkeys(SCORES) and points[1].missing == 9
    assert points[0].missing == points[2].missing == 0


def test_what_is_skipped_has_no_trajectory(places, tmp_path):
    body = "return model"
    cell = made(body, tmp_path, fields='requires = frozenset({"text_encoder"})')
    record = followed(cell, 1, *places)
    assert record.status == "skipped" and record.trajectory is None


def test_points_are_drawn_from_other_noise_than_what_is_reported():
    cell = ascent()
    held, plan, protocol = held_out(cell)
    reported = {item.seed for item in cell.task.plan()}
    for name in DigitsClass.protocols:
        reported |= {item.seed for item in DigitsClass("3", protocol=name).plan()}
    assert len({item.seed for item in plan}) == len(plan) == 4 + 9 and not {i.seed for i in plan} & reported
    assert cell.task.protocol.forget_images == FORGET_IMAGES and cell.task.protocol.retain_images == RETAIN_IMAGES
    assert held.task.protocol.sampler == cell.task.protocol.sampler and held.task is not cell.task
    assert protocol.differs["chunk"] == held.task.protocol.chunk == 4
    assert protocol.hash not in (cell.task.protocol.hash, held_out(Cell(cell.method, DigitsClass("8")))[1])


@pytest.mark.parametrize("method", ["gradient_ascent", "scissorhands"])
def test_a_committed_record_is_found_with_a_trajectory_and_without(method):
    known = read_record(ROOT / f"results/digits-class/default/3/{method}/seed-0.json")
    assert (known.trajectory is not None) == (method == "gradient_ascent")
    task = DigitsClass("3")
    protocol = dict(known.protocol.settings)
    sampler = type(task.protocol.sampler)(**protocol.pop("sampler"))
    task.protocol = type(task.protocol)(sampler=sampler, **protocol)
    cls = registry.load_method(method)
    built_in = cls.configured(cls.preset("default", task.name))
    assert CellState.of(Cell(built_in, task), ROOT / "results").found == known


@pytest.mark.parametrize("every", [0, -3])
def test_no_distance_between_evaluations_is_refused(every, cli):
    with pytest.raises(UserError, match=f"^--eval-every {every} is below 1: give the steps"):
        RunRequest.of(method="esd", eval_every=every)
    said = cli("run", "--method", "esd", "--eval-every", every)
    assert said.code == 2 and said.errors == [
        f"unlearnbench: --eval-every {every} is below 1: give the steps from one evaluation to the next, such as 10"
    ]


def test_values_and_scores_are_tracked_as_they_come_and_again_from_the_record(places, tmp_path):
    body = f"""{WEIGHT}
def losses():
    for k in range(2):
        note(loss=k)
        yield weight.sum()
minimise(losses(), {{"w": weight}}, 1e-6)
return model"""
    cell, live, later = made(body, tmp_path), Tracked(), Tracked()
    record = followed(cell, 1, *places, tracking=live)
    assert live.name == "digits-class/3/mine/seed-0" and live.closed
    assert [entry[:2] for entry in live[:4]] == [(1, "loss"), (1, "gradient norm"), (2, "loss"), (2, "gradient norm")]
    assert [entry[:2] for entry in live[4:]] == [(step, name) for step in (0, 1, 2) for name in SCORES]
    assert followed(cell, 1, *places, tracking=later) == record
    assert {entry[:2] for entry in later} == {entry[:2] for entry in live} and later.closed
    assert sorted(later)[0][2] == pytest.approx(sorted(live)[0][2], rel=1e-5)


def test_a_tracker_alone_keeps_what_was_watched_and_evaluates_nothing(places):
    heard = Tracked()
    kept = followed(ascent(), None, *places, tracking=heard).trajectory
    assert (kept.every, kept.points, kept.steps) == (None, (), 4) and len(heard) == 4
    assert not (places[0].root / "watched").exists()


def test_a_tracker_that_fails_loses_nothing(places, monkeypatch):
    told = []
    monkeypatch.setattr("unlearnbench.pipeline.trackers.tell", told.append)

    class Broken(Tracked):
        def begun(self, name):
            return Steady("broken", self)

        def log(self, step, values):
            if step == 2:
                raise ConnectionError("gone")
            super().log(step, values)

    broken = Broken()
    record = followed(ascent(), 2, *places, tracking=broken)
    assert record.status in ("ok", "unreliable") and len(record.trajectory.points) == 3
    assert [step for step, *_ in broken] == [1]
    assert told == ["broken failed (ConnectionError: gone): tracking stops here, the run goes on"]


# ---- the record, and what is made of it ------------------------------------------------------------------------------


def trajectory_of(steps=(0, 5, 10), watched=None, **about):
    points = [PointRecord(step=k, seconds=k / 2, scores={"ua": k / 10, "ra": 1 - k / 20}) for k in steps]
    series = {
        name: SeriesRecord(steps=(1, 2), values=values) for name, values in (watched or {"loss": (1.0, 2.0)}).items()
    }
    given = {
        "every": 5,
        "steps": 10,
        "protocol": HeldOut(hash="h" * 64, differs={"noise": "held out"}),
        "n": {"ua": 10, "ra": 10},
    }
    return TrajectoryRecord(**{**given, "points": tuple(points), "watched": series, **about})


def followed_record(name="esd", scores=None, **about):
    return made_record(name, 0, scores or {"ua": 0.9, "ra": 0.8}, trajectory=trajectory_of(**about))


def test_points_in_disorder_and_uneven_series_are_refused():
    with pytest.raises(ValueError, match="must rise"):
        trajectory_of(steps=(0, 5, 5))
    with pytest.raises(ValueError, match="equally many"):
        SeriesRecord(steps=(1, 2), values=(1.0,))
    with pytest.raises(ValueError, match="200 at most"):
        SeriesRecord(steps=tuple(range(201)), values=(0.0,) * 201)
    with pytest.raises(ValueError, match="finite"):
        SeriesRecord(steps=(1,), values=(math.nan,))


def test_a_record_says_in_words_how_it_was_followed(tmp_path):
    record = followed_record()
    assert "--eval-every 5" in repeat_command(record)
    told = dict(details(record))["trajectory"]
    assert told == "10 steps, 3 points, noise held out, hash hhhhhhhhhhhh; reported is the last step"
    assert "trajectory" not in dict(details(made_record()))
    written = write_record(record, record.path(tmp_path))
    assert read_record(record.path(tmp_path)) == written and written.trajectory == record.trajectory


def test_validate_finds_nothing_wrong_with_a_trajectory(followed_before):
    _, store, results = followed_before
    followed(ascent(), 2, store, results)
    said = [problem.text for problem in find_problems(results) if "protocol default is another" not in problem.text]
    assert said == []


def test_the_report_draws_trajectories_and_escapes_names(tmp_path):
    record = followed_record(watched={SCRIPT: (1.0, None)})
    write_record(record, record.path(tmp_path))
    page = build_page(tmp_path).html
    assert "<h3>Trajectories</h3>" in page and "othing was chosen by them" in page
    assert SCRIPT not in page and SCRIPT.replace("<", "&lt;").replace(">", "&gt;") in page
    write_record(made_record("esd", 0, {"ua": 0.9}), record.path(tmp_path))
    assert "Trajectories" not in build_page(tmp_path).html
