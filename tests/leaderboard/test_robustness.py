"""Curves, excess over retrain, the worst case, and the tables and pictures made of them."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.compare.record_diff import record_differences
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import attacks as attack_table
from unlearnbench.leaderboard import robustness
from unlearnbench.leaderboard.board import board
from unlearnbench.leaderboard.formats import as_markdown
from unlearnbench.leaderboard.short import short_sheets
from unlearnbench.leaderboard.tables import sheet_width, tables
from unlearnbench.plots.attack_curves import attack_figure
from unlearnbench.records.schema import AttackRecord, write_record
from unlearnbench.statistics import difference, wilson
from unlearnbench.verification.validate import find_problems

METRICS = registry.load_metrics()


def attack(hits, spent=None, limit=100.0, **changes):
    """A result by hand."""
    spent = [0.0 if hit else limit for hit in hits] if spent is None else spent
    known = [hit for hit in hits if hit is not None]
    kept = [(hit, cost) for hit, cost in zip(hits, spent, strict=True) if hit is not None]
    area = sum(hit * (1 - cost / limit) for hit, cost in kept) / len(kept) if kept else None
    values = {
        "status": "ok" if known else "unreliable",
        "value": sum(known) / len(known) if known else None,
        "n": len(hits),
        "missing": len(hits) - len(known),
        "interval": wilson(sum(known), len(known)),
        "area": area,
        "limit": limit,
        "recovered": tuple(hits),
        "spent": tuple(float(cost) for cost in spent),
        "box": "white",
        "unit": "model evaluations",
        "settings": {"lr": 0.1},
        "code_hash": "c" * 64,
        "key": "k" * 64,
    }
    return AttackRecord(**{**values, **changes})


def skipped(applies=True, reason="no gradient"):
    return attack([], limit=0.0, status="skipped", reason=reason, applies=applies, value=None, interval=None)


def record(method, attacks, seed=0, ua=0.95, **changes):
    return made_record(method, seed, {"ua": ua, "ra": 0.9}, attacks=attacks, images=f"{method}{seed}", **changes)


def share(hits, of=20):
    return attack([True] * hits + [False] * (of - hits))


# ---- curves --------------------------------------------------------------------------------------------------------


def test_a_curve_steps_up_where_targets_are_recovered():
    one = attack([True, True, False, True], [0, 50, 100, 20])
    assert robustness.curve([one]) == [(0, 0.25), (20, 0.5), (50, 0.75), (100, 0.75)]


def test_a_curve_leaves_missing_targets_out():
    assert robustness.curve([attack([True, None], [10, 10])]) == [(0, 0), (10, 1), (100, 1)]
    assert robustness.curve([attack([None, None], [1, 1])]) == []
    assert robustness.curve([skipped()]) == []


def test_a_curve_of_several_seeds_is_over_all_their_targets():
    seeds = [attack([True, False], [0, 100]), attack([True, True], [50, 50])]
    assert robustness.curve(seeds) == [(0, 0.25), (50, 0.75), (100, 0.75)]


def test_the_area_is_that_below_the_curve():
    one = attack([True, True, False, True], [0, 50, 100, 20])
    points = robustness.curve([one])
    below = sum(share * (after[0] - cost) for (cost, share), after in pairwise(points)) / 100
    assert one.area == pytest.approx(below)


# ---- excess --------------------------------------------------------------------------------------------------------


def test_what_counts_is_the_excess_over_retrain():
    own, gold = record("esd", {"relearn": share(15)}), record("retrain", {"relearn": share(5)})
    found = robustness.attack_result([own], [gold], "relearn")
    assert (found.value, found.excess, found.excess_area) == (0.75, 0.5, 0.5)
    low, high = found.excess_interval
    assert low < 0.5 < high


def test_newcombes_interval_is_that_of_his_paper():
    """Newcombe (1998), table II, case (a), method 10: 56/70 - 48/80 has 0.0524 to 0.3339."""
    low, high = difference((56 / 70, wilson(56, 70)), (48 / 80, wilson(48, 80)))
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert difference((0.5, None), (0.5, (0.4, 0.6))) is None


def test_without_retrain_there_is_no_excess():
    found = robustness.attack_result([record("esd", {"relearn": share(15)})], [], "relearn")
    assert (found.value, found.excess) == (0.75, None)


def test_a_floor_of_other_settings_is_none():
    gold = record("retrain", {"relearn": attack([False] * 20, settings={"lr": 0.2})})
    assert robustness.attack_result([record("esd", {"relearn": share(15)})], [gold], "relearn").excess is None


def test_seeds_are_averaged_and_equal_runs_are_one():
    seeds = [record("esd", {"relearn": share(hits)}, seed) for seed, hits in enumerate((5, 10, 15))]
    found = robustness.attack_result(seeds, [], "relearn")
    assert found.value == pytest.approx(0.5)
    assert found.interval[0] < 0.25  # t over three seeds
    same = [record("esd", {"relearn": share(5)}, seed) for seed in range(3)]
    assert robustness.attack_result(same, [], "relearn").interval == wilson(5, 20)


def test_a_method_that_was_not_attacked_has_nothing():
    assert robustness.attack_result([record("esd", {})], [], "relearn") is None


# ---- the worst case ------------------------------------------------------------------------------------------------


def everything(**found):
    """The whole ensemble on one method, at 1 of 20 unless said."""
    return {label: share(1) for label in STANDARD} | {name.replace("__", "@"): one for name, one in found.items()}


def worst(own, gold=None, box=None):
    gold = [] if gold is None else [record("retrain", gold)]
    every = {label: robustness.attack_result([record("esd", own)], gold, label) for label in STANDARD}
    return robustness.worst(every, box)


def test_the_worst_case_is_the_largest_share_of_the_ceiling_not_the_largest_asr():
    own = everything(relearn=share(18), p4d=share(12))
    gold = everything(relearn=share(17), p4d=share(2))
    found = worst(own, gold)
    assert (found.label, found.value, found.over_retrain) == ("p4d", pytest.approx(0.5 / 0.9), True)
    assert (found.excess, found.ceiling) == (pytest.approx(0.5), pytest.approx(0.9))
    assert not found.bound
    assert worst(own).label == "relearn"


@pytest.mark.parametrize("gap", [skipped(), attack([None] * 20, status="unreliable")], ids=["skipped", "missing"])
def test_an_attack_that_is_skipped_or_missing_never_counts_as_survived(gap):
    found = worst(everything(p4d=gap, relearn=share(4)))
    assert (found.value, found.bound) == (0.2, True)
    assert (found.tried, found.of) == (len(STANDARD) - 1, len(STANDARD))


def test_an_attack_that_was_not_tried_makes_a_lower_bound():
    found = worst({"relearn": share(4)})
    assert (found.value, found.bound, found.tried) == (0.2, True, 1)


def test_an_attack_that_the_task_does_not_allow_is_left_out():
    text = ("unlearndiffatk", "p4d", "ring_a_bell", "prompt_ladder")
    found = worst(everything(**{label: skipped(applies=False) for label in text}))
    assert not found.bound
    assert found.of == len(STANDARD) - len(text)


def test_where_nothing_has_a_value_there_is_no_worst_case():
    found = worst({label: skipped() for label in STANDARD})
    assert (found.value, found.tried) == (None, 0)
    assert worst({}) is None


def test_black_box_is_reported_apart_from_white_box():
    own = everything(prompt_ladder=share(8), concept_inversion=share(14))
    assert (worst(own, box="black").label, worst(own, box="black").value) == ("prompt_ladder", 0.4)
    assert (worst(own, box="white").label, worst(own, box="white").value) == ("concept_inversion", 0.7)


def hits(rng, shares, runs, targets=40):
    """Hits by seed of runs on shared targets, some of which are easier than others for every run."""
    easy = 0.3 * rng.choice([-1, 1], targets)
    return {seed: tuple(bool(hit) for hit in rng.random(targets) < shares + easy) for seed in range(runs)}


def equal_attacks(seed, count=8, own=0.5, floor=0.4):
    """Attacks that are equally strong on a method, and on retrain."""
    rng = np.random.default_rng(seed)
    made = {str(place): (hits(rng, own, 3), hits(rng, floor, 3)) for place in range(count)}
    sides = {name: [robustness.TargetHits.of(one) for one in both] for name, both in made.items()}
    return {name: robustness.Contest(*both) for name, both in sides.items()}


def test_the_largest_of_equal_attacks_is_too_large_and_the_cross_fitted_one_is_not():
    truth, largest, fitted, held = (0.5 - 0.4) / 0.6, [], [], []
    for seed in range(200):
        contests = equal_attacks(seed)
        whole = [(one.own.hits.mean(), one.floor.hits.mean()) for one in contests.values()]
        largest.append(max((own - floor) / (1 - floor) for own, floor in whole))
        found = robustness.cross_fitted(contests)
        fitted.append(found.value)
        held.append(found.interval[0] <= truth <= found.interval[1])
    assert np.mean(largest) > truth + 0.1
    assert np.mean(fitted) == pytest.approx(truth, abs=3 * np.std(fitted) / 200**0.5)
    assert np.mean(held) >= 0.95


def test_the_interval_is_wider_for_more_attacks_and_for_more_comparisons():
    def width(count, comparisons):
        low, high = robustness.cross_fitted(dict([*equal_attacks(0).items()][:count]), comparisons).interval
        return high - low

    assert width(1, 1) < width(1, 10) < width(1, 100)
    one = equal_attacks(0, count=1)["0"]
    many = robustness.cross_fitted({str(place): one for place in range(8)})
    assert many.value == robustness.cross_fitted({"0": one}).value, "copies of one attack change no estimate"
    assert many.interval[1] > robustness.cross_fitted({"0": one}).interval[1]


def test_an_attack_that_both_halves_choose_counts_with_all_targets():
    contest = equal_attacks(3, count=1)["0"]
    own, floor = contest.own.hits.mean(), contest.floor.hits.mean()
    found = robustness.cross_fitted({"0": contest})
    assert (found.own, found.floor, found.value) == pytest.approx((own, floor, (own - floor) / (1 - floor)))


def test_what_recovers_everything_has_a_share_of_one_whatever_the_floors():
    gold = everything(relearn=share(15), p4d=share(10))
    assert worst({label: share(20) for label in STANDARD}, gold).value == 1


def test_where_every_attack_recovers_retrain_there_is_no_worst_case_and_a_note():
    records = [record(name, {"relearn": share(20)}) for name in ("retrain", "esd")]
    (sheet,) = attack_table.attack_sheets(board(records, METRICS))
    assert {row[4] for _, rows in sheet.sections for row in rows} == {"—"}
    assert "targets: relearn" in sheet.note


def test_seeds_that_differ_widen_the_interval():
    def interval(numbers):
        own = [record("esd", {"relearn": share(count)}, seed) for seed, count in enumerate(numbers)]
        gold = [record("retrain", {"relearn": share(2)}, seed) for seed in range(3)]
        return robustness.worst({"relearn": robustness.attack_result(own, gold, "relearn")}).interval

    (low, high), (least, most) = interval((10, 10, 10)), interval((2, 10, 18))
    assert least < low and most > high


def test_an_attack_that_recovers_retrain_is_left_out_for_every_row():
    gold = everything(p4d=share(19), relearn=share(18))
    found = worst(everything(p4d=share(20), relearn=share(20)), gold)
    assert (found.label, found.left_out, found.bound) == ("relearn", ("p4d",), False), (
        "90 % of retrain is not above 90 %"
    )
    lacking = {label: one for label, one in everything().items() if label != "p4d"}
    rows = board([record("retrain", gold), record("esd", lacking)], METRICS)
    assert not rows.rows[1].stat("robustness").bound, "what tells nothing is not missed where it was not tried"
    (sheet,) = attack_table.attack_sheets(rows)
    assert "left out of the worst case, since they recover over 90 % of retrain's targets: p4d" in sheet.note


# ---- records -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 0.9}, "its targets give 0.5"),
        ({"n": 3}, "do not fit together"),
        ({"missing": 1}, "do not fit together"),
        ({"spent": (0.0, 200.0)}, "outside 0 to 100"),
        ({"spent": (-1.0, 100.0)}, "outside 0 to 100"),
        ({"value": None}, "the status is ok, but there is no value"),
    ],
)
def test_a_result_that_contradicts_its_targets_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        attack([True, False], **changes)


def test_validate_finds_an_area_that_is_not_its_targets(tmp_path):
    made = made_record("esd", attacks={"relearn": attack([True, False], area=0.9)})
    write_record(made, made.path(tmp_path))
    assert any(
        "the area of relearn is 0.9, its targets give 0.5" in problem.text for problem in find_problems(tmp_path)
    )


def test_diff_tells_what_attacks_found_otherwise():
    a = made_record("esd", attacks={"relearn": share(5), "p4d": share(1)})
    b = made_record("esd", attacks={"relearn": share(10), "latent_probe": share(1)})
    found = {row.what: row for row in record_differences(a, b) if row.group == "attack"}
    assert (found["relearn, ASR (%)"].a, found["relearn, ASR (%)"].b) == ("25.0", "50.0")
    assert found["relearn, ASR (%)"].change == "+25.0"
    assert (found["p4d"].a, found["p4d"].b) == ("ok", "not tried")
    assert found["latent_probe"].a == "not tried"


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.fixture
def records():
    """UCE is best by UA and falls; ESD stands; a filter cannot be searched by gradient."""
    text = {label: skipped(applies=False, reason="no text here") for label in ("ring_a_bell", "prompt_ladder")}
    return [
        record("original", everything(**text) | {"relearn": share(20)}, ua=0.05),
        record("retrain", everything(**text), ua=1.0),
        record("uce", everything(**text, concept_inversion=share(19)), ua=1.0),
        record("esd", everything(**text, concept_inversion=share(3), p4d=skipped()), ua=0.95),
        record("salun", {}, ua=0.97),
    ]


def test_the_board_has_a_column_of_the_worst_attack(records):
    result = board(records, METRICS).wide().set_index("method")
    assert result.robustness["uce"] == pytest.approx(0.9 / 0.95)
    assert (result.robustness_excess["uce"], result.robustness_ceiling["uce"]) == pytest.approx((0.9, 0.95))
    assert result.robustness_by["uce"] == "concept_inversion"
    assert result.concept_inversion_excess["esd"] == pytest.approx(0.1)
    assert result.robustness_bound["esd"]
    assert not result.robustness_bound["uce"]
    assert np.isnan(result.robustness.astype(float)["salun"])
    (sheet,) = tables(board(records, METRICS), METRICS, ["ua", "robustness"])
    cells = {row[0]: row[-1] for _, section in sheet.sections for row in section}
    assert (cells["uce"], cells["esd"], cells["salun"]) == ("94.7", "≥ 10.5", "—")


def test_the_short_table_names_the_worst_attack_with_excess_and_ceiling(records):
    gold = record("retrain", everything(relearn=share(4), p4d=share(6)), ua=1.0)
    more = [gold, *(one for one in records if one.method.name != "retrain")]
    more.append(record("mace", everything(relearn=share(19), p4d=share(20)), ua=1.0))
    more.append(record("mace", {}, ua=1.0, seed=1))

    def cells(of):
        (sheet,) = short_sheets(board(of, METRICS), METRICS)
        place = sheet.heads.index("worst attack (excess / ceiling) (%) ↓")
        return {row[0]: row[place] for _, section in sheet.sections for row in section}

    found = cells(more)
    assert found["mace"] == "93.3 (70.0/75.0) p4d (n=1)", "half under p4d, half under relearn, which ties elsewhere"
    assert (found["uce"], found["esd"], found["salun"]) == (
        "94.7 (90.0/95.0) concept_inversion", "≥10.5 (10.0/95.0) concept_inversion", "—",
    )  # fmt: skip
    assert found["retrain"] == "floor 30.0 p4d"
    alone = cells([one for one in more if one.method.name != "retrain"])
    assert alone["uce"] == "95.0 (ASR) concept_inversion", "without retrain there is no floor"


def test_the_two_rankings_stand_side_by_side_and_those_that_fall_are_named(records):
    (sheet,) = attack_table.attack_sheets(board(records, METRICS))
    rows = {
        row[0]: dict(zip(sheet.heads[2:], row[2:], strict=True)) for _, section in sheet.sections for row in section
    }
    ranks = {row[0]: (row[3], row[5]) for _, section in sheet.sections for row in section}
    assert ranks["uce"] == ("1 (1–2)", "1 (?)")  # UA of ten images each; a floor of one run
    assert ranks["esd"] == ("2 (1–2)", "")  # a lower bound is not ranked
    assert ranks["retrain"] == ("", "")  # controls are not ranked
    assert rows["uce"]["concept_inversion"] == "95.0 (+90.0 / 95.0)"
    assert rows["uce"]["excess / ceiling (%)"] == "90.0 / 95.0"
    assert rows["esd"]["p4d"] == "skipped"
    assert "prompt_ladder (black)" not in rows["esd"]
    assert "salun" not in rows
    assert "uce (94.7 by concept_inversion)" in sheet.note
    assert "ring_a_bell, prompt_ladder: no text here" in sheet.note
    assert "p4d on esd: no gradient" in sheet.note


def test_where_no_retrain_was_attacked_the_table_says_so(records):
    (sheet,) = attack_table.attack_sheets(board([r for r in records if r.method.name != "retrain"], METRICS))
    assert "no retrain was attacked here" in sheet.note
    assert "95.0" in dict((row[0], row[4]) for _, section in sheet.sections for row in section)["uce"]


def test_csv_and_markdown_have_every_attack(records):
    result = board(records, METRICS)
    back = pd.read_csv(StringIO(result.wide().to_csv(index=False)))
    assert {"relearn", "relearn_excess", "relearn_area", "robustness_white"} <= set(back)
    text = as_markdown(attack_table.attack_sheets(result))
    assert "latent_probe@0.9" in text


def test_a_board_without_attacks_has_no_table_of_them():
    result = board([made_record("esd", scores={"ua": 0.9})], METRICS)
    assert attack_table.attack_sheets(result) == []
    (sheet,) = tables(result, METRICS, ["ua", "robustness"])
    assert not any("worst attack" in head for head in sheet.heads)


def test_a_narrow_terminal_gets_fewer_attacks(records):
    result = board(records, METRICS)
    wide, narrow = (attack_table.fit_attacks(result, width)[0].heads for width in (1000, 140))
    assert len(narrow) < len(wide) == 10 + len(STANDARD) - 2


def test_a_terminal_of_eighty_columns_keeps_the_names(records):
    (sheet,) = attack_table.fit_attacks(board(records, METRICS), 80)
    assert sheet.heads == [
        "method",
        "n",
        "UA (%) ↑",
        "rank",
        "worst attack (%) ↓",
        "rank",
        "by",
        "excess / ceiling (%)",
    ]
    assert sheet_width(sheet) <= 80 + 3 + len(sheet.heads[-1]), "the terminal leaves the last one out"


def test_attacks_are_chosen_and_trials_with_a_budget_are_shown_where_chosen(records):
    trial = made_attacks = dict(records[-2].attacks) or dict(records[0].attacks)
    label = next(iter(made_attacks))
    trial = {**trial, f"{label}+budget=7": made_attacks[label]}
    some = [*records[1:], records[0].model_copy(update={"attacks": trial})]
    result = board(some, METRICS)
    assert not any("budget" in head for head in attack_table.attack_sheets(result)[0].heads)
    (sheet,) = attack_table.attack_sheets(result, chosen=f"{label}+budget=7")
    assert sheet.heads[-1].startswith(f"{label}+budget=7")
    assert f"{label}+budget=7_area" in attack_table.attack_frame(result, f"{label}+budget=7")
    assert f"{label}_area" not in attack_table.attack_frame(result, f"{label}+budget=7")
    with pytest.raises(UserError, match="unknown attack among the records 'relearm'"):
        attack_table.attack_sheets(result, chosen="relearm")


def test_the_picture_has_a_panel_an_attack(records):
    attacked = [record for record in records if record.attacks]
    drawn = attack_figure("a title", {record.method.name: [record] for record in attacked})
    labels = {label for record in attacked for label, attack in record.attacks.items() if attack.value is not None}
    assert {axes.get_label() for axes in drawn.axes} >= labels
    assert attack_figure("a title", {"salun": [records[-1]]}) is None


def test_rows_without_a_worst_case_stand_beside_others(records):
    """pandas makes a number of an unknown text: it was a traceback, or "nan"."""
    odd = record("sfron", {"sequential": share(3)}, ua=0.9)
    (sheet,) = attack_table.attack_sheets(board([*records, odd], METRICS))
    text = as_markdown([sheet])
    assert "nan" not in text
    rows = {row[0]: dict(zip(sheet.heads, row, strict=True)) for _, section in sheet.sections for row in section}
    assert rows["sfron"]["sequential"] == "15.0"
    assert rows["sfron"]["p4d"] == "—"  # not tried, which is not skipped
    assert rows["esd"]["p4d"] == "skipped"


def test_plain_asr_is_no_rival_of_an_excess(records):
    """An attack that retrain lacks does not make all of a method's values plain ASR."""
    own = everything(ring_a_bell=skipped(False), prompt_ladder=skipped(False)) | {"x": share(20)}
    result = board([*records, record("sfron", own, ua=0.99)], METRICS).wide().set_index("method")
    assert result.robustness_over_retrain["sfron"]
    assert result.robustness["sfron"] == 0.0


def test_an_attack_that_retrain_lacks_makes_a_bound():
    own, gold = everything(relearn=share(5)), everything()
    del gold["p4d"]
    found = worst(own | {"p4d": share(20)}, gold)
    assert (found.label, found.value, found.bound) == ("relearn", pytest.approx(0.2 / 0.95), True)


def test_an_unreliable_value_makes_a_bound():
    odd = attack([True] * 4 + [None] + [False] * 15, status="unreliable")
    assert worst(everything(p4d=odd)).bound


def test_a_search_that_broke_off_is_no_success_of_the_attack():
    torn = attack([True, None, None], status="unreliable", value=None, interval=None, area=None)
    found = robustness.attack_result([record("esd", {"p4d": torn})], [], "p4d")
    assert (found.value, found.missing) == (None, 2)
    several = [record("esd", {"p4d": one}, seed) for seed, one in enumerate((share(2), torn))]
    assert robustness.attack_result(several, [], "p4d").value == 0.1
    assert not robustness.attack_result(several, [], "p4d").sound


def test_retrain_has_no_excess_over_itself():
    gold = [record("retrain", {"relearn": share(7)})]
    found = robustness.attack_result(gold, gold, "relearn")
    assert (found.excess, found.excess_interval) == (0.0, None)


def test_where_no_retrain_was_attacked_the_main_table_says_asr(records):
    result = board([r for r in records if r.method.name != "retrain"], METRICS)
    (sheet,) = tables(result, METRICS, ["ua", "robustness"])
    cells = {row[0]: row[-1] for _, section in sheet.sections for row in section}
    assert (cells["uce"], cells["esd"]) == ("95.0 (ASR)", "≥ 15.0 (ASR)")


# ---- ranks -----------------------------------------------------------------------------------------------------------


def ranks_of(records):
    (sheet,) = attack_table.attack_sheets(board(records, METRICS))
    heads = [index for index, head in enumerate(sheet.heads) if head == "rank"]
    return {row[0]: tuple(row[index] for index in heads) for _, rows in sheet.sections for row in rows}, sheet.note


def seeds_of(method, count, runs, ua=0.9):
    attacks = everything(relearn=share(count, 100)) | {"concept_inversion": share(1, 100)}
    return [record(method, attacks, seed, ua) for seed in range(runs)]


def test_ranks_have_intervals_where_floors_are_of_three_runs():
    rivals = [*seeds_of("esd", 5, 3), *seeds_of("salun", 5, 3), *seeds_of("uce", 95, 3)]
    ranks, note = ranks_of([*seeds_of("retrain", 4, 3), *rivals])
    assert [ranks[name][1] for name in ("esd", "salun", "uce")] == ["1 (1–2)", "1 (1–2)", "3 (3)"]
    assert "floor of" not in note
    ranks, note = ranks_of([*seeds_of("retrain", 4, 2), *rivals])
    assert [ranks[name][1] for name in ("esd", "salun", "uce")] == ["1 (?)", "1 (?)", "3 (?)"]
    assert "floor of 2 retrain runs: esd, salun, uce" in note


def test_equal_runs_of_retrain_are_one_run():
    same = [one.model_copy(update={"images": "r"}) for one in seeds_of("retrain", 4, 3)]
    _, note = ranks_of([*same, *seeds_of("esd", 5, 3)])
    assert "floor of 1 retrain run: esd" in note


def test_ranks_by_ua_are_shared_where_intervals_overlap():
    records = [*seeds_of("esd", 5, 3, 0.9), *seeds_of("salun", 5, 3, 0.9), *seeds_of("uce", 5, 3, 0.1)]
    ranks, _ = ranks_of([*seeds_of("retrain", 4, 3), *records])
    assert [ranks[name][0] for name in ("esd", "salun", "uce")] == ["1 (1–2)", "1 (1–2)", "3 (3)"]


def test_the_table_says_where_runs_and_targets_are_few():
    _, note = ranks_of([*seeds_of("retrain", 4, 3), *seeds_of("esd", 5, 3), *seeds_of("uce", 5, 1)])
    assert "only 1 run attacked (of 3 or more): uce" in note
    assert "only 20 targets (of 100 or more): retrain, esd, uce" in note
