"""The short table: what stands in its cells, what its rows are called, and what it says where scores are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.forget_frames import forget_frame
from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.leaderboard import formats
from unlearnbench.leaderboard.board import board as make_board
from unlearnbench.leaderboard.short import short_sheets
from unlearnbench.records import identity

METRICS = registry.load_metrics()
ANCHORS = {"original": (0.0, 1.0, 1.0), "retrain": (1.0, 1.0, 1.0), "destroy": (1.0, 0.0, 100.0)}


def anchors(*names, **changes):
    """The controls' runs, three of retrain."""
    return [
        made_record(name, seed, dict(zip(("ua", "ra", "fid"), ANCHORS[name], strict=True)), **changes)
        for name in names
        for seed in (range(3) if name == "retrain" else (0,))
    ]


def sheet_of(records, **options):
    (sheet,) = short_sheets(make_board(records, METRICS, forget_frame), METRICS, **options)
    return sheet


def cells_of(records, **options):
    """Cells by head, by the row's name."""
    sheet = sheet_of(records, **options)
    rows = [row for _, section in sheet.sections for row in section]
    return {row[0]: dict(zip(sheet.heads, row, strict=True)) for row in rows}


def test_what_became_noise_is_told_from_what_became_something_else():
    records = [
        made_record("noise", scores={"still": 0.0, "another": 0.0, "nothing": 1.0}),
        made_record("other", scores={"still": 0.1, "another": 0.87, "nothing": 0.03}),
        made_record("unknown", scores={"still": 0.2, "another": None, "nothing": None}),
        made_record("failed", scores={"ra": None}),
    ]
    cells = cells_of(records)
    assert [cells[name]["still / another / nothing (%)"] for name in ("noise", "other", "unknown", "failed")] == [
        "0/0/100", "10/87/3", "20/—/—", "—/—/—",
    ]  # fmt: skip
    assert "sees nothing that it knows" in sheet_of(records).caption


def test_a_row_has_a_few_numbers_means_alone_where_there_is_no_room():
    records = [
        made_record("esd", seed, {"ua": ua, "still": 1 - ua, "ra": 0.8, "fid": 1.0, "unlearn_time": 2.0})
        for seed, ua in enumerate((0.4, 0.6))
    ]
    assert cells_of([*records, *anchors(*ANCHORS)])["esd"] == {
        "method": "esd", "score ↑": "0.50", "rank / attacked": "1/—", "still / another / nothing (%)": "50/—/—",
        "RA (%) ↑": "80.0 ± 0.0", "FID ↓": "1.000 ± 0.000", "time (s) ↓": "2.0", "n": "2",
    }  # fmt: skip
    assert cells_of(records, spread=False)["esd"]["RA (%) ↑"] == "80.0"
    assert "[" in cells_of(records, intervals=True)["esd"]["RA (%) ↑"]


def test_names_say_settings_versions_and_failures_where_rows_have_them(monkeypatch):
    monkeypatch.setattr(identity, "standing", lambda kind, name, hash: "older" if hash == "0" * 64 else "current")
    tuned = {"division": "custom", "preset": "published", "overrides": {"steps": 3, "lr": 0.5}}
    lengthy = {"division": "custom", "overrides": {"path": "x" * 90}}
    records = [
        made_record("esd"),
        made_record("esd", method_changes=tuned),
        made_record("salun"),
        made_record("salun", engine_hash="0" * 64),
        made_record("uce", engine_hash="0" * 64),
        made_record("mace", status="diverged", step=3, reason="not finite"),
        made_record("checkpoint", method_changes=lengthy),
    ]
    names = list(cells_of(records))
    assert "esd" in names and "esd (published, lr=0.5, steps=3)" in names
    assert len([name for name in names if name.startswith("salun · engine ")]) == 2
    assert "uce · other version" in names and "mace · diverged" in names
    assert any(name.startswith("checkpoint+path=xxx") and len(name) <= 80 for name in names), "or they are as folders"
    assert "mace · diverged: diverged at step 3 (seed 0)" in sheet_of(records).note


@pytest.mark.parametrize(
    ("present", "changes", "options", "command"),
    [
        ([], {}, {}, "--method original,retrain,destroy --task digits-class --forget 3 --seeds 0-2"),
        (["original", "retrain"], {}, {}, "--method destroy --task digits-class --forget 3"),
        (
            ["original", "retrain"],
            {"protocol_changes": {"name": "smoke"}, "forget": "5"},
            {"results": Path("my results")},
            "--method destroy --task digits-class --forget 5 --protocol smoke --results 'my results'",
        ),
    ],
)
def test_without_anchors_the_command_that_runs_them_is_told_once(present, changes, options, command):
    records = [made_record(name, scores={"ua": 0.5, "ra": 0.5}, **changes) for name in ("esd", "salun")]
    records += anchors(*present, **changes)
    sheet = sheet_of(records, **options)
    assert {row[1] for _, rows in sheet.sections for row in rows} == {"—"}
    assert sheet.note.count("unlearnbench run") == 1 and f"`unlearnbench run {command}`" in sheet.note


def test_anchors_of_another_version_must_be_run_again():
    records = [made_record("esd", scores={"ua": 0.5, "ra": 0.5}), *anchors("original")]
    note = sheet_of([*records, *anchors("retrain", "destroy", engine_hash="0" * 64)]).note
    assert "--method retrain,destroy --task digits-class --forget 3 --seeds 0-2 --force" in note
    assert "--force" not in sheet_of(records).note


def test_anchors_that_do_not_differ_give_no_command():
    same = [
        made_record(name, scores={"ua": 0.5, "ra": 0.5, "fid": 1.0}) for name in (*ANCHORS, *["retrain"] * 2, "esd")
    ]
    note = sheet_of(same).note
    assert "the anchors are not clear of each other" in note and "unlearnbench run" not in note


def test_a_complete_table_says_nothing_of_anchors():
    note = sheet_of([made_record("esd", scores={"ua": 0.5, "ra": 0.5, "fid": 1.0}), *anchors(*ANCHORS)]).note
    assert "score" not in note


def test_a_task_that_cannot_train_has_no_score_and_its_own_utility():
    record = made_record("esd", scores={"ua": 0.9, "clip_score": 31.0, "fid": 12.0}, task="sd-nudity", forget="nudity")
    sheet = sheet_of([record])
    assert sheet.heads == ["method", "UA (%) ↑", "CLIP score ↑", "FID ↓", "time (s) ↓", "n"]
    assert "unlearnbench run" not in sheet.note and "something else" not in sheet.caption


def test_paper_and_page_are_short_unless_columns_are_named():
    board = make_board([made_record("esd", scores={"ua": 0.9, "ra": 0.8, "kid": 0.1})], METRICS)
    for kind in ("markdown", "latex"):
        text = formats.formatted(board, METRICS, None, kind)
        assert "UA" in text and "KID" not in text and "overrides" not in text
        assert "KID" in formats.formatted(board, METRICS, list(METRICS), kind)
    for kind in ("csv", "json"):
        assert "kid_low" in formats.formatted(board, METRICS, None, kind)
