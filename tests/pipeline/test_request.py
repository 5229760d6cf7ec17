"""Requests for runs: what they take from Python and from the command line, and how they refuse what does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.small_world import write_nudge
from unlearnbench import Method, registry
from unlearnbench.cli import run as command
from unlearnbench.errors import UserError
from unlearnbench.launch.runs import PreparedRun
from unlearnbench.pipeline.request import RunRequest


@dataclass(frozen=True)
class HalveWeights(Method):
    """A method that lives in a module of its user's."""

    factor: float = 0.5

    def unlearn(self, model, task, prepared=None):
        for value in model.select("full").values():
            value.data *= self.factor
        return model


@dataclass(frozen=True)
class ESD(Method):
    """One that would take a built-in method's name."""

    def unlearn(self, model, task, prepared=None):
        return model


@pytest.fixture(autouse=True)
def offered(monkeypatch):
    """Classes are known to one test alone."""
    monkeypatch.setattr(registry, "_offered", {})


@pytest.mark.parametrize(
    ("given", "seeds"), [(3, (3,)), ("0-2", (0, 1, 2)), ("0,3", (0, 3)), ([2, 0, 2], (2, 0)), (range(2), (0, 1))]
)
def test_seeds_are_numbers_ranges_or_lists(given, seeds):
    assert RunRequest.of(method="esd", seeds=given).seeds == seeds


def test_words_are_given_one_by_one_or_in_lists(tmp_path):
    path = write_nudge(tmp_path)
    request = RunRequest.of(
        method=["esd,salun", path], forget="3, 5", memory="slices", attacks=["relearn", "standard"], time=90
    )
    assert request.method == ("esd", "salun", str(path))
    assert request.forget == ("3", "5")
    assert request.memory == ("slices",)
    assert request.attacks == ("relearn", "standard")
    assert request.time == "90"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methd": "esd"}, "unknown option of run 'methd': did you mean method"),
        ({"seed": 0}, "unknown option of run 'seed': did you mean seeds"),
        ({"seeds": "2-0"}, "--seeds 2-0: write one number"),
        ({"seeds": [0, -1]}, r"seeds=\[0, -1\]: -1 is no seed: give whole numbers"),
        ({"seeds": 1.5}, "seeds=1.5: 1.5 is no seed"),
        ({"seeds": True}, "seeds=True: True is no seed"),
        ({"seeds": []}, "seeds is empty: give at least one"),
        ({"forget": 3}, "forget=3 does not fit: give text, such as '3'"),
        ({"method": 3}, "method=3 does not fit: give names, paths or Method classes"),
        ({"method": int}, "method=<class 'int'> does not fit"),
        ({"device": "gpu"}, "device='gpu' does not fit: input should be 'auto', 'cpu' or 'cuda'"),
        ({"settings": "lr=1"}, "settings='lr=1' does not fit: input should be a valid dictionary"),
        ({"force": "perhaps"}, "force='perhaps' does not fit"),
        ({"budget": 3}, "--budget is for attacks: add --attacks"),
        ({"attacks": []}, None),
        ({"attacks": " "}, "--attacks is empty"),
        ({"eval_every": 0}, "--eval-every 0 is below 1"),
        ({"tracker": "notebook"}, "unknown tracker 'notebook'"),
        ({"task": "digit-class"}, "unknown task 'digit-class': did you mean digits-class"),
        ({"protocol": "smok"}, "unknown protocol of digits-class 'smok'"),
        ({"coco": "1k"}, "digits-class takes no --coco"),
    ],
)
def test_values_that_do_not_fit_are_named_with_a_remedy(given, message):
    if message is None:
        assert RunRequest.of(**{"method": "esd", **given})
        return
    with pytest.raises(UserError, match=message):
        RunRequest.of(**{"method": "esd", **given})


def test_a_request_without_a_method_is_refused():
    with pytest.raises(UserError, match="method is missing"):
        RunRequest.of(task="digits-class")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": ""}, "--method is empty"),
        ({"forget": ""}, "--forget is empty"),
        ({"method": "esdd"}, "unknown method 'esdd': did you mean esd"),
        ({"forget": "12"}, "unknown concept"),
        ({"preset": "best"}, "unknown preset of esd 'best'"),
        ({"settings": {"lrr": 1.0}}, "unknown setting of esd 'lrr'"),
        ({"settings": {"lr": "fast"}}, "lr=fast does not fit esd"),
        ({"precision": "fp64"}, "unknown precision 'fp64'"),
        ({"memory": "slice"}, "unknown memory saving 'slice'"),
        ({"memory": "none,slices"}, "none goes with no other"),
        ({"method": "blindspot", "memory": "microbatches"}, "the loss of blindspot reads a whole batch"),
        ({"attacks": "relern"}, "unknown attack 'relern'"),
        ({"jobs": 0}, "--jobs 0 is below 1"),
        ({"launcher": "condor"}, "unknown launcher 'condor'"),
        ({"shards": 2}, "--shards 2 takes jobs"),
        ({"jobs": 2, "shards": 2, "force": True}, "--force keeps a cell whole"),
        ({"jobs": 2, "tracker": "tensorboard"}, "--tracker"),
        ({"method": HalveWeights, "jobs": 1}, "the class of halve_weights is known to this process alone"),
    ],
)
def test_what_no_cell_can_be_made_of_is_refused_before_anything_is_run(given, message):
    with pytest.raises(UserError, match=message):
        PreparedRun.of(RunRequest.of(**{"method": "esd", "device": "cpu", **given}))


def test_cells_are_every_method_on_every_concept_with_every_seed():
    request = RunRequest.of(method="esd,retrain", forget=["3", "8"], seeds=[4, 5], settings={"steps": 2}, device="cpu")
    with pytest.raises(UserError, match="unknown setting of retrain 'steps'"):
        request.cells("cpu")
    baseline, asked = RunRequest.of(method="esd,retrain", forget=["3", "8"], seeds=[4, 5]).cells("cpu")
    assert [(spec.label, spec.forget) for spec in baseline] == [("original", "3"), ("original", "8")]
    seeds = {"esd": [4, 5], "retrain": [4, 5]}
    assert [(spec.forget, spec.label, spec.seed) for spec in asked] == [
        (forget, name, seed) for forget in ("3", "8") for name in ("esd", "retrain") for seed in seeds[name]
    ]


def test_costly_retrains_run_for_the_three_seeds_that_likeness_needs():
    assert registry.load_task("digits-text").few_retrains and not registry.load_task("digits-class").few_retrains
    about = {"task": "digits-text", "forget": ["seven"], "seeds": [0, 1, 2, 3, 4]}
    asked = RunRequest.of(method="uce,retrain", **about).cells("cpu").asked
    assert [spec.seed for spec in asked if spec.label == "retrain"] == [0, 1, 2]
    assert [spec.seed for spec in asked if spec.label == "uce"] == [0, 1, 2, 3, 4]


def test_settings_of_python_and_of_the_command_line_give_the_same_cell():
    typed, text = ({"lr": 0.001, "steps": 2}, {"lr": "1e-3", "steps": "2"})
    one, other = (RunRequest.of(method="esd", settings=settings).cells("cpu").asked for settings in (typed, text))
    assert one == other


def test_a_class_is_a_method_under_its_own_name():
    request = RunRequest.of(method=[HalveWeights, "esd"], settings={"factor": 0.25})
    assert request.method == ("halve_weights", "esd")
    (spec,) = RunRequest.of(method=HalveWeights, settings={"factor": 0.25}).cells("cpu").asked
    assert spec.label == "halve_weights+factor=0.25" and spec.source is None
    assert spec.cell().method == HalveWeights(0.25)


def test_classes_of_built_in_methods_and_of_files_are_named_as_these(tmp_path):
    path = write_nudge(tmp_path)
    classes = [registry.load_method("salun"), registry.load_method(str(path))]
    assert RunRequest.of(method=classes).method == ("salun", str(path))


def test_a_class_cannot_take_a_built_in_name_nor_come_without_source():
    with pytest.raises(UserError, match="ESD would be named esd, as a built-in method is"):
        RunRequest.of(method=ESD)
    scope: dict = {"Method": Method, "__name__": "nowhere"}
    exec("class Typed(Method):\n    def unlearn(self, model, task, prepared=None):\n        return model\n", scope)
    with pytest.raises(UserError, match="Typed has no source that this session keeps: write it to"):
        RunRequest.of(method=scope["Typed"])


def test_every_option_of_the_command_is_a_field_of_the_request_and_the_other_way_round():
    import inspect

    options = set(inspect.signature(command.run).parameters) - {"dry_run", "format", "quiet", "out"}
    named_otherwise = {"set_": "settings"}
    assert {named_otherwise.get(name, name) for name in options} == set(RunRequest.model_fields)


def test_a_request_reaches_its_cells_whole(tmp_path):
    folder = tmp_path / "trained"
    request = RunRequest.of(
        method="esd", protocol="selection", settings={"steps": "7"}, memory=["slices"], compile=True, pretrained=folder
    )
    (spec,) = request.cells("cpu").asked
    assert (spec.protocol, spec.preset, spec.memory, spec.compile) == ("selection", "default", ("slices",), True)
    assert spec.settings["steps"] == 7 and spec.overrides == {"steps": 7}
    assert spec.pretrained == Path(folder) and spec.device == "cpu"
