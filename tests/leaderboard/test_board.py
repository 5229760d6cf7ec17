"""Rows of the board: intervals by number of seeds, anchored scores, paired tests and marks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.leaderboard import run_summary
from unlearnbench.leaderboard.board import board, by_seed, estimate, weights_file
from unlearnbench.leaderboard.formats import formatted
from unlearnbench.leaderboard.robustness import distinct
from unlearnbench.report.table import status_texts
from unlearnbench.statistics import crossed, mcnemar, paired_t, t_interval, wilson

METRICS = registry.load_metrics()
WITH = {"method_changes": {"requires": ("concept",)}}


def several(method, values, name="ua", **changes):
    return [made_record(method, seed, {name: value}, **changes) for seed, value in enumerate(values)]


def controls(**found):
    """Records of the controls by name, from {metric: value}."""
    return {name: [made_record(name, 0, values)] for name, values in found.items()}


ANCHORS = controls(
    original={"ua": 0.1, "ra": 0.95, "fid": 1.0}, retrain={"ua": 0.9}, destroy={"ra": 0.15, "fid": math.e**5}
)


def pictures(hits):
    """Per-image UA by method and seed, as a board reads it."""

    def read(record):
        values = hits.get((record.method.name, record.seeds["unlearning"]))
        if values is None:
            return None
        about = {"group": "forget", "seed": range(len(values)), "ua": pd.array(values, dtype="Float64")}
        return pd.DataFrame(about)

    return read


def row(result, label):
    """A row as CSV and JSON have it."""
    wide = result.wide()
    return wide[wide.label == label].iloc[0]


def test_the_interval_follows_the_number_of_seeds():
    values = [0.2, 0.4, 0.9, 0.5, 0.6]
    assert estimate(several("esd", values[:1]), "ua").interval == pytest.approx((0.1, 0.3)), "the run's own"
    assert estimate(several("esd", values[:4]), "ua").interval == t_interval(values[:4])
    rng = np.random.default_rng(0)
    hits = (rng.random((5, 40)) < rng.random((1, 40))).astype(float)
    records = several("esd", hits.mean(axis=1))
    images = pictures({("esd", seed): hits[seed] for seed in range(5)})
    assert estimate(records, "ua", images).interval == pytest.approx(crossed(hits))
    assert estimate(records[:4], "ua", images).interval == t_interval(hits[:4].mean(axis=1))
    assert estimate(records, "ua").interval == pytest.approx(t_interval(hits.mean(axis=1))), (
        "without images, seeds alone"
    )


def test_images_that_a_run_misses_are_left_out_of_the_crossing():
    hits = (np.random.default_rng(1).random((5, 40)) < 0.6).astype(float)
    lost = hits.copy()
    lost[2, 7] = math.nan
    images = pictures({("esd", seed): lost[seed] for seed in range(5)})
    found = estimate(several("esd", hits.mean(axis=1)), "ua", images)
    assert found.interval == pytest.approx(crossed(np.delete(hits, 7, axis=1)))


def test_equal_shares_get_the_interval_of_all_runs_images():
    assert estimate(several("esd", [1.0] * 3), "ua").interval == wilson(30, 30)
    assert estimate(several("esd", [2.0] * 3, "fid"), "fid").interval == (2.0, 2.0)


@pytest.mark.parametrize(
    ("name", "values", "low", "high"),
    [
        ("ua", [0.98, 1.0, 1.0], None, 1.0),
        ("p_forget", [0.0, 0.01, 0.0], 0.0, None),
        ("entropy", [0.0, 0.1, 0.0], 0.0, None),
        ("fid", [0.01, 0.3, 0.02], 0.0, None),
        ("unlearn_time", [0.1, 9.0, 0.1], 0.0, None),
        ("kid", [0.0, 0.1, 0.0], None, None),
    ],
)
def test_no_interval_reaches_where_no_value_can_be(name, values, low, high):
    raw, found = t_interval(values), estimate(several("esd", values, name), name).interval
    assert found == (raw[0] if low is None else low, raw[1] if high is None else high)
    assert raw != found or name == "kid"


def test_missing_images_and_floors_are_counted():
    score = made_record(scores={"fid": 0.5}).scores["fid"]
    records = [
        made_record(seed=seed, scores={"fid": 0.5}).model_copy(
            update={"scores": {"fid": score.model_copy(update={"missing": seed, "floor": 0.25})}}
        )
        for seed in (1, 2)
    ]
    found = estimate(records, "fid")
    assert (found.missing, found.floor, found.n) == (3, 0.25, 10)
    (line,), (hint,) = run_summary.run_notes(records, {}), run_summary.lacking_controls([records], {})
    assert hint.endswith("unlearnbench run --method retrain,destroy --task digits-class --forget 3 --seeds 0-2")
    assert line == "real images score against the reference: FID 0.250"
    assert line in formatted(board(records, METRICS), METRICS, ["fid"], "markdown")
    assert estimate([], "fid").value is None


def test_scores_do_not_depend_on_other_methods_and_diverged_runs_have_none():
    base = [record for records in ANCHORS.values() for record in records]
    esd, salun = several("esd", [0.4, 0.6]), several("salun", [0.9, 1.0])
    gone = made_record("finetune", 0, status="diverged", step=3)
    one, all_ = board([*base, *esd], METRICS), board([*base, *salun, *esd, gone], METRICS)
    for name in ("erasure", "utility_ra", "score", "unscored", "ua", "ua_low", "ua_high"):
        assert row(one, "esd")[name] == row(all_, "esd")[name] or pd.isna(row(one, "esd")[name]), name
    assert pd.isna(row(all_, "finetune").erasure)
    assert row(all_, "retrain").erasure == pytest.approx(0.8 / 0.9), "the original's UA is 0.1, retrain's is 0.9"


def test_original_counts_for_every_seed_in_paired_tests():
    records = [*several("esd", [0.6, 0.8, 0.7]), made_record("original", 0, {"ua": 0.1})]
    found = row(board(records, METRICS), "esd")
    assert found.ua_p_original == pytest.approx(paired_t([0.6, 0.8, 0.7], [0.1] * 3))


def test_one_seed_is_compared_by_its_images():
    hits = {("esd", 0): np.array([1.0] * 9 + [0.0]), ("salun", 0): np.array([1.0, *[0.0] * 9])}
    records = [made_record(name, seed, {"ua": values.mean()}) for (name, seed), values in hits.items()]
    found = board(records, METRICS, pictures(hits))
    assert row(found, "salun").ua_p_best == pytest.approx(mcnemar(*hits.values()))
    assert pd.isna(row(board(records, METRICS), "salun").ua_p_best), "without images there is no test"


def test_seeds_without_randomness_count_as_one_run():
    """Three equal runs say nothing of other seeds: no spread, the interval of one run, and no certain p."""
    equal = several("uce", [0.7] * 3, images="i" * 64)
    assert len(distinct(equal)) == 1
    assert len(distinct(several("esd", [0.7] * 3))) == 3, "equal values of runs that are not known to be equal"
    found = estimate(equal, "ua")
    assert (found.value, found.sd, found.interval) == (0.7, None, equal[0].scores["ua"].interval)
    result = board([*equal, *several("esd", [0.6, 0.8, 0.7]), made_record("original", 0, {"ua": 0.1})])
    assert row(result, "uce").n == 1
    assert row(result, "esd").n == 3
    by_image = {("uce", 0): [1, 1, 1, 1, 1, 1, 0], ("original", 0): [0, 0, 0, 0, 0, 0, 0]}
    result = board([*equal, made_record("original", 0, {"ua": 0.1})], images=pictures(by_image))
    assert row(result, "uce").ua_p_original == pytest.approx(2 * 0.5**6), "McNemar within the one run"


def test_a_run_without_randomness_is_paired_with_every_seed_of_the_other():
    values = [0.6, 0.8, 0.75]
    records = [*several("uce", [0.9] * 3, images="i" * 64), *several("esd", values)]
    assert row(board(records), "esd").ua_p_best == pytest.approx(paired_t(values, [0.9] * 3))


def test_times_are_means_over_all_runs_even_if_these_are_equal():
    equal = several("uce", [1.0, 2.0, 3.0], "unlearn_time", images="i" * 64)
    assert estimate(equal, "unlearn_time").value == pytest.approx(2.0)


def test_p_values_of_a_table_are_adjusted_together():
    records = [made_record("original", 0, {"ua": 0.1})]
    values = {"esd": [0.6, 0.8, 0.7], "salun": [0.2, 0.3, 0.1], "finetune": [0.1, 0.12, 0.11]}
    for name, found in values.items():
        records += several(name, found)
    result = board(records, METRICS)
    raw = {name: paired_t(found, [0.1] * 3) for name, found in values.items()}
    assert row(result, "esd").ua_p_original == pytest.approx(3 * raw["esd"])
    assert row(result, "salun").ua_p_original == pytest.approx(
        max(3 * raw["esd"], 2 * min(raw["salun"], raw["finetune"]))
    )


def marks_of(result, name="ua"):
    return {one.label: one.stat(name).mark for one in result}


@pytest.mark.parametrize("seeds", [3, 5])
def test_marks_need_five_seeds_and_a_test(seeds):
    noise = np.random.default_rng(0).normal(0, 0.02, (2, seeds))
    near = [*several("esd", 0.8 + noise[0], **WITH), *several("salun", 0.79 + noise[1], **WITH)]
    clear = [*several("esd", 0.9 + noise[0], **WITH), *several("salun", 0.5 + noise[1], **WITH)]
    expected = {"esd": "not worse", "salun": "not worse"} if seeds == 5 else {"esd": None, "salun": None}
    assert marks_of(board(near, METRICS)) == expected, "nobody is the best where the first two are not told apart"
    expected = {"esd": "best" if seeds == 5 else None, "salun": None}
    assert marks_of(board(clear, METRICS)) == expected


def test_the_second_best_decides_whether_the_first_is_marked():
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 5))
    first, second = several("esd", 0.9 + noise[0]), several("salun", 0.5 + noise[1])
    few = several("uce", [0.7, 0.71, 0.69])
    found = marks_of(board([*first, *second, *few], METRICS))
    assert found == {"esd": "not worse", "salun": None, "uce": None}, "three seeds of the second are too few"
    other_seeds = [made_record("salun", 10 + seed, {"ua": value}) for seed, value in enumerate(0.5 + noise[1])]
    assert set(marks_of(board([*first, *other_seeds], METRICS)).values()) == {None}, "runs that share no seed"


def test_many_comparisons_need_a_clearer_difference():
    gap = np.array([0.02, 0.06, 0.05, 0.03, 0.02])
    first, second = several("esd", [0.9] * 5), several("salun", 0.9 - gap)
    assert marks_of(board([*first, *second], METRICS)) == {"esd": "best", "salun": None}
    others = [record for k in range(20) for record in several(f"other{k}", 0.899 - gap)]
    marks = marks_of(board([*first, *second, *others], METRICS))
    assert marks["esd"] == marks["salun"] == "not worse"


def test_equal_values_share_the_mark():
    marks = marks_of(board([*several("esd", [1.0] * 5), *several("salun", [1.0] * 5)], METRICS))
    assert marks == {"esd": "not worse", "salun": "not worse"}


def test_controls_and_unreliable_rows_are_never_the_best():
    noise = np.random.default_rng(0).normal(0, 0.02, (4, 5))
    records = [
        *several("retrain", 0.95 + noise[0]),
        *several("esd", 0.9 + noise[1], status="unreliable"),
        *several("salun", 0.5 + noise[2]),
        *several("finetune", 0.2 + noise[3]),
    ]
    expected = {"retrain": None, "esd": None, "salun": "best", "finetune": None}
    assert marks_of(board(records, METRICS)) == expected


def test_by_seed_keeps_what_there_is():
    records = [made_record(seed=2, scores={"ua": 0.5}), made_record(seed=1, scores={"ua": None}), made_record(seed=3)]
    assert by_seed(records, "ua") == {2: 0.5}


OTHERS = {
    "preset": "default", "division": "custom", "overrides": {"sha256": "780549a62da9"}, "requires": (),
    "settings": {"path": "/home/me/unlearned.pth", "sha256": "780549a62da9" + "0" * 52},
}  # fmt: skip


def test_weights_of_others_are_apart_with_their_files_name():
    theirs = made_record("checkpoint", 0, {"ua": 0.99, "unlearn_time": 0.0}, method_changes=OTHERS)
    mine = [
        made_record(name, seed, {"ua": ua + seed * step, "unlearn_time": 3.0}, method_changes={"requires": ()})
        for name, ua, step in (("safree", 0.5, 0.01), ("sld", 0.4, 0.02))
        for seed in range(5)
    ]
    result = board([theirs, *mine], METRICS)
    (found,) = (one for one in result if one.is_loaded)
    assert found.name == "checkpoint (unlearned.pth, sha256=780549a62da9)"
    assert found.section == "weights of others (data access unknown)"
    assert found.stat("ua").mark is None and not found.stat("unlearn_time").known
    assert {one.method: one.stat("ua").mark for one in result if not one.is_loaded} == {"safree": "best", "sld": None}
    short = formatted(result, METRICS, None, "markdown")
    assert short.index("with none") < short.index("weights of others")
    assert "unlearned.pth" in formatted(result, METRICS, ["ua"], "markdown"), "beside labels too"
    assert status_texts([theirs]) == ["file: unlearned.pth"] and status_texts(mine) == []


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("hub:org/set@0123abc/unet/a.safetensors", "org/set/unet/a.safetensors"),
        ("hub:org/set@0123abc", "org/set"),
        ("released:esd-nudity", "esd-nudity"),
        ("folder/pipeline/", "pipeline"),
    ],
)
def test_a_file_of_weights_is_named_without_folder_and_revision(path, shown):
    assert weights_file(made_record("checkpoint", method_changes={"settings": {"path": path}})) == shown


TUNED = {"method_changes": {"division": "tuned", "preset": "tuned"}}


def drawn(method, pictures, **changes):
    """Runs with these images, by seed from 0."""
    return [made_record(method, seed, {"ua": 0.5}, images=name * 64, **changes) for seed, name in enumerate(pictures)]


def test_settings_with_equal_images_are_one_row_that_names_both():
    records = [*drawn("esd", "abc"), *drawn("esd", "abc", **TUNED), *drawn("salun", "abc")]
    result = board(records, METRICS)
    assert [(one.label, one.name) for one in result] == [("esd", "esd (default = tuned)"), ("salun", "salun")]
    assert (row(result, "esd").twins, row(result, "esd").n) == ("esd@tuned", 3)
    for columns in (None, ["ua"]):
        assert "esd (default = tuned)" in formatted(result, METRICS, columns, "markdown")
    alone = board(records, METRICS, only=["esd@tuned"])
    assert [(one.label, one.name) for one in alone] == [("esd@tuned", "esd (tuned)")]


@pytest.mark.parametrize(
    ("tuned", "changes", "rows"),
    [
        ("abd", {}, 2),
        ("ab", {}, 2),
        ("abc", {"engine_hash": "0" * 64}, 2),
        ("abc", {"forget": "5"}, 2),
        ("abc", {"status": "diverged", "step": 3}, 2),
        ("abc", {}, 1),
    ],
    ids=["one seed differs", "a seed is missing", "another engine", "another table", "failed", "equal"],
)
def test_only_runs_that_are_equal_seed_by_seed_and_measured_alike_are_one_row(tuned, changes, rows):
    assert len(board([*drawn("esd", "abc"), *drawn("esd", tuned, **TUNED, **changes)], METRICS)) == rows


def test_a_method_without_randomness_equals_its_twin_whatever_the_seeds():
    (one,) = board([*drawn("uce", "aaa"), *drawn("uce", "a", **TUNED)], METRICS)
    assert (one.name, one.n) == ("uce (default = tuned)", 1)


def test_runs_whose_images_are_not_known_are_no_twins():
    assert len(board([*several("esd", [0.5]), *several("esd", [0.5], **TUNED)], METRICS)) == 2
