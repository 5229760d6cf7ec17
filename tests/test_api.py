"""`unlearnbench.run`: the same runs from Python as from the command line."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

import unlearnbench
from tests.support.small_world import comparable, made_record, read_only, write_method, write_nudge
from unlearnbench import Method, registry
from unlearnbench.errors import Failed, UserError
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.records.folder import load_all
from unlearnbench.records.image_table import read_images

pytestmark = pytest.mark.usefixtures("small")


@dataclass(frozen=True)
class ScaleWeights(Method):
    """A method that lives in a module of its user's."""

    size: float = 0.01

    def unlearn(self, model, task, prepared=None):
        with torch.no_grad():
            for value in model.select("full").values():
                value *= 1 + self.size
        return model


@pytest.fixture(autouse=True)
def offered(monkeypatch):
    """Classes are known to one test alone."""
    monkeypatch.setattr(registry, "_offered", {})


def test_python_and_the_command_line_give_the_same_record(cli, tmp_path, capsys):
    path = write_nudge(tmp_path)
    (record,) = unlearnbench.run(
        method=path, task="digits-class", forget="3", seeds=[1], settings={"size": 0.02}, results=tmp_path / "python"
    )
    assert capsys.readouterr() == ("", ""), "nothing is shown unless it is asked for"
    said = cli("run", "--method", path, "--forget", "3", "--seeds", "1", "--set", "size=0.02", "--results", "typed")
    assert said.code == 0
    assert comparable(record) == comparable(read_only(tmp_path / "typed"))
    assert record == read_only(tmp_path / "python")
    assert record.status == "ok" and record.seeds["unlearning"] == 1 and record.method.overrides == {"size": 0.02}


def test_records_are_of_what_was_asked_for_and_made_once(tmp_path, monkeypatch):
    path, here = write_nudge(tmp_path), tmp_path / "here"
    records = unlearnbench.run(path, forget=["3", "8"], seeds=[0, 1], results=here)
    assert [(record.forget, record.seeds["unlearning"]) for record in records] == [
        ("3", 0),
        ("3", 1),
        ("8", 0),
        ("8", 1),
    ]
    assert len(load_all(here)) == 6, "the original's are written beside them"
    assert unlearnbench.load_records(here, forget="8") == [r for r in load_all(here) if r.forget == "8"]
    board = unlearnbench.leaderboard(here, forget="3")
    assert board[["method", "n"]].values.tolist() == [["original", 1], ["nudge", 1]], "equal runs count once"
    assert board.ua.iloc[1] == sum(record.scores["ua"].value for record in records[:2]) / 2
    assert not unlearnbench.compare(*[here / f"digits-class/default/3/{name}" for name in ("original", "nudge")]).empty
    for record in records[:2]:
        images, values = record.samples(method=path), read_images(record, here)
        assert images.dtype == torch.uint8 and images.shape == (len(values), 3, 8, 8)
    with monkeypatch.context() as patch:
        patch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "another-machine"))
        with pytest.raises(
            UserError, match=r"are not in the store .*`unlearnbench samples results/digits-class/default/3"
        ):
            records[0].samples(method=path)
    monkeypatch.setattr("unlearnbench.pipeline.runner.unlearn", lambda *about: pytest.fail("it was there"))
    assert unlearnbench.run(path, forget=["3", "8"], seeds=[0, 1], results=here) == records


def test_a_class_is_run_as_its_file_is(tmp_path):
    (own,) = unlearnbench.run(ScaleWeights, results=tmp_path / "own")
    (file,) = unlearnbench.run(write_nudge(tmp_path), results=tmp_path / "file")
    assert own.method.name == "scale_weights" and own.path(tmp_path / "own").is_file()
    assert own.weights == file.weights
    assert {name: score.value for name, score in own.scores.items() if "time" not in name and "memory" not in name} == {
        name: score.value for name, score in file.scores.items() if "time" not in name and "memory" not in name
    }


def test_attacks_are_tried_too(tmp_path):
    (record,) = unlearnbench.run(
        write_nudge(tmp_path), results=tmp_path / "here", attacks=["latent_probe@0.9"], budget=0
    )
    assert set(record.attacks) == {"latent_probe@0.9+budget=0"}


def test_one_that_fails_is_raised_and_several_are_run_to_the_end(tmp_path):
    here = tmp_path / "here"
    broken = write_method(tmp_path, 'raise ValueError("no such luck")', name="broken")
    with pytest.raises(Failed, match="broken failed with ValueError: no such luck"):
        unlearnbench.run(broken, results=here)
    with pytest.raises(Failed, match=r"1 failed \(broken · forget 3 · seed 0: .*no such luck.*the records of 1 of 2"):
        unlearnbench.run([broken, write_nudge(tmp_path)], results=here)
    assert read_only(here).method.name == "nudge"


def test_what_is_left_out_goes_to_the_log(tmp_path, monkeypatch, caplog):
    known = {name: registry.methods()[name] for name in ("original", "uce")}
    monkeypatch.setattr(registry, "methods", lambda: known)
    with caplog.at_level(logging.INFO, logger="unlearnbench"):
        (record,) = unlearnbench.run("all", results=tmp_path / "here")
    assert record.method.name == "original"
    assert any(line.startswith("left out: uce needs") for line in caplog.messages)


def test_progress_is_shown_where_it_is_asked_for(tmp_path, capsys):
    unlearnbench.run(write_nudge(tmp_path), results=tmp_path / "here", progress=True)
    said = capsys.readouterr()
    assert said.out == "" and "[2/2] nudge · forget 3 · seed 0" in said.err


def test_wrong_values_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="unknown option of run 'forgot': did you mean forget"):
        unlearnbench.run("esd", forgot="3")
    with pytest.raises(UserError, match="unknown concept"):
        unlearnbench.run("esd", forget="12", results=tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_functions_keep_their_names_beside_the_packages_of_these_names_and_the_others_are_there():
    """And the first import takes nothing heavy with it: all public names are there, imported on first use."""
    program = (
        "import sys, unlearnbench as ub; assert 'torch' not in sys.modules; "
        "import unlearnbench.pipeline.runner, unlearnbench.launch.runs; "
        "from unlearnbench import run; assert callable(run) and run is ub.run; "
        "import inspect; assert 'eval_every' in inspect.signature(run).parameters; "
        "before = ub.leaderboard, ub.compare; "
        "import unlearnbench.leaderboard.board, unlearnbench.compare.pairs; "
        "assert all(map(callable, (ub.leaderboard, ub.compare, *before))); "
        "from unlearnbench.errors import UserError\n"
        "for function in (ub.leaderboard, ub.load_records):\n"
        "    try:\n        function('nowhere')\n"
        "    except UserError as error:\n        assert 'nowhere' in str(error), error\n"
        "    else:\n        raise AssertionError(function)\n"
        "for name in ub.__all__:\n    getattr(ub, name)\n"
        "assert 'torch' in sys.modules\n"
        "try:\n    ub.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)\n"
        "else:\n    raise AssertionError('nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_record_without_a_result_has_no_images():
    lost = made_record("esd").model_copy(update={"status": "diverged", "reason": "nan"})
    with pytest.raises(UserError, match="esd was diverged and has no images: nan"):
        lost.samples()


def test_the_old_name_of_results_still_works(tmp_path):
    with pytest.warns(DeprecationWarning, match="use results"):
        assert RunRequest.of(method="esd", out=tmp_path).results == tmp_path
