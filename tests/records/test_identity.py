"""Runs are pooled, anchored, compared and replaced by what they are of, and never by their label alone."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.support.forget_frames import forget_frame
from tests.support.small_world import made_record, read_only, run_cell, write_nudge
from tests.support.tiny_pair import attacked, hits, planted
from unlearnbench import registry
from unlearnbench.compare import wording
from unlearnbench.compare.pairs import require_comparable, side
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import published, robustness, run_summary
from unlearnbench.leaderboard.board import board, board_scores
from unlearnbench.leaderboard.concept_effects import effects
from unlearnbench.pipeline.request import methods_of
from unlearnbench.plots.style import control_of
from unlearnbench.records import identity
from unlearnbench.records.folder import load_all
from unlearnbench.records.identity import describe_differences, group_records, left_out, matching, unique_labels
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.report import section

METRICS = registry.load_metrics()
CODE = {"method_changes": {"code_hash": "91ab23cd" * 8}}
JUDGE = {"name": "digits-cnn", "version": "1", "hash": "12ab34cd" * 8, "threshold": 0.5}
ORIGINAL = {"weights": {"original": "3fa2b1c0" * 8, "unlearned": "u" * 64}}
ENGINE = {"engine_hash": "798953e0" * 8}
FP16 = {"precision": "fp16", "numerics": {"unlearning": {"autocast": None, "tf32": []}}}
OTHERWISE = {
    "original 3fa2b1c0": ORIGINAL,
    "code 91ab23cd": CODE,
    "settings lr=0.001": {"method_changes": {"settings": {"lr": 0.001}}},
    "judge 12ab34cd": {"judge": JUDGE},
    "judge threshold 0.7": {"judge": {**JUDGE, "hash": "j" * 64, "threshold": 0.7}},
    "engine 798953e0": ENGINE,
    "data dada0000": {"data": "dada0000" * 8},
    "precision bf16": {"environment": {"threads": 1, "precision": "bf16"}},
    "precision float32 trained in TF32": {"environment": {"device_type": "cuda", "precision": "float32"}},
    "precision fp16 with adam8bit": {"environment": {"device_type": "cuda", **FP16, "memory": ["adam8bit"]}},
}


def made(method="esd", seed=0, ua=0.5, **changes):
    return made_record(method, seed, {"ua": ua, "ra": 0.9}, **changes)


@pytest.mark.parametrize(("suffix", "changes"), OTHERWISE.items(), ids=list(OTHERWISE))
def test_seeds_of_different_things_are_rows_of_their_own_named_by_what_differs(suffix, changes):
    records = [made(seed=0, ua=0.2), made(seed=1, ua=0.9, **changes), made(seed=2, ua=0.9, **changes)]
    result = board(records, METRICS).wide()
    rows = {row.label: (row.n, row.ua) for row in result.itertuples()}
    assert len(rows) == 2 and rows[f"esd ({suffix})"] == (2, pytest.approx(0.9))
    (other,) = set(rows) - {f"esd ({suffix})"}
    assert other.startswith("esd (") and rows[other] == (1, 0.2), "either has a suffix, for neither is the usual one"
    assert [len(group) for group in run_summary.group_runs(records)] == [1, 2]
    assert {key[-1] for key in section.group_by_label(records)} == set(rows)


def test_seeds_from_other_devices_and_times_are_one_row():
    records = [made(seed=0), made(seed=1, environment={"threads": 64, "device": "H200"}, created="2026-02-02")]
    assert [row.label for row in board(records, METRICS)] == ["esd"]
    assert unique_labels(group_records(records)) == {identity.record_identity(records[0]): "esd"}


def test_convolutions_in_tf32_are_another_precision_where_training_took_them():
    """Records from before training did without them do not say so."""

    def precision(**environment):
        return identity.record_identity(made(environment={"device_type": "cuda", **environment})).precision

    exact, rounded = ({"unlearning": {"autocast": None, "tf32": tf32}} for tf32 in ([], ["convolutions"]))
    assert precision(precision="float32", numerics=exact) == "float32"
    assert (
        precision(precision="float32", numerics=rounded) == "float32 trained in TF32" == precision(precision="float32")
    )
    assert precision(precision="bf16") == "bf16"
    assert identity.record_identity(made(environment={"precision": "float32"})).precision == "float32"


def test_several_differences_are_named_together_and_without_commas():
    settings = {"method_changes": {"settings": {"lr": 0.1, "parts": ["a", "b"]}, "code_hash": "91ab23cd" * 8}}
    names = list(unique_labels(group_records([made(), made(seed=1, **settings)])).values())
    assert names[1] == 'esd (code 91ab23cd; settings parts=["a" "b"])'
    assert all("," not in name for name in names), "commas separate names in options"


def test_names_that_begin_alike_stay_apart():
    one, other = ({"engine_hash": "0" * 20 + digit * 44} for digit in "12")
    assert len(set(unique_labels(group_records([made(**one), made(seed=1, **other)])).values())) == 2


def test_rows_can_be_chosen_by_label_name_or_what_sets_them_apart():
    records = [made(), made(seed=1, **CODE), made("salun")]
    assert len(board(records, METRICS, only=["esd"])) == 2
    assert [row.label for row in board(records, METRICS, only=["esd (code 91ab23cd)"])] == ["esd (code 91ab23cd)"]


def test_code_that_is_known_to_give_equal_numbers_is_one_row(monkeypatch):
    monkeypatch.setattr(identity, "lineage", lambda kind, name, hash: f"{name} v1" if kind == "method" else hash)
    records = [made(seed=0), made(seed=1, **CODE)]
    (row,) = board(records, METRICS).wide().itertuples()
    assert (row.label, row.n) == ("esd", 2)


# ---- controls ------------------------------------------------------------------------------------------------------


def anchored_by(changed="original", **changes):
    values = {"original": (0.0, 0.9), "retrain": (1.0, 0.9), "destroy": (1.0, 0.1)}
    return [
        made_record(name, seed, {"ua": ua, "ra": ra}, **(changes if name == changed else {}))
        for name, (ua, ra) in values.items()
        for seed in (range(3) if name == "retrain" else (0,))
    ]


@pytest.mark.parametrize(
    ("what", "changes"),
    [("original", ORIGINAL), ("judge", {"judge": JUDGE}), ("engine version", ENGINE), ("data", {"data": "d" * 64})],
)
def test_a_control_of_something_else_anchors_no_row(what, changes):
    result = board([*anchored_by(**changes), made()], METRICS).wide()
    (row,) = result[result.label == "esd"].itertuples()
    assert pd.isna(row.erasure) and pd.isna(row.score)
    assert f"erasure: original is of another {what}" in row.unscored
    fits = board([*anchored_by(), made()], METRICS, forget_frame).wide()
    assert fits[fits.label == "esd"].erasure.item() == pytest.approx(0.5)
    assert not pd.isna(fits[fits.label == "esd"].likeness.item())


def test_controls_that_fit_are_found_beside_others_that_do_not():
    strange = made_record("original", 1, {"ua": 0.3, "ra": 0.9}, **ENGINE)
    result = board([*anchored_by(), strange, made()], METRICS).wide()
    assert result[result.label == "esd"].erasure.item() == pytest.approx(0.5)
    strange = made_record("retrain", 1, {"ua": 0.3, "ra": 0.9}, **ENGINE)
    assert matching([strange], made(), "retrain") == ([], "retrain is of another engine version")
    assert matching([], made(), "retrain") == ([], None)
    (note,) = run_summary.lacking_controls([[made()]], {}, {"retrain": "retrain is of another engine version"})
    assert "retrain is of another engine version" in note and note.endswith("--force")


def test_scores_by_other_code_of_a_metric_are_no_anchor():
    controls = {record.method.name: [record] for record in anchored_by()}
    original = controls["original"][0]
    changed = original.scores["ua"].model_copy(update={"code_hash": "d" * 64})
    controls["original"] = [original.model_copy(update={"scores": {**original.scores, "ua": changed}})]
    assert "erasure: original is of another metric code" in board_scores([made()], controls).unscored


def test_methods_that_were_measured_otherwise_are_not_tested_against_each_other():
    records = [made_record("original", 0, {"ua": 0.1}), *(made("esd", seed, 0.5 + seed / 10) for seed in range(3))]
    records += [made("salun", seed, 0.1 + seed / 10, **ENGINE) for seed in range(3)]
    result = board(records, METRICS).wide().set_index("label")
    assert pd.isna(result.ua_p_original["salun"]) and not pd.isna(result.ua_p_original["esd"])
    assert pd.isna(result.ua_p_best["salun"]) and pd.isna(result.ua_mark["salun"])


def test_attacks_are_held_against_retrain_of_the_same_settings_code_and_engine():
    label = "relearn"

    def fought(settings=None, **changes):
        attack = attacked([True, True, False, False], **(settings or {}))
        return [
            *anchored_by("retrain", attacks={label: attack}, **changes),
            made(attacks={label: attacked([True] * 4)}),
        ]

    def excess(records):
        result = board(records, METRICS).wide()
        return result[result.label == "esd"][f"{label}_excess"].item()

    assert excess(fought()) == pytest.approx(0.5)
    for apart in ({"settings": {"steps": 99}}, {"code_hash": "f" * 64}):
        assert pd.isna(excess(fought(apart))), apart
    assert pd.isna(excess(fought(**ENGINE)))


# ---- seeds of one row ----------------------------------------------------------------------------------------------


def rescored(record, metric, code="d" * 64):
    score = record.scores[metric].model_copy(update={"code_hash": code})
    return record.model_copy(update={"scores": {**record.scores, metric: score}})


def test_a_metric_pools_the_seeds_that_its_own_code_scored():
    records = [made(seed=0, ua=0.4), rescored(made(seed=1, ua=0.9), "ua"), made(seed=2, ua=0.6)]
    (row,) = board(records, METRICS).wide().itertuples()
    assert row.ua == pytest.approx(0.5) and row.ra == pytest.approx(0.9)
    assert row.flags == "ua: seeds 1 of other metric code left out"
    assert left_out(records[:1]) == []


def test_of_equally_many_the_newest_count():
    old, new = made(seed=0, ua=0.4), rescored(made(seed=1, ua=0.9, created="2027-01-01T00:00:00+00:00"), "ua")
    assert board([old, new], METRICS).rows[0].stat("ua").value == 0.9


def test_an_attack_pools_the_seeds_of_the_same_settings_and_code():
    attacks = [attacked([True] * 4), attacked([False] * 4), attacked([False] * 4)]
    attacks[0] = attacks[0].model_copy(update={"code_hash": "f" * 64})
    records = [made(seed=seed, attacks={"relearn": one}) for seed, one in enumerate(attacks)]
    assert robustness.attack_result(records, [], "relearn").value == 0
    assert left_out(records) == ["relearn: seeds 0 of other attack code or settings left out"]


# ---- other tables --------------------------------------------------------------------------------------------------


def test_published_numbers_stand_beside_runs_of_one_thing():
    row = published.Published("digits-class", "3", "esd", "ua", 1.0, "not said", "paper", "verified", "")
    lines = published.compare_published([row], [made(ua=0.2), made(seed=1, ua=0.9, **CODE)], METRICS)
    assert {(line[3], line[4]) for line in lines} == {
        ("20.0", "default: esd (code mmmmmmmm)"),
        ("90.0", "default: esd (code 91ab23cd)"),
    }
    assert [line[4] for line in published.compare_published([row], [made()], METRICS)] == ["default"]


def test_effects_are_against_the_original_that_was_measured_alike():
    frames = {("original", 0): [1, 1], ("original", 1): [1, 0], ("esd", 0): [0, 0], ("esd", 1): [0, 0]}

    def images(record):
        found = frames[record.method.name, record.seeds["unlearning"]]
        return pd.DataFrame({"group": "retain", "concept": "1", "ra": pd.array(found, dtype="Float64")})

    records = [made(name, seed, **(ENGINE if seed else {})) for name in ("original", "esd") for seed in (0, 1)]
    found = effects(records, images)
    changes = dict(zip(found.label, found.change, strict=True))
    assert (changes["esd (engine eeeeeeee)"], changes["esd (engine 798953e0)"]) == (-1.0, -0.5)


def test_a_control_is_drawn_as_one_whatever_sets_it_apart():
    assert control_of("original (engine 798953e0)") == "original"
    assert control_of("retrain@published+lr=1 (code 12ab)") == "retrain"
    assert control_of("esd (original 3fa2b1c0)") is None


def test_compare_refuses_a_side_of_several_versions(tmp_path):
    first = planted(tmp_path, "esd", 0, hits(30, 40), hits(50, 60))
    planted(tmp_path, "esd", 1, hits(30, 40), hits(50, 60), **CODE)
    with pytest.raises(UserError, match=r"differ in method code \(mmmmmmmm and 91ab23cd\).*seed-1.json"):
        side(first.parent)
    assert side(first).label == "esd"


def test_compare_says_where_originals_differ_and_names_equal_labels_apart(tmp_path):
    a = side(planted(tmp_path / "a", "esd", 0, hits(30, 40), hits(50, 60)))
    b = side(planted(tmp_path / "b", "esd", 0, hits(35, 40), hits(50, 60), **ORIGINAL))
    require_comparable(a, b)
    found = wording.comparison(a, b)
    assert any("differ in original (oooooooo and 3fa2b1c0)" in line for line in wording.notes(found))
    assert [line.split(",")[0] for line in wording.describe_sides(found)] == [
        "A: esd (original oooooooo)",
        "B: esd (original 3fa2b1c0)",
    ]


def test_differences_name_both_values():
    one, other = (identity.record_identity(record) for record in (made(), made(**CODE)))
    assert describe_differences(one, other, ", now ") == ["method code (mmmmmmmm, now 91ab23cd)"]
    assert describe_differences(one, one) == []


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_two_methods_of_one_name_are_refused(tmp_path):
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        paths.append(str(write_nudge(tmp_path / name)))
    with pytest.raises(UserError, match=r"two methods nudge, .*a/nudge.py and .*b/nudge.py"):
        methods_of(paths, {})
    same = [paths[0], str(tmp_path / "a" / ".." / "a" / "nudge.py")]
    assert [cls.name for _, cls in methods_of(same, {})] == ["nudge"], "one file, named twice"


@pytest.mark.usefixtures("small")
def test_a_record_of_other_code_is_replaced_by_force_alone(tmp_path, fresh_store, monkeypatch):
    here, method = tmp_path / "here", write_nudge(tmp_path)
    kept = run_cell(method, fresh_store, here)
    method.write_text(method.read_text().replace("0.01", "0.02"))
    monkeypatch.setattr("unlearnbench.pipeline.runner.unlearn", lambda *about: pytest.fail("refused only after work"))
    with pytest.raises(UserError, match=r"seed-0.json .*differs in method code \(\w{8}, now \w{8}\).*--force"):
        run_cell(method, fresh_store, here)
    assert read_only(here) == kept
    monkeypatch.undo()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("more", [(), ("--jobs", "1")], ids=["here", "launched"])
def test_the_command_refuses_before_any_cell_is_run(cli, tmp_path, monkeypatch, more):
    planted_here = made_record("nudge", 1, {"ua": 0.5})
    path = planted_here.path(tmp_path / "here")
    write_record(planted_here, path)
    before = path.read_bytes()
    monkeypatch.setattr("unlearnbench.pipeline.runner.run_cell", lambda *about, **more: pytest.fail("a cell was run"))
    monkeypatch.setattr("unlearnbench.launch.plan.launched", lambda *about, **more: pytest.fail("jobs were begun"))
    said = cli("run", "--method", write_nudge(tmp_path), "--seeds", "0-1", "--results", "here", *more)
    assert said.code == 2
    (line,) = said.err.strip().splitlines()
    assert "seed-1.json" in line and "method code (mmmmmmmm, now" in line and "--force" in line
    assert path.read_bytes() == before and load_all(tmp_path / "here") == [read_record(path)]


@pytest.mark.usefixtures("small")
def test_a_record_without_a_result_may_be_replaced(tmp_path, fresh_store):
    gone = made_record("nudge", 0, status="diverged", step=3, reason="not finite")
    write_record(gone, gone.path(tmp_path / "here"))
    assert run_cell(write_nudge(tmp_path), fresh_store, tmp_path / "here").status == "ok"
