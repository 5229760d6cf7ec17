"""The first run on a card keeps what it measured, whatever ends it, and brings what a machine lacks."""

import json
import re
import sys
from importlib.util import find_spec

import pytest

from tests.studies import first_gpu_run, throughput
from tests.studies.first_gpu_run import PARTS, ROOT, Given, supervised, tried, written
from tests.support.pretended_cuda import NAME

GIVEN = Given("pretended", "tiny")
BROUGHT = {"torch", "rich", "typer", "pandas", "safetensors", "transformers", "scikit-learn", "scipy"}
BROUGHT |= {"huggingface-hub", "filelock"}
"""Of the package's dependencies: what a machine with a card has, and what `transformers` needs itself."""
OPTIONAL = {"pyarrow", "matplotlib", "jinja2", "tomli"}
"""Whole runs without pyarrow are left out; figures, pages and Python 3.10 are not tried."""


def ending(monkeypatch, body):
    """Steps are this program, which gets the file of rows."""
    program = "import json, os, sys, time\nrows = open(sys.argv[1], 'a')\n" + body
    monkeypatch.setattr(first_gpu_run, "command", lambda name, given, rows: [sys.executable, "-c", program, str(rows)])
    return supervised("methods", GIVEN, 3.0)


ROW = "print(json.dumps({'about': {'device': {'device': 'a card'}}}), file=rows)\nprint('{\"a\": 1}', file=rows)\n"


def test_rows_outlast_a_step_whose_time_is_over(monkeypatch):
    step = ending(monkeypatch, ROW + "print('{\"a\": 2', end='', file=rows, flush=True)\ntime.sleep(60)")
    assert step["rows"] == [{"a": 1}], "the second was broken off"
    assert "time was over" in step["ended"] and step["seconds"] < 30


def test_rows_outlast_a_step_that_dies(monkeypatch, tmp_path):
    step = ending(monkeypatch, ROW + "rows.flush()\nos.abort()")
    assert step["rows"] == [{"a": 1}] and "exit code" in step["ended"]
    path = written(tmp_path, [step])
    assert path.name == "first-gpu-run-a-card.json"
    other = {**step, "step": "cifar10", "ended": None, "rows": [{"what": "x | y", "seconds": 2.0}, {"failed": "no"}]}
    written(tmp_path, [other])
    assert [each["step"] for each in json.loads(path.read_text())] == ["methods", "cifar10"], "parts are added"
    written(tmp_path, [{**step, "rows": []}])
    assert [each["step"] for each in json.loads(path.read_text())] == ["cifar10", "methods"], "a further try replaces"
    page = path.with_suffix(".md").read_text()
    assert "# First run on a card" in page and "| x \\| y | 2.0 |  |" in page and "1 of 2 failed" in page


def test_what_fails_is_a_row():
    assert tried({"method": "m"}, lambda: {"seconds": 1}) == {"method": "m", "seconds": 1}
    assert tried({"method": "m"}, lambda: {}["lost"]) == {"method": "m", "failed": "KeyError: 'lost'"}


def test_a_step_measures_on_a_device(tmp_path, monkeypatch):
    """The command in this process, where everything is imported already; the slow test starts the process itself."""
    python, as_module, module, *words = first_gpu_run.command("stable-diffusion", GIVEN, tmp_path / "rows")
    assert (python, as_module) == (sys.executable, "-m") and find_spec(module).origin == first_gpu_run.__file__
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", [module, *words])
    first_gpu_run.main()
    about, *rows = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert about["about"]["device"]["device"] == NAME
    assert [row["what"].partition(":")[0] for row in rows][:2] == [
        "fp32, unlearnbench",
        "fp32, StableDiffusionPipeline",
    ]
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_the_tests_for_a_card_pass_on_a_pretended_one(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    step = supervised("tests", GIVEN, 400.0)
    assert step["ended"] is None and len(step["rows"]) > 10
    others = {row["test"] for row in step["rows"] if "failed" in row or "skipped" in row}
    assert {test.rpartition("::")[2] for test in others} <= {"test_a_job_on_cuda_has_a_card_of_its_own"}, (
        "jobs are processes of their own, without the pretended card"
    )


def test_each_part_takes_seven_minutes_at_most():
    assert all(sum(step.seconds for step in steps.values()) <= 420 for steps in PARTS.values())


def test_what_a_machine_lacks_is_brought():
    script = (ROOT / "tests" / "studies" / "first_gpu_run.sh").read_text()
    needed = {re.split("[=<>]", word)[0] for word in re.search(r"NEEDED=\((.*?)\)", script, re.DOTALL)[1].split()}
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[(.*?)\n\]", project, re.DOTALL)[1]
    dependencies = set(re.findall(r'^  "([\w-]+)', listed, re.MULTILINE))
    assert dependencies - BROUGHT - OPTIONAL <= needed
