"""What is told of a precision before a run begins."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest

from tests.studies import bf16_gradients
from tests.support.small_world import run_cell, write_nudge
from unlearnbench import registry
from unlearnbench.compute.precision import Resources
from unlearnbench.errors import Unsupported
from unlearnbench.pipeline import precision_notes, runner
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.precision_notes import LEAST, LOST, lost_gradient, slow_drawing
from unlearnbench.reporting import told_by
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.sd_nudity import SDNudity

TABLE = Path(__file__).parents[2] / "results" / "gpu.md"


def cell(kind, device="cuda", precision="fp32", protocol="default", method="esd"):
    task = object.__new__(kind)
    task.device, task.protocol = device, SimpleNamespace(name=protocol)
    return Cell(registry.load_method(method)(), task, resources=Resources(precision))


def test_slow_drawing_on_cuda_says_what_half_precision_saves():
    line = slow_drawing(cell(SDNudity))
    assert line.startswith("sd-nudity is drawn in fp32") and "ten times" in line and "--precision fp16" in line


@pytest.mark.parametrize(
    "other",
    [{"device": "cpu"}, {"precision": "fp16"}, {"precision": "bf16"}, {"protocol": "smoke"}, {"kind": DigitsClass}],
    ids=str,
)
def test_nothing_is_said_where_nothing_would_be_saved(other):
    assert slow_drawing(cell(**{"kind": SDNudity, **other})) is None


def test_bf16_warns_of_a_method_that_loses_its_gradient_by_name():
    assert lost_gradient(cell(SDNudity, precision="bf16", method="esd")).startswith("esd in bf16")
    for other in ({"precision": "fp32"}, {"precision": "fp16"}, {"precision": "bf16", "method": "finetune"}):
        assert lost_gradient(cell(SDNudity, **other)) is None


def test_methods_that_are_warned_of_are_those_of_the_table():
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    lowest = {
        name: min(float(cell.split()[0]) for cell in cells if cell != "-")
        for name, *cells in rows
        if "(" in cells[0] + cells[1] and name in registry.methods()
    }
    assert len(lowest) > 10
    assert {name: value for name, value in lowest.items() if value < LEAST} == LOST


def test_a_line_is_told_once_and_before_anything_is_made(small, tmp_path, shared_store, monkeypatch):
    def unsupported(cell):
        raise Unsupported("not here")

    monkeypatch.setattr(runner, "require", unsupported)
    monkeypatch.setattr(precision_notes, "slow_drawing", lambda cell: "it is slow")
    monkeypatch.setattr(precision_notes, "_told", set())
    lines = []
    with told_by(lines.append):
        for seed in (0, 1):
            run_cell(write_nudge(tmp_path), shared_store, tmp_path / "here", seed=seed)
    assert lines.count("it is slow") == 1 and lines[0] == "it is slow"


def test_the_study_measures_what_rounding_leaves(tmp_path):
    """A gradient compared with itself is the same; in bf16 it is nearly so, and never quite."""
    make = bf16_gradients.worlds(tmp_path)["untrained"]
    found = bf16_gradients.compared("finetune", lambda: _short(make()))
    assert len(found) == 2 and all(0.99 < value < 1 for value in found) and median(found) < 1


def _short(task):
    task.limit = 2
    return task
