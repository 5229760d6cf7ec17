"""What a record says of its prompts: how many there are and how many are cut; it changes neither result nor key."""

from __future__ import annotations

import pytest

from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.pipeline import fingerprint
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.prompt_counts import count_prompts
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.records.provenance import details
from unlearnbench.records.schema import PromptsRecord, Record, read_record, write_record

ABOUT = PromptsRecord(n=9, cut=2, length=77, empty=1, empty_drawn_as="nan", files={"i2p.csv": "a" * 64})


def test_distinct_prompts_are_counted_and_those_that_do_not_fit():
    task = registry.load_task("digits-text")("seven")
    plan = task.plan()
    about = count_prompts(task, plan)
    assert (about.n, about.cut, about.length) == (len({item.prompt for item in plan}), 0, 16)
    long = plan[0]._replace(prompt="seven " * 20)
    assert count_prompts(task, [*plan, long, long]).model_dump() == {**about.model_dump(), "n": about.n + 1, "cut": 1}


def test_a_task_without_prompts_has_no_counts():
    task = registry.load_task("digits-class")("3")
    assert count_prompts(task, task.plan()) is None


def test_counts_are_written_and_are_no_part_of_the_result(tmp_path):
    plain = made_record()
    counted = write_record(plain.model_copy(update={"prompts": ABOUT}), tmp_path / "r.json")
    assert read_record(tmp_path / "r.json").prompts == ABOUT
    assert counted.result() == plain.result()
    assert "1 empty in the file (nan)" in dict(details(counted))["prompts"]
    with pytest.raises(UserError, match="cannot be cut"):
        write_record(plain.model_copy(update={"prompts": ABOUT.model_copy(update={"cut": 10})}), tmp_path / "x.json")


def test_counts_are_no_part_of_the_key(monkeypatch):
    task = registry.load_task("digits-class")("3")
    cell = Cell(registry.load_method("original").configured({}), task)
    before = fingerprint.drafted(cell, metrics_for(task)).key

    class Counted(Record):
        prompts: PromptsRecord | None = ABOUT

    monkeypatch.setattr(fingerprint, "Record", Counted)
    assert fingerprint.drafted(cell, metrics_for(task)).key == before
