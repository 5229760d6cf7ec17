"""Tuning one method: candidates, equal budgets, resuming, what is chosen; runs are made up here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.support.small_world import ROOT
from unlearnbench import Method, registry
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import seed_of
from unlearnbench.records.folder import ResultsFolder
from unlearnbench.records.tuning import (
    Anchors,
    RunValue,
    read_tuning,
    tuned_settings,
    tuning_path,
    was_tuned,
    write_tuning,
)
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tune.search import Budget, budget, tuned
from unlearnbench.tune.space import candidates, distributions, require_space

pytest.importorskip("optuna", reason="the extra [tune] is not installed")
BEST = 0.3
ANCHORS = {
    digit: Anchors(original_ua=0, destroy_ra=0.1, original_ra=1, destroy_fid=100, original_fid=1, retrains=3)
    for digit in "01"
}


@dataclass(frozen=True)
class Hill(Method):
    """Best where x is 0.3."""

    presets = {"published": {"digits-class": {"x": 0.05}}}
    space = {"x": (0.0, 1.0)}
    x: float = 0.9
    kept: int = 7

    def unlearn(self, model, task, prepared=None):
        return model


def run_of(objective, forget, seed, **about):
    return RunValue(forget=forget, seed=seed, state="ok", objective=objective, evaluations=5, seconds=1.0, **about)


class World:
    """Makes up runs, and notes them."""

    def __init__(self, stop_at=None, lost=(), state="diverged", noise=None):
        self.made: list[Any] = []
        self.stop_at, self.lost, self.state, self.noise = stop_at, lost, state, noise or {}

    def __call__(self, method, name, forget, seed):
        if len(self.made) == self.stop_at:
            raise KeyboardInterrupt
        self.made.append((name, forget, seed))
        if name in self.lost:
            return RunValue(forget=forget, seed=seed, state=self.state, reason="why", evaluations=3, seconds=0.5)
        return run_of(1 - abs(method.x - BEST) + self.noise.get((name, seed), 0), forget, seed)


def given(trials=24, **changes):
    return Budget(**{"task": DigitsClass, "forget": ("0", "1"), "trials": trials, **changes})


def tune(folder, world, trials=24, **changes):
    return tuned(given(trials, **changes), Hill, folder, world, ANCHORS, {})


# ---- candidates ----------------------------------------------------------------------------------------------------


def test_default_and_published_come_first_and_draws_change_the_fields_of_space_alone():
    found = candidates(Hill, "digits-class", 10)
    assert [(one.settings["x"], one.presets) for one in found[:2]] == [(0.9, ("default",)), (0.05, ("published",))]
    drawn = [one.settings["x"] for one in found[2:]]
    assert len(set(drawn)) == 8
    assert all(0 <= x <= 1 for x in drawn)
    assert {one.settings["kept"] for one in found} == {7}


def test_a_preset_equal_to_the_default_is_tried_once():
    @dataclass(frozen=True)
    class Same(Hill):
        x: float = 0.05

    assert [one.presets for one in candidates(Same, "digits-class", 3)] == [("default", "published"), (), ()]


def test_candidates_are_the_same_again_and_fewer_are_the_first_of_more():
    assert candidates(Hill, "digits-class", 5) == candidates(Hill, "digits-class", 24)[:5]
    assert candidates(Hill, "digits-class", 5) != candidates(Hill, "digits-text", 5)


def test_draws_are_quasi_random():
    drawn = [one.settings["x"] for one in candidates(Hill, "digits-class", 18)[2:]]
    assert sorted(int(16 * x) for x in drawn) == list(range(16)), "one in each sixteenth"


def test_ranges_are_read_by_their_form():
    space = {
        "rate": (1e-4, 1e-2),
        "weight": (0.5, 3.0),
        "from_zero": (0, 2.0),
        "steps": (30, 120),
        "loss": ("squares", "norm"),
        "ends": (False, True),
        "level": (1, 2, 4),
    }
    found = distributions(space)
    assert [(type(one).__name__, one.low, one.high) for one in found.values()] == [
        ("FloatDistribution", 1e-4, 1e-2),
        ("FloatDistribution", 0.5, 3.0),
        ("FloatDistribution", 0.0, 2.0),
        ("IntDistribution", 30, 120),
        ("FloatDistribution", 0.0, 2.0),
        ("FloatDistribution", 0.0, 2.0),
        ("FloatDistribution", 0.0, 3.0),
    ]
    assert [name for name, one in found.items() if one.log] == ["rate"]


@pytest.mark.parametrize("name", [name for name in registry.methods() if registry.load_method(name).space])
def test_every_candidate_of_every_method_is_one_that_it_takes(name):
    cls = registry.load_method(name)
    require_space(cls)
    for task in ("digits-class", "digits-text"):
        found = candidates(cls, task, 24)
        assert len(found) == 24
        for one in (one.settings for one in found if not one.presets):
            for field, values in cls.space.items():
                inside = one[field] in values or min(values) <= one[field] <= max(values)
                assert inside, (field, one[field])


def test_a_choice_is_drawn_in_equal_shares():
    drawn = [
        one.settings["level"] for one in candidates(registry.load_method("sld"), "digits-class", 24) if not one.presets
    ]
    assert {drawn.count(level) for level in ("weak", "medium", "strong", "max")} <= {5, 6}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "declares no `space`"),
        ({"y": (0, 1)}, "names 'y', which is no setting"),
        ({"x": (1.0, 0.5)}, "has x="),
        ({"x": (1.0,)}, "has x="),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused(space, said):
    cls = dataclass(frozen=True)(type("Wrong", (Hill,), {"space": space, "__module__": __name__}))
    with pytest.raises(UserError, match=said):
        require_space(cls)


# ---- trials --------------------------------------------------------------------------------------------------------


def test_the_best_is_found_with_the_default_among_the_trials(tmp_path):
    found = tune(tmp_path, World())
    assert abs(found.settings["x"] - BEST) < 1 / 16
    assert found.of("default").settings["x"] == 0.9
    assert found.first(found.of("default")) == pytest.approx(0.4)
    best = max(1 - abs(trial.settings["x"] - BEST) for trial in found.trials)
    assert found.final(found.trials[found.chosen]) == pytest.approx(best)


def test_every_trial_is_run_with_the_first_seed_and_the_best_three_with_the_others(tmp_path):
    world = World()
    found = tune(tmp_path, world, 8)
    assert [len(trial.runs) for trial in found.trials].count(6) == 3
    assert [len(trial.runs) for trial in found.trials].count(2) == 5
    assert found.cost.runs == len(world.made) == 8 * 2 + 3 * 4
    assert found.cost.evaluations == 5 * len(world.made)
    order = sorted(found.trials, key=lambda trial: -found.first(trial))
    assert {trial.number for trial in found.trials if len(trial.runs) == 6} == {trial.number for trial in order[:3]}


class Drawn(World):
    """Objectives from 0 to 1, drawn for every trial, concept and seed; `noise` is the number of the world."""

    def value(self, name, forget, seed):
        return np.random.default_rng(seed_of("objective", self.noise, name, forget, seed)).random()

    def __call__(self, method, name, forget, seed):
        self.made.append((name, forget, seed))
        return run_of(self.value(name, forget, seed), forget, seed)


@pytest.mark.parametrize("world", range(6))
def test_trials_that_cannot_become_finalists_are_cut_and_the_choice_is_that_of_all(tmp_path, world):
    made = Drawn(noise=world)
    found = tune(tmp_path, made, 24)

    def mean(number, seeds):
        return np.mean([made.value(f"trial-{number}", forget, seed) for seed in seeds for forget in "01"])

    order = sorted(range(24), key=lambda number: -mean(number, (100,)))
    assert {trial.number for trial in found.trials if len(trial.runs) == 6} == set(order[:3])
    assert found.chosen == max(order[:3], key=lambda number: mean(number, (100, 101, 102)))
    cut = [trial for trial in found.trials if trial.cut]
    assert cut
    assert {len(trial.runs) for trial in cut} == {1}
    assert not any(trial.presets for trial in cut), "presets are in the table with their values"
    assert all(found.first(trial) is None for trial in cut)
    assert found.cost.runs == len(made.made) == 24 * 2 - len(cut) + 3 * 4


def test_the_mean_over_all_seeds_decides(tmp_path):
    plain = tune(tmp_path / "a", World(), 8)
    best = f"trial-{plain.chosen}"
    unlucky = tune(tmp_path / "b", World(noise={(best, 101): -9}), 8)
    assert unlucky.chosen != plain.chosen
    assert len(unlucky.trials[unlucky.chosen].runs) == 6


def test_of_equal_means_the_default_is_chosen(tmp_path):
    class Flat(World):
        def __call__(self, method, name, forget, seed):
            return run_of(0.5, forget, seed)

    assert tune(tmp_path, Flat(), 6).chosen == 0


@pytest.mark.parametrize("stop_at", [1, 7, 20])
def test_a_stopped_tuning_goes_on_and_finds_the_same(tmp_path, stop_at):
    whole, stopped, rest = World(), World(stop_at=stop_at), World()
    wanted = tune(tmp_path / "whole", whole, 8)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "here", stopped, 8)
    found = tune(tmp_path / "here", rest, 8)
    assert found.model_dump(exclude={"created"}) == wanted.model_dump(exclude={"created"})
    kept = min(stop_at // 2, 8)
    assert len(rest.made) == len(whole.made) - 2 * kept, "finished trials are not run again"


def test_more_trials_go_on_from_fewer(tmp_path):
    few, more = World(), World()
    tune(tmp_path, few, 4)
    found = tune(tmp_path, more, 8)
    assert [name for name, *_ in more.made][:2] == ["trial-4", "trial-4"]
    assert found.selection.trials == len(found.trials) == 8


def test_another_cap_begins_anew(tmp_path):
    tune(tmp_path, World(), 4, cap=10)
    again = World()
    tune(tmp_path, again, 4, cap=11)
    assert again.made[0][0] == "trial-0"


@pytest.mark.parametrize("state", ["diverged", "over the cap", "failed"])
def test_a_lost_trial_counts_is_charged_and_has_no_value(tmp_path, state):
    found = tune(tmp_path, World(lost={"trial-1", "trial-3"}, state=state), 6)
    assert [trial.number for trial in found.trials] == list(range(6))
    lost = found.trials[3]
    assert (lost.state, found.first(lost), len(lost.runs), lost.evaluations) == (state, None, 1, 3)
    assert found.chosen not in (1, 3)


def test_nothing_is_chosen_where_no_trial_came_to_a_value(tmp_path):
    found = write_tuning(tune(tmp_path, World(lost={f"trial-{i}" for i in range(4)}), 4), tmp_path)
    assert (found.chosen, found.settings) == (None, None)
    assert not was_tuned(tmp_path, "digits-class", "test_tuning")
    with pytest.raises(UserError, match="none of the 4 trials of test_tuning on digits-class came to a value"):
        tuned_settings(tmp_path, "digits-class", "test_tuning")


def test_best_so_far_never_falls(tmp_path):
    found = tune(tmp_path, World(lost={"trial-0"}), 12)
    values = found.best_so_far()
    assert values[0] is None
    assert values[1:] == sorted(values[1:])
    assert values[-1] == max(value for trial in found.trials if (value := found.first(trial)) is not None)


# ---- what cannot be tuned on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sd-nudity", "sd-object", "sd-style", "sdxl-nudity"])
def test_a_task_without_a_selection_of_its_own_is_refused(task):
    with pytest.raises(UserError, match=f"{task} cannot be tuned on: it has no protocol 'selection'.*never on I2P"):
        budget(registry.load_task(task))


def test_a_selection_that_shares_noise_or_judge_with_a_report_is_refused(monkeypatch):
    import dataclasses

    default = DigitsClass.protocols["default"]
    for changes, what in (({"sampling_seed": 1}, "noise"), ({"judge": "digits-neighbours"}, "judge")):
        monkeypatch.setitem(DigitsClass.protocols, "default", dataclasses.replace(default, **changes))
        with pytest.raises(UserError, match=f"share their {what}"):
            budget(DigitsClass)


def test_a_task_without_retrain_is_refused(monkeypatch):
    monkeypatch.setattr(DigitsClass, "provides", DigitsClass.provides - {"training recipe"})
    with pytest.raises(UserError, match="no retrain can be made there"):
        budget(DigitsClass)


# ---- the file ------------------------------------------------------------------------------------------------------


def test_a_tuning_is_read_as_it_was_written_and_a_change_is_found(tmp_path):
    found = write_tuning(tune(tmp_path / "cache", World(), 4), tmp_path)
    path = tuning_path(tmp_path, "digits-class", "test_tuning")
    assert read_tuning(path) == found
    assert ResultsFolder(tmp_path).tunings("digits-class") == [found]
    assert tuned_settings(tmp_path, "digits-class", "test_tuning") == (found.settings, found.selection)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "cap": values["cap"] + 1}))
    with pytest.raises(Damaged, match="was changed after it was written"):
        read_tuning(path)
    path.write_text(json.dumps({**values, "settings": {"x": 0.0, "kept": 7}}))
    with pytest.raises(Damaged, match="its settings are not those of the chosen trial"):
        read_tuning(path)
    path.write_text("[]")
    with pytest.raises(Damaged, match="no JSON object"):
        read_tuning(path)


def test_a_tuning_by_the_earlier_score_is_refused_with_the_remedy(tmp_path):
    path = tuning_path(tmp_path, "digits-class", "hill")
    path.parent.mkdir(parents=True)
    path.write_text('{"schema_version": 1, "anchors": {"0": {"retrain_ua": 1.0}}}')
    with pytest.raises(UserError, match="by a score that has changed since"):
        read_tuning(path)


@pytest.mark.parametrize("path", sorted((ROOT / "results/tuning").rglob("*.json")), ids=lambda path: path.stem)
def test_the_default_is_what_the_committed_tuning_chose_and_its_trials_can_be_repeated(path):
    found = read_tuning(path)
    cls = registry.load_method(found.method)
    assert cls.configured(cls.preset("default", found.task)).settings() == found.settings
    again = candidates(cls, found.task, len(found.trials))
    assert [trial.settings for trial in found.trials] == [candidate.settings for candidate in again]
