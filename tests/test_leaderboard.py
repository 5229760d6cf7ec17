"""The leaderboard, on records made by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest

from tests.small_world import made_record
from unlearnbench import leaderboard as lb
from unlearnbench import registry
from unlearnbench.errors import UserError

METRICS = registry.load_metrics()


def row(board, label):
    (found,) = [row for _, row in board.iterrows() if row.label == label]
    return found


def several(method, values, **changes):
    return [made_record(method, seed, {"ua": value}, **changes) for seed, value in enumerate(values)]


def test_mean_deviation_and_interval_over_seeds():
    found = row(lb.board(several("esd", [0.2, 0.4, 0.9]), METRICS), "esd")
    assert found.n == 3
    assert found.ua == pytest.approx(0.5)
    sd = math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2)
    assert found.ua_sd == pytest.approx(sd)
    half = 4.302652729911275 * sd / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (found.ua_low, found.ua_high) == pytest.approx((0.5 - half, 0.5 + half))


def test_one_seed_has_no_spread():
    found = row(lb.board([made_record(scores={"ua": 0.5})], METRICS), "esd")
    assert (found.n, found.ua) == (1, 0.5)
    assert all(found[f"ua_{end}"] is None or math.isnan(found[f"ua_{end}"]) for end in ("sd", "low", "high"))


def test_adding_and_removing_a_method_leaves_the_other_rows():
    one, two = several("esd", [0.2, 0.4]), several("salun", [0.9, 0.8])
    alone, both = lb.board(one, METRICS), lb.board([*two, *one], METRICS)
    assert row(alone, "esd").equals(row(both, "esd"))
    for kind in ("markdown", "csv", "latex"):
        lines = lb.formatted(alone, METRICS, ["ua"], kind).splitlines()
        assert next(line for line in lines if "esd" in line) in lb.formatted(both, METRICS, ["ua"], kind).splitlines()


def test_the_order_of_records_does_not_matter():
    records = [*several("salun", [0.9, 0.8]), *several("esd", [0.2, 0.4])]
    assert lb.board(records, METRICS).equals(lb.board(records[::-1], METRICS))


def test_controls_come_first_then_the_alphabet():
    names = ["salun", "destroy", "esd", "original", "a_method", "retrain"]
    board = lb.board([made_record(name, scores={"ua": 0.5}) for name in names], METRICS)
    assert list(board.label) == ["original", "retrain", "destroy", "a_method", "esd", "salun"]


def test_settings_of_one_method_are_rows_of_their_own():
    changed = {"overrides": {"lr": 0.5}, "settings": {"lr": 0.5}, "division": "custom"}
    board = lb.board(
        [made_record(scores={"ua": 0.1}), made_record(method_changes=changed, scores={"ua": 0.9})], METRICS
    )
    assert list(board.label) == ["esd", "esd+lr=0.5"]
    assert list(board.ua) == [0.1, 0.9]


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
    board = lb.board(records, METRICS)
    assert sorted(board.ua) == [0.2, 0.8]
    assert list(board.n) == [1, 1]
    tables = lb.tables(board, METRICS, ["ua"])
    assert len(tables) == len({title for title, *_ in tables}) == 2
    assert lb.markdown(board, METRICS, ["ua"]).count("| method |") == 2


def test_what_went_wrong_is_flagged_and_counts_for_nothing():
    records = [
        made_record("esd", 0, {"ua": 0.2}),
        made_record("esd", 1, {"ua": 0.4}, status="unreliable"),
        made_record("esd", 2, status="diverged", reason="the loss is not finite at step 3"),
        made_record("esd", 3, status="skipped", reason="it needs xattn"),
    ]
    board = lb.board(records, METRICS)
    found = row(board, "esd")
    assert found.n == 2
    assert found.ua == pytest.approx(0.3)
    assert set(found["flags"].split(", ")) == {"unreliable 1/4", "diverged 1/4", "skipped 1/4"}
    ((_, heads, (cells,)),) = lb.tables(board, METRICS, ["ua"])
    assert (heads[-1], cells[-1]) == ("flags", found["flags"])


def test_a_method_that_only_failed_is_shown_without_numbers():
    board = lb.board([made_record(status="diverged", reason="r"), made_record("salun", scores={"ua": 0.5})], METRICS)
    ((_, heads, rows),) = lb.tables(board, METRICS, ["ua", "fid"])
    assert rows == [["esd", "0", "—", "—", "diverged 1/1"], ["salun", "1", "50.0", "—", ""]]
    assert heads[-1] == "flags"


def test_unknown_is_a_dash_in_tables_and_null_in_json():
    board = lb.board([made_record(scores={"ua": 0.5, "fid": None})], METRICS)
    assert "| esd | 1 | 50.0 | — | — |" in lb.markdown(board, METRICS, ["ua", "fid", "ra"])
    assert "esd & 1 & 50.0 & ---" in lb.latex(board, METRICS, ["ua", "fid"])
    (raw,) = json.loads(lb.as_json(board))
    assert (raw["ua"], raw["fid"], raw["ra"]) == (0.5, None, None)
    (cells,) = csv.DictReader(io.StringIO(lb.formatted(board, METRICS, ["ua"], "csv")))
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
    text = lb.latex(lb.board(records, METRICS), METRICS, ["ua"])
    assert "gradient\\_ascent" in text
    assert "UA (\\%) $\\uparrow$" in text
    assert "$\\pm$" in text
    body = "".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#]", body)
    assert text.isascii()


def test_latex_keeps_a_backslash():
    assert lb._escape("a\\b_c~d") == r"a\textbackslash{}b\_c\textasciitilde{}d"


def test_markdown_cells_are_as_many_as_heads():
    text = lb.markdown(lb.board(several("esd", [0.1, 0.2]), METRICS), METRICS, list(METRICS))
    counts = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert counts == {len(METRICS) + 3}


def test_columns_fit_the_terminal_and_the_headline_ones_come_first():
    board = lb.board(several("esd", [0.1, 0.2]), METRICS)
    assert lb.fitting(board, METRICS, 10_000) == list(METRICS)
    narrow = lb.fitting(board, METRICS, 60)
    assert "ua" in narrow
    assert len(narrow) < len(METRICS)
    assert narrow == [name for name in METRICS if name in narrow]


def test_chosen_columns():
    assert lb.chosen(None, METRICS) == list(METRICS)
    assert lb.chosen("fid, ua", METRICS) == ["fid", "ua"]
    with pytest.raises(UserError, match="unknown metric 'uaa': did you mean ua"):
        lb.chosen("uaa", METRICS)


def test_page_explains_every_column():
    board = lb.board([made_record(scores={"ua": 0.5})], METRICS)
    page = lb.page(board, METRICS, list(METRICS))
    for name, metric in METRICS.items():
        assert f"- {lb.head(metric)}: " in page, name
    assert "no evidence about Stable Diffusion" in page


def test_no_records_make_an_empty_board():
    assert lb.board([], METRICS).empty


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
    assert lb.gold(records, like) == records[:2]


def test_run_table_compares_with_the_original_and_the_gold():
    group, original = several("esd", [0.6, 0.8]), made_record("original", 0, {"ua": 0.1, "unlearn_time": 0.0})
    heads, rows = lb.run_rows(group, original, several("retrain", [0.9]))
    assert heads == ["metric", "original", "esd", "retrain", "change", "95 % interval"]
    cells = {cells[0]: cells[1:] for cells in rows}
    assert cells["UA (%) ↑"][:4] == ["10.0", "70.0", "90.0", "+60.0"]
    assert cells["FID ↓"] == ["—"] * 5
    assert cells["unlearn time (s) ↓"][3] == "—", "costs of the original are no base to change from"
    heads, rows = lb.run_rows(group[:1], original, [])
    assert heads == ["metric", "original", "esd", "change", "95 % interval"]
    assert rows[0][-1] == "50.0 … 70.0", "one run shows its own interval"
