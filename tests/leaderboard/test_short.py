"""The short table: what stands in its cells, what its rows are called, and what it says where scores are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.leaderboard import formats
from unlearnbench.leaderboard.board import board as make_board
from unlearnbench.leaderboard.short import short_sheets
from unlearnbench.records import identity

METRICS = registry.load_metrics()
ANCHORS = {"original": (0.0, 1.0), "retrain": (1.0, 1.0), "destroy": (1.0, 0.0)}


def anchors(*names, **changes):
    return [made_record(name, scores={"ua": ANCHORS[name][0], "ra": ANCHORS[name][1]}, **changes) for name in names]


def sheet_of(records, **options):
    (sheet,) = short_sheets(make_board(records, METRICS), METRICS, **options)
    return sheet


def cells_of(records, **options):
    """Cells by head, by the row's name."""
    sheet = sheet_of(records, **options)
    rows = [row for _, section in sheet.sections for row in section]
    return {row[0]: dict(zip(sheet.heads, row, strict=True)) for row in rows}


def test_what_became_noise_is_told_from_what_became_something_else():
    records = [
        made_record("noise", scores={"ua": 1.0, "coherence": 0.0, "ra": 0.9}),
        made_record("other", scores={"ua": 0.9, "coherence": 0.97, "ra": 0.8}),
        made_record("unknown", scores={"ua": 0.8, "coherence": None, "ra": 0.7}),
        made_record("failed", scores={"ua": None, "coherence": None}),
    ]
    cells = cells_of(records)
    assert [cells[name]["UA (refused) (%) ↑"] for name in ("noise", "other", "unknown", "failed")] == [
        "100.0 (100)", "90.0 (3)", "80.0", "—",
    ]  # fmt: skip
    assert "sees nothing that it knows" in sheet_of(records).caption


def test_a_row_has_a_few_numbers_means_alone_where_there_is_no_room():
    records = [
        made_record("esd", seed, {"ua": ua, "ra": 0.8, "fid": 0.25, "unlearn_time": 2.0})
        for seed, ua in enumerate((0.4, 0.6))
    ]
    assert cells_of([*records, *anchors(*ANCHORS)])["esd"] == {
        "method": "esd", "score ↑": "0.50", "UA (%) ↑": "50.0 ± 14.1", "RA (%) ↑": "80.0 ± 0.0",
        "FID ↓": "0.250 ± 0.000", "time (s) ↓": "2.0", "n": "2",
    }  # fmt: skip
    assert cells_of(records, spread=False)["esd"]["UA (%) ↑"] == "50.0"
    assert "[" in cells_of(records, intervals=True)["esd"]["UA (%) ↑"]


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
        ([], {}, {}, "--method original,retrain,destroy --task digits-class --forget 3"),
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
    assert "--method retrain,destroy --task digits-class --forget 3 --force" in note
    assert "--force" not in sheet_of(records).note


def test_anchors_that_do_not_differ_give_no_command():
    same = [made_record(name, scores={"ua": 0.5, "ra": 0.5}) for name in (*ANCHORS, "esd")]
    note = sheet_of(same).note
    assert "the anchors are not clear of each other" in note and "unlearnbench run" not in note


def test_a_complete_table_says_nothing_of_anchors():
    note = sheet_of([made_record("esd", scores={"ua": 0.5, "ra": 0.5}), *anchors(*ANCHORS)]).note
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
