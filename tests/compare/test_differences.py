"""compare: pairs, differences, intervals and words, on planted records with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.support.small_world import made_record
from tests.support.tiny_pair import attacked, hits, planted
from unlearnbench.compare import wording
from unlearnbench.compare.differences import attack_rows, metric_rows
from unlearnbench.compare.pairs import paired, require_comparable, same_plan, side
from unlearnbench.errors import UserError
from unlearnbench.leaderboard.board import p_value
from unlearnbench.records import lineage
from unlearnbench.records.image_table import reader
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.reporting import told_by
from unlearnbench.statistics import difference, holm, mcnemar, paired_shares, paired_t, t_interval, wilson


def rows_of(a, b):
    return {row.name: row for row in metric_rows(side(a), side(b))}


def found(a, b):
    return wording.comparison(side(a), side(b))


def several(results, method, shares, first=0, **changes):
    """A record a seed with this many hits of 40 and 60; the folder."""
    for seed, (ua, ra) in enumerate(shares, first):
        path = planted(results, method, seed, hits(ua, 40), hits(ra, 60), **changes)
    return path.parent


def seeds(pairs):
    return [tuple(run.seed for run in pair) for pair in pairs]


def test_one_run_each_is_compared_image_by_image(tmp_path):
    a = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60))
    b = planted(tmp_path, "salun", 0, hits(30, 40)[::-1], hits(56, 60))
    rows = rows_of(a, b)
    assert (rows["ua"].a, rows["ua"].b, rows["ua"].change) == (0.75, 0.75, 0.0)
    left, right = np.array(hits(30, 40)), np.array(hits(30, 40)[::-1])
    assert rows["ua"].interval == paired_shares(right, left)
    assert rows["ua"].p == mcnemar(right, left) == 1.0
    assert rows["ra"].change == pytest.approx(0.1)
    assert rows["ra"].p == 2 * 0.5**6, "six images differ, all of them one way"
    assert (rows["ra"].runs, rows["ra"].images, rows["ra"].independent) == (1, 60, False)
    assert [rows["ua"].adjusted, rows["ra"].adjusted] == holm([rows["ua"].p, rows["ra"].p])


def test_swapping_a_and_b_turns_every_difference(tmp_path):
    a = several(tmp_path, "esd", [(30, 50), (33, 51), (29, 54)], other={"fid": 1.0})
    b = several(tmp_path, "salun", [(36, 40), (35, 44), (36, 41)], other={"fid": 1.5})
    there, back = rows_of(a, b), rows_of(b, a)
    assert there["ua"].change > 0.1
    for name, row in there.items():
        assert row.change == pytest.approx(-back[name].change)
        assert row.p == back[name].p
        if row.interval:
            assert row.interval == pytest.approx((-back[name].interval[1], -back[name].interval[0]))


def test_runs_pair_by_seed_and_the_interval_is_of_their_differences(tmp_path):
    a = several(tmp_path, "esd", [(30, 50), (33, 51), (29, 54)])
    b = several(tmp_path, "salun", [(36, 40), (35, 44), (36, 41)], first=1)
    assert seeds(paired(side(a), side(b))) == [(1, 1), (2, 2)]
    row = rows_of(a, b)["ua"]
    assert (row.a, row.b) == (pytest.approx((33 + 29) / 80), pytest.approx((36 + 35) / 80)), "of the pairs alone"
    gaps = [(36 - 33) / 40, (35 - 29) / 40]
    low, high = t_interval(gaps)
    assert row.interval == (pytest.approx(max(low, -1)), pytest.approx(min(high, 1))), "no difference is beyond 1"
    assert row.p == pytest.approx(paired_t([36, 35], [33, 29]))
    assert "not paired: seed 0 of A" in wording.notes(found(a, b))


def test_p_is_that_of_the_leaderboard(tmp_path):
    folders = [
        several(tmp_path, "esd", [(30, 50), (33, 51), (29, 54)]),
        several(tmp_path, "salun", [(36, 40), (35, 44), (36, 41)]),
        several(tmp_path, "original", [(2, 58)]),
        several(tmp_path, "sld", [(9, 55)] * 3),
    ]
    for a in folders:
        for b in folders:
            if a != b:
                left, right = side(a), side(b)
                expected = p_value(left.records, right.records, "ua", reader(tmp_path))
                assert expected is not None
                assert rows_of(a, b)["ua"].p == pytest.approx(expected), (a.name, b.name)


def test_what_is_the_same_for_every_seed_pairs_with_each(tmp_path):
    several_runs = several(tmp_path, "esd", [(30, 50), (33, 51), (29, 54)])
    original, still = several(tmp_path, "original", [(2, 58)]), several(tmp_path, "sld", [(9, 55)] * 3)
    assert seeds(paired(side(original), side(several_runs))) == [(0, 0), (0, 1), (0, 2)]
    assert seeds(paired(side(several_runs), side(still))) == [(0, 0), (1, 0), (2, 0)]
    assert seeds(paired(side(original), side(still))) == [(0, 0)]


def test_single_runs_of_other_seeds_are_paired_and_several_are_not(tmp_path):
    a, b = (several(tmp_path, "esd", [(30, 50)]), several(tmp_path, "salun", [(36, 40)], first=4))
    assert seeds(paired(side(a), side(b))) == [(0, 4)]
    b = several(tmp_path, "salun", [(36, 40), (35, 44)], first=4)
    assert paired(side(a), side(b)) == []
    row = rows_of(a, b)["ua"]
    assert (row.change, row.p, row.independent) == (pytest.approx(71 / 80 - 0.75), None, True)
    assert "nothing is paired: A and B have no unlearning seed in common" in wording.notes(found(a, b))


def test_without_images_the_runs_are_taken_as_independent(tmp_path):
    a = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60))
    b = planted(tmp_path, "salun", 0, hits(36, 40), hits(50, 60))
    near = rows_of(a, b)["ua"]
    a.with_suffix(".parquet").unlink()
    row = rows_of(a, b)["ua"]
    assert row.interval == pytest.approx(difference((0.9, wilson(36, 40)), (0.75, wilson(30, 40))))
    assert row.interval[1] - row.interval[0] > near.interval[1] - near.interval[0]
    assert (row.p, row.independent) == (None, True)
    notes = wording.notes(found(a, b))
    assert any("no per-image values" in line and str(a) in line for line in notes)
    assert any("independent" in line and line.endswith(": UA, RA") for line in notes)


def test_images_of_other_noise_are_not_paired(tmp_path):
    a = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60))
    b = planted(tmp_path, "salun", 0, hits(36, 40), hits(50, 60), noise=1)
    assert not same_plan(paired(side(a), side(b))[0])
    assert rows_of(a, b)["ua"].independent
    assert any("different prompts or noise" in line for line in wording.notes(found(a, b)))


def test_missing_images_are_left_out_in_pairs(tmp_path):
    lost = [math.nan, *hits(29, 39)]
    a = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60))
    b = planted(tmp_path, "salun", 0, lost, hits(50, 60), status="unreliable")
    row = rows_of(a, b)["ua"]
    assert row.images == 39
    assert row.interval == paired_shares(np.array(lost[1:]), np.array(hits(30, 40)[1:]))
    assert wording.describe_sides(found(a, b))[1].endswith("; unreliable (seed 0)")


def test_five_seeds_speak_of_other_images_too(tmp_path):
    a = several(tmp_path, "esd", [(30, 50), (33, 51), (29, 54), (31, 50), (30, 52)])
    b = several(tmp_path, "salun", [(36, 40), (35, 44), (36, 41), (37, 40), (34, 42)])
    assert "other unlearning seeds and other images" in wording.notes(found(a, b))[1]
    row = rows_of(a, b)["ua"]
    assert row.interval != pytest.approx(t_interval([6 / 40, 2 / 40, 7 / 40, 6 / 40, 4 / 40]))
    assert row.interval[0] < row.change < row.interval[1]


def test_costs_have_a_ratio_and_no_p_and_one_run_no_interval(tmp_path):
    a = several(tmp_path, "esd", [(30, 50)], other={"unlearn_time": 2.0, "prepare_time": 0.0})
    b = several(tmp_path, "salun", [(30, 50)], other={"unlearn_time": 5.0, "prepare_time": 1.0})
    rows = rows_of(a, b)
    assert (rows["unlearn_time"].ratio, rows["unlearn_time"].change) == (2.5, 3.0)
    assert rows["unlearn_time"].interval is rows["unlearn_time"].p is rows["prepare_time"].ratio is None
    assert wording.cells(rows["unlearn_time"]) == ["unlearn time (s) ↓", "2.0", "5.0", "+3.0 (2.50 x)", "—", "—"]


def test_metrics_that_one_has_or_that_are_not_known_here_are_shown(tmp_path):
    a = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60), other={"fid": None})
    b = planted(tmp_path, "salun", 0, hits(30, 40), hits(50, 60), other={"fid": 2.0, "kid": 0.5})
    for path, value in ((a, 0.25), (b, 0.5)):
        record = read_record(path)
        scores = {**record.scores, "novel": record.scores["ua"].model_copy(update={"value": value, "interval": None})}
        write_record(record.model_copy(update={"scores": scores}), path)
    rows = rows_of(a, b)
    assert (rows["fid"].a, rows["fid"].b, rows["fid"].change, rows["fid"].interval) == (None, 2.0, None, None)
    assert (rows["kid"].a, rows["kid"].b) == (None, 0.5)
    assert (rows["novel"].change, rows["novel"].interval) == (0.25, None)
    assert list(rows)[-1] == "novel"


def test_attacks_are_compared_target_by_target(tmp_path):
    left, right = [True, True, None, False] * 5, [False, True, True, False] * 5
    attacks = {"relearn": attacked(left), "mine": attacked(left)}
    a = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60), attacks=attacks)
    others = {"relearn": attacked(right), "mine": attacked(right, settings={"steps": 11}), "alone": attacked(right)}
    b = planted(tmp_path, "salun", 0, hits(30, 40), hits(50, 60), attacks=others)
    rows = {row.name: row for row in attack_rows(side(a), side(b))}
    assert set(rows) == {"relearn", "mine"}
    known = [(float(x), float(y)) for x, y in zip(left, right, strict=True) if x is not None]
    first, second = np.array(known).T
    assert rows["relearn"].p == mcnemar(first, second) == pytest.approx(2 * 0.5**5)
    assert rows["relearn"].interval == paired_shares(second, first)
    assert rows["relearn"].images == 15
    assert (rows["mine"].change, rows["mine"].p) == (None, None), "other settings are another attack"
    assert "worst standard attack: A ≥ 66.7 % by relearn (plain ASR)" in wording.worst_line(found(a, b))


def test_words_tell_a_difference_only_where_the_interval_excludes_zero(tmp_path):
    times = {"unlearn_time": 2.0}, {"unlearn_time": 6.0}
    a = several(tmp_path, "esd", [(20, 50), (21, 51), (20, 54)], other=times[0])
    b = several(tmp_path, "salun", [(36, 52), (38, 49), (36, 54)], other=times[1])
    words = wording.summary(found(a, b))
    drawn = [np.array([value for n in ns for value in hits(n, 40)]) for ns in ((36, 38, 36), (20, 21, 20))]
    seeds, images = t_interval([16 / 40, 17 / 40, 16 / 40]), paired_shares(*drawn)
    assert images[0] < seeds[0] < seeds[1] < images[1], "seeds that agree by chance prove no certainty"
    low, high = (100 * end for end in images)
    assert words.startswith(
        f"B (salun) forgets more (UA +40.8 points, {low:.1f} … {high:.1f}); no difference shown in RA ("
    )
    assert "forgets less" in wording.summary(found(b, a))


def test_time_is_told_where_it_differs_and_was_measured_on_one_device(tmp_path):
    def timed(method, values, **changes):
        for seed, value in enumerate(values):
            path = planted(
                tmp_path, method, seed, hits(20 + seed, 40), hits(50, 60), {"unlearn_time": value}, **changes
            )
        return path.parent

    a, b = timed("esd", [2.0, 2.2, 2.1]), timed("salun", [4.0, 4.5, 4.1])
    assert "takes 2.00 x the time" in wording.summary(found(a, b))
    elsewhere = timed("erasediff", [4.0, 4.5, 4.1], environment={"threads": 64})
    assert "time" not in wording.summary(found(a, elsewhere))
    assert any("different machines" in line for line in wording.notes(found(a, elsewhere)))


def test_identical_records_differ_in_nothing(tmp_path):
    a = several(tmp_path / "one", "esd", [(30, 50), (33, 51)])
    b = several(tmp_path / "two", "esd", [(30, 50), (33, 51)])
    both = found(a, b)
    assert {row.change for row in both.metrics} == {0.0}
    assert both.little == "nothing: the records are identical"
    assert wording.summary(both).startswith("no difference shown in UA (0.0")


def test_runs_that_came_to_nothing_are_said(tmp_path):
    a = several(tmp_path, "esd", [(30, 50)])
    record = made_record("salun", 0, status="diverged", step=12, reason="not finite")
    path = record.path(tmp_path)
    write_record(record, path)
    both = found(a, path)
    assert wording.describe_sides(both)[1].endswith("; diverged at step 12 (seed 0)")
    assert wording.notes(both)[0] == "nothing is paired: B has no run with scores"
    assert [(row.a, row.b, row.change) for row in both.metrics] == [(0.75, None, None), (50 / 60, None, None)]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"forget": "5"}, r"concept \(3 and 5\)"),
        ({"task": "digits-text"}, r"task \(digits-class and digits-text\)"),
        ({"protocol_changes": {"hash": "b" * 64}}, r"protocol \(default \(aaaaaaaa\) and default \(bbbbbbbb\)\)"),
    ],
)
def test_what_has_nothing_in_common_is_refused_with_what_could_be_compared(tmp_path, changes, what):
    a = several(tmp_path, "esd", [(30, 50)])
    several(tmp_path, "sld", [(30, 50)])
    b = several(tmp_path / "other", "salun", [(30, 50)], **changes)
    with pytest.raises(UserError, match=f"A and B differ in {what}: .*{a.parent}: sld$"):
        require_comparable(side(a), side(b))


def test_a_record_that_is_in_both_is_refused(tmp_path):
    a = several(tmp_path, "esd", [(30, 50), (31, 50)])
    with pytest.raises(UserError, match=r"A and B both have seed-1\.json of esd"):
        require_comparable(side(a), side(a / "seed-1.json"))


def test_a_record_is_found_by_any_of_its_files_and_a_folder_by_its_records(tmp_path):
    folder = several(tmp_path, "esd", [(30, 50), (31, 50)])
    for name in ("seed-1.json", "seed-1.parquet", "seed-1.png", "seed-1"):
        assert [run.seed for run in side(folder / name).runs] == [1], name
    assert [run.seed for run in side(folder).runs] == [0, 1]
    several(tmp_path, "sld", [(30, 50)])
    with pytest.raises(UserError, match="holds records of 2 methods: name one, such as"):
        side(tmp_path)
    with pytest.raises(UserError, match="no record at"):
        side(tmp_path / "nothing")
    several(tmp_path / "other", "esd", [(30, 50)], protocol_changes={"hash": "b" * 64})
    for file in (tmp_path / "other").rglob("seed-0.json"):
        file.rename(folder / "seed-7.json")
    with pytest.raises(UserError, match=r"differ in protocol .*: name one of them"):
        side(folder)


def test_runs_of_older_versions_are_left_out_and_named(tmp_path):
    known = lineage.known_hashes()["engine"]["digits-class"]
    shares = [(30, 50), (33, 51), (29, 54)]
    several(tmp_path, "esd", shares[:2], engine_hash=known["1"][0])
    folder = several(tmp_path, "esd", shares[2:], first=2, engine_hash=known["2"][0])
    said: list[str] = []
    with told_by(said.append):
        assert [run.seed for run in side(folder).runs] == [2]
    (line,) = said
    assert "seed-0.json, seed-1.json" in line and "other version: engine" in line
