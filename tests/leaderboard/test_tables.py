"""The leaderboard, on records made by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest

from tests.support.forget_frames import forget_frame
from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import formats, run_summary
from unlearnbench.leaderboard import tables as lb
from unlearnbench.leaderboard.board import board as make_board
from unlearnbench.leaderboard.robustness import Worst
from unlearnbench.records import identity

METRICS = registry.load_metrics()


def row(board, label):
    """A row as CSV and JSON have it."""
    (found,) = [row for _, row in board.wide().iterrows() if row.label == label]
    return found


def labels(board):
    return [row.label for row in board]


def rows_of(board, columns):
    """The rows of the one table, sections apart."""
    (sheet,) = lb.tables(board, METRICS, columns)
    return [row for _, rows in sheet.sections for row in rows]


def several(method, values, **changes):
    return [made_record(method, seed, {"ua": value}, **changes) for seed, value in enumerate(values)]


def apart(mean, place):
    """Five values around a mean, in another order for each place."""
    return [mean + 0.001 * ((seed * (place + 1)) % 5 - 2) for seed in range(5)]


def test_mean_deviation_and_interval_over_seeds():
    found = row(make_board(several("esd", [0.4, 0.5, 0.63]), METRICS), "esd")
    assert found.n == 3
    assert found.ua == pytest.approx(0.51)
    sd = math.sqrt((0.11**2 + 0.01**2 + 0.12**2) / 2)
    assert found.ua_sd == pytest.approx(sd)
    half = 4.302652729911275 * sd / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (found.ua_low, found.ua_high) == pytest.approx((0.51 - half, 0.51 + half))


def test_one_seed_has_no_spread_but_the_runs_own_interval():
    found = row(make_board([made_record(scores={"ua": 0.5})], METRICS), "esd")
    assert (found.n, found.ua) == (1, 0.5)
    assert found.ua_sd is None or math.isnan(found.ua_sd)
    assert (found.ua_low, found.ua_high) == (0.4, 0.6)


def test_adding_and_removing_a_method_leaves_the_other_rows():
    one, two = several("esd", [0.2, 0.4]), several("salun", [0.9, 0.8])
    alone, both = make_board(one, METRICS), make_board([*two, *one], METRICS)
    kept = [name for name in alone.wide() if not name.endswith(("_p_original", "_p_best", "_mark"))]
    assert "score" in kept and "ua_low" in kept
    assert row(alone, "esd")[kept].equals(row(both, "esd")[kept])
    for kind in ("markdown", "latex"):
        lines = formats.formatted(alone, METRICS, ["ua"], kind).splitlines()
        assert (
            next(line for line in lines if "esd" in line) in formats.formatted(both, METRICS, ["ua"], kind).splitlines()
        )


def test_the_order_of_records_does_not_matter():
    records = [*several("salun", [0.9, 0.8]), *several("esd", [0.2, 0.4])]
    assert make_board(records, METRICS) == make_board(records[::-1], METRICS)


def test_controls_come_first_then_the_alphabet():
    names = ["salun", "prompt_filter", "destroy", "esd", "original", "a_method", "retrain"]
    board = make_board([made_record(name, scores={"ua": 0.5}) for name in names], METRICS)
    assert labels(board) == ["original", "retrain", "destroy", "prompt_filter", "a_method", "esd", "salun"]


def test_methods_with_other_data_access_are_grouped_and_not_compared():
    needs = {"salun": ("forget images", "retain images"), "esd": ("concept",), "a_method": ("concept",), "retrain": ()}
    records = [
        record
        for place, ((name, access), value) in enumerate(zip(needs.items(), (0.9, 0.5, 0.4, 1.0), strict=True))
        for record in several(name, apart(value, place), method_changes={"requires": access})
    ]
    board = make_board(records, METRICS)
    (sheet,) = lb.tables(board, METRICS, ["ua"])
    assert [(name, [row[0] for row in rows]) for name, rows in sheet.sections] == [
        ("controls", ["retrain"]),
        ("with concept", ["a_method", "esd"]),
        ("with forget images, retain images", ["salun"]),
    ]
    assert [row.access for row in board] == ["none", "concept", "concept", "forget images, retain images"]
    cells = {row[0]: row[-1] for _, rows in sheet.sections for row in rows}
    assert [name for name, cell in cells.items() if cell.endswith("*")] == ["esd"], "alone is not the best"
    assert re.search(r"\*\*50\.0 ± [\d.]+\*\*", formats.formatted(board, METRICS, ["ua"], "markdown"))
    assert re.search(r"\\textbf\{50\.0 ", formats.formatted(board, METRICS, ["ua"], "latex"))


def test_division_and_number_of_overrides_are_columns():
    changed = {"division": "custom", "overrides": {"lr": 0.5, "steps": 3}, "preset": "published"}
    board = make_board([made_record("esd", method_changes=changed, scores={"ua": 0.5}), made_record("salun")], METRICS)
    assert {row[0]: row[1:4] for row in rows_of(board, ["ua"])} == {
        "esd@published+lr=0.5+steps=3": ["custom", "2", "1"],
        "salun": ["default", "0", "1"],
    }
    plain = make_board([made_record("salun")], METRICS)
    assert lb.tables(plain, METRICS, ["ua"], all_keys=False)[0].heads == ["method", "n", "UA (%) ↑"]


def test_settings_of_one_method_are_rows_of_their_own():
    changed = {"overrides": {"lr": 0.5}, "settings": {"lr": 0.5}, "division": "custom"}
    board = make_board(
        [made_record(scores={"ua": 0.1}), made_record(method_changes=changed, scores={"ua": 0.9})], METRICS
    )
    assert labels(board) == ["esd", "esd+lr=0.5"]
    assert list(board.column("ua")) == [0.1, 0.9]


@pytest.mark.parametrize(
    "other",
    [
        {"protocol_changes": {"name": "selection", "hash": "b" * 64}},
        {"protocol_changes": {"hash": "b" * 64}},
        {"forget": "5"},
        {"task": "other-task"},
    ],
)
def test_protocols_concepts_and_tasks_are_never_mixed(other):
    records = [made_record("esd", 0, {"ua": 0.2}), made_record("esd", 1, {"ua": 0.8}, **other)]
    board = make_board(records, METRICS)
    assert sorted(board.column("ua")) == [0.2, 0.8]
    assert [row.n for row in board] == [1, 1]
    tables = lb.tables(board, METRICS, ["ua"])
    assert len(tables) == len({sheet.title for sheet in tables}) == 2
    assert formats.formatted(board, METRICS, ["ua"], "markdown").count("| method |") == 2


def test_what_went_wrong_is_flagged_and_counts_for_nothing():
    records = [
        made_record("esd", 0, {"ua": 0.2}),
        made_record("esd", 1, {"ua": 0.4}, status="unreliable"),
        made_record("esd", 2, status="diverged", step=3, reason="not finite"),
        made_record("esd", 3, status="skipped", reason="it needs xattn"),
    ]
    board = make_board(records, METRICS)
    found = row(board, "esd")
    assert found.n == 2
    assert found.ua == pytest.approx(0.3)
    assert found["flags"] == "unreliable (seed 1), diverged at step 3 (seed 2), skipped (seed 3)"
    assert (lb.tables(board, METRICS, ["ua"])[0].heads[-1], rows_of(board, ["ua"])[0][-1]) == ("flags", found["flags"])
    for kind in ("markdown", "latex", "csv", "json"):
        assert "diverged at step 3 (seed 2)" in formats.formatted(board, METRICS, ["ua"], kind), kind


def test_a_method_that_only_failed_is_shown_without_numbers():
    gone = made_record(status="diverged", step=0, reason="r")
    board = make_board([gone, made_record("salun", scores={"ua": 0.5})], METRICS)
    assert rows_of(board, ["ua", "fid"]) == [
        ["esd", "default", "0", "0", "—", "—", "diverged at step 0 (seed 0)"],
        ["salun", "default", "0", "1", "50.0", "—", ""],
    ]


def test_unknown_is_a_dash_in_tables_and_null_in_json():
    board = make_board([made_record(scores={"ua": 0.5, "fid": None})], METRICS)
    assert "| esd | default | 0 | 1 | 50.0 | — | — |" in formats.formatted(
        board, METRICS, ["ua", "fid", "ra"], "markdown"
    )
    assert "esd & 1 & 50.0 & ---" in formats.formatted(board, METRICS, ["ua", "fid"], "latex")
    (raw,) = json.loads(formats.as_data(board.wide(), "json"))
    assert (raw["ua"], raw["fid"], raw["ra"]) == (0.5, None, None)
    (cells,) = csv.DictReader(io.StringIO(formats.formatted(board, METRICS, ["ua", "fid"], "csv")))
    assert (cells["ua"], cells["fid"]) == ("0.5", "")


def test_numbers_are_shown_in_unit_and_decimals_of_the_metric():
    assert lb.shown(METRICS["ua"], 0.12345) == "12.3"
    assert lb.shown(METRICS["ua"], 0.5, 0.0213) == "50.0 ± 2.1"
    assert lb.shown(METRICS["fid"], 0.12345) == "0.123"
    assert lb.shown(METRICS["ua"], None) == lb.shown(METRICS["ua"], math.nan) == "—"
    assert lb.shown(METRICS["ua"], 0.0) == "0.0"


def test_arrows_say_which_way_is_better():
    heads = {name: lb.head(metric) for name, metric in METRICS.items()}
    assert (heads["ua"], heads["fid"], heads["coherence"]) == ("UA (%) ↑", "FID ↓", "coherence (%)")


def test_latex_escapes_what_it_must():
    changed = {"overrides": {"part": "a&b%c#d"}}
    records = [
        made_record("gradient_ascent", 0, {"ua": 0.5}),
        made_record("esd", 0, {"ua": 0.5}, method_changes=changed),
    ]
    text = formats.formatted(make_board(records, METRICS), METRICS, ["ua"], "latex")
    assert "gradient\\_ascent" in text
    assert "UA (\\%) $\\uparrow$" in text
    assert "$\\pm$" in text
    body = "".join(line.removesuffix("{%") for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#]", body)
    assert text.isascii()


def test_latex_keeps_a_backslash():
    assert formats._escape("a\\b_c~d") == r"a\textbackslash{}b\_c\textasciitilde{}d"


def test_markdown_cells_are_as_many_as_heads():
    text = formats.formatted(make_board(several("esd", [0.1, 0.2]), METRICS), METRICS, list(METRICS), "markdown")
    counts = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    shown = [name for name, metric in METRICS.items() if metric.everywhere]
    assert counts == {len(shown) + 5}, "metrics of other tasks are left out"


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (None, [*METRICS, *lb.DERIVED]),
        ("ua,all", [*METRICS, *lb.DERIVED]),
        ("fid, ua,score", ["fid", "ua", "score"]),
        ("Worst Attack,UA closed,ua_closed", ["robustness", "ua_closed"]),
    ],
)
def test_chosen_columns_are_names_or_titles_or_all(given, chosen):
    assert lb.choose_columns(given, METRICS) == chosen


@pytest.mark.parametrize(("given", "meant"), [("uaa", "ua"), ("score,al", "all"), ("unlearn-time", "unlearn_time")])
def test_a_wrong_column_gets_suggestions(given, meant):
    with pytest.raises(UserError, match=rf"unknown column '{given.split(',')[-1]}': did you mean .*\b{meant}\b"):
        lb.choose_columns(given, METRICS)


def test_no_number_is_minus_nothing():
    assert lb.shown(METRICS["ua"], -0.0001) == "0.0"
    assert lb.shown(METRICS["kid"], -0.0151) == "-0.0151"


def test_sorting_puts_the_best_first_and_controls_above():
    records = [made_record(name, scores={"ua": v, "fid": 9 - v}) for name, v in (("a", 0.1), ("b", 0.7), ("c", 0.4))]
    records += [made_record("original", scores={"ua": 0.0, "fid": 1.0}), made_record("d")]
    board = make_board(records, METRICS)
    assert labels(lb.ordered(board, "ua", METRICS)) == ["original", "b", "c", "a", "d"], "no value comes last"
    assert labels(lb.ordered(board, "-ua", METRICS)) == ["original", "a", "c", "b", "d"]
    assert labels(lb.ordered(board, "fid", METRICS)) == ["original", "b", "c", "a", "d"]
    assert labels(lb.ordered(board, None, METRICS)) == labels(board)
    with pytest.raises(UserError, match="unknown column 'uaa': did you mean ua"):
        lb.ordered(board, "uaa", METRICS)


def test_a_lower_bound_never_sorts_as_the_most_robust():
    board = make_board([made_record(name, scores={"ua": 0.5}) for name in ("a", "b", "c")], METRICS)
    found = [Worst(value, None, "relearn", tried, 9, True) for value, tried in ((0.3, 9), (-0.1, 8), (0.2, 9))]
    board = board.of(replace(row, worst={None: worst}) for row, worst in zip(board, found, strict=True))
    assert labels(lb.ordered(board, "robustness", METRICS)) == ["c", "a", "b"]


def test_columns_of_an_axis():
    every = lb.choose_columns(None, METRICS)
    utility = lb.narrowed(every, "utility", METRICS)
    assert {"ra", "fid", "utility"} <= set(utility)
    assert not {"ua", "unlearn_time", "erasure"} & set(utility)
    both = lb.narrowed(every, "utility, cost", METRICS)
    assert set(both) == set(utility) | set(lb.narrowed(every, "cost", METRICS))
    assert lb.narrowed(every, None, METRICS) == every
    with pytest.raises(UserError, match="unknown axis 'speed'"):
        lb.narrowed(every, "speed", METRICS)


def test_intervals_stand_in_place_of_deviations():
    board = make_board([made_record("a", scores={"ua": 0.5}), made_record("b", scores={"ua": 0.4})], METRICS)
    (sheet,) = lb.tables(board, METRICS, ["ua"], intervals=True)
    assert [row[-1] for row in sheet.sections[0][1]] == ["50.0 [40.0, 60.0]", "40.0 [30.0, 50.0]"]
    marked = make_board([*several("a", apart(0.5, 0)), *several("b", apart(0.3, 1))], METRICS)
    (sheet,) = lb.tables(marked, METRICS, ["ua"], intervals=True)
    assert sheet.sections[0][1][0][-1].startswith("50.0* [")
    assert "± " not in sheet.caption
    assert "95 % interval" in sheet.caption


def test_only_some_methods_are_marked_among_themselves_and_keep_their_scores():
    needs = {"requires": ("concept",)}
    values = {"original": (0.0, 1.0), "retrain": (1.0, 1.0), "destroy": (1.0, 0.0), "a": (0.4, 0.8), "b": (0.9, 0.7)}
    records = [
        made_record(name, seed, {"ua": ua, "ra": ra, "fid": 100 if name == "destroy" else 1}, method_changes=needs)
        for place, (name, (mean, ra)) in enumerate({**values, "c": (0.1, 0.9)}.items())
        for seed, ua in enumerate(apart(mean, place))
    ]
    whole = make_board(records, METRICS, forget_frame)
    some = make_board(records, METRICS, forget_frame, only=["a", "c"])
    assert labels(some) == ["a", "c"]
    assert row(some, "a").score == row(whole, "a").score == pytest.approx(0.4, abs=1e-3)
    assert (row(whole, "b").ua_mark, row(some, "a").ua_mark) == ("best", "best")
    assert row(whole, "a").ua_mark not in ("best", "not worse")


def test_a_caption_says_protocol_seeds_judge_and_hardware():
    records = [made_record("esd", seed, {"ua": 0.5}) for seed in (0, 1, 2, 5)]
    (sheet,) = lb.tables(make_board(records, METRICS), METRICS, ["ua"])
    for said in ("protocol default", "(0-2, 5)", f"Judge: {records[0].judge.name}", "Measured on: ", "forget 3"):
        assert said in sheet.caption, said


def test_rows_of_another_version_are_marked_and_counted(monkeypatch):
    old = made_record("esd", scores={"ua": 0.5}, engine_hash="0" * 64)
    records = [old, made_record("salun", scores={"ua": 0.4})]
    (sheet,) = lb.tables(make_board(records, METRICS), METRICS, ["ua"])
    assert "flags" not in sheet.heads and "version" not in sheet.note, "code that is not known is not called older"
    monkeypatch.setattr(identity, "standing", lambda kind, name, hash: "older" if hash == "0" * 64 else "unknown")
    board = make_board(records, METRICS)
    (sheet,) = lb.tables(board, METRICS, ["ua"])
    assert {cells[0]: cells[-1] for _, rows in sheet.sections for cells in rows} == {
        "esd": "other version", "salun": "",
    }  # fmt: skip
    assert "(engine): 1 of 2 rows" in sheet.note
    assert row(board, "esd")["flags"] == "other version", "CSV and JSON say it too"
    assert any("other version: engine" in line for line in run_summary.run_notes([old], {}))


def test_spans_of_seeds():
    assert lb.spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert lb.spans([]) == ""


def test_no_records_make_an_empty_board():
    empty = make_board([], METRICS)
    assert len(empty) == 0 and empty.tables() == [] and empty.wide().empty


def test_gold_is_retrain_of_the_same_cell():
    like = made_record("esd")
    records = [
        made_record("retrain", 0),
        made_record("retrain", 1),
        made_record("retrain", 0, forget="5"),
        made_record("retrain", 0, protocol_changes={"hash": "b" * 64}),
        made_record("retrain", 0, method_changes={"division": "custom"}),
        made_record("salun"),
    ]
    assert run_summary.gold(records, like, "retrain") == records[:2]


def test_run_table_compares_with_the_original_and_the_gold():
    group, original = several("esd", [0.6, 0.8]), made_record("original", 0, {"ua": 0.1, "unlearn_time": 0.0})
    heads, rows = run_summary.metric_run_rows(group, original, several("retrain", [0.9]))
    assert heads == ["metric", "original", "change", "esd", "95 % interval", "retrain"]
    cells = {cells[0]: cells[1:] for cells in rows}
    assert [cells["UA (%) ↑"][i] for i in (0, 1, 2, 4)] == ["10.0", "+60.0", "70.0", "90.0"]
    assert cells["FID ↓"] == ["—"] * 5
    assert cells["unlearn time (s) ↓"][1] == "—", "costs of the original are no base to change from"
    heads, rows = run_summary.metric_run_rows(group[:1], original, [])
    assert heads == ["metric", "original", "change", "esd", "95 % interval"]
    assert rows[0][-1] == "50.0 … 70.0", "one run shows its own interval"
