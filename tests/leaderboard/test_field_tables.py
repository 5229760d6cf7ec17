"""The red-team table and the table of objects, from records made by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest

from tests.leaderboard.test_robustness import attack
from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.judges.nudity import NUDENET, SHOWN
from unlearnbench.leaderboard import published
from unlearnbench.leaderboard.board import board
from unlearnbench.leaderboard.field_tables import field_blocks, field_frame, field_sheets, harmonic_mean
from unlearnbench.records.schema import JudgeRecord, PromptsRecord, WitnessRecord, write_record
from unlearnbench.tasks.sd_nudity import PROTOCOLS
from unlearnbench.tasks.sd_object import SDObject

METRICS = registry.load_metrics()
RATES = {
    "static_i2p": 0.10,
    "static_i2p_sexual": 0.31,
    "static_ring_a_bell": 0.5,
    "static_mma_diffusion": 0.42,
    "static_p4d": 0.61,
    "static_violence": 0.2,
    "static_illegal": 0.15,
    "nudity_rate": 0.7,
}


def red_team(method="uce", seed=0, scores=RATES, protocol="red-team", attacks=None, **changes):
    """A record by the red-team protocol."""
    about = dataclasses.asdict(PROTOCOLS[protocol])
    about.update(changes.pop("settings", {}))
    detector = {"name": "nudenet", "hash": "w" * 64, "threshold": 0.45, "columns": (*SHOWN, "flagged")}
    q16 = WitnessRecord(name="q16", version="open_clip 3", hash="q" * 64, threshold=0.5, columns=("probability",))
    return made_record(
        method,
        seed,
        scores,
        task="sd-nudity",
        forget="nudity",
        protocol_changes={"name": protocol, "settings": json.loads(json.dumps(about)), "hash": "a" * 64},
        witnesses={"detector": WitnessRecord(version=changes.pop("version", NUDENET), **detector), "q16": q16},
        prompts=PromptsRecord(n=5, cut=0, length=77, files={"nudity-p4d.csv": "f" * 64}),
        images=f"{method}{seed}",
        attacks=attacks or {},
        **changes,
    )


def objects(method, forget, e, s, g, seed=0, **changes):
    about = dataclasses.asdict(SDObject.protocols["mace-cvpr24"])
    return made_record(
        method,
        seed,
        {"acc_e": e, "acc_s": s, "acc_g": g, "ua": 1 - e},
        task="sd-object",
        forget=forget,
        judge=JudgeRecord(name="clip-objects", version="1", hash="j" * 64, threshold=0.0),
        protocol_changes={"name": "mace-cvpr24", "settings": json.loads(json.dumps(about))},
        images=f"{method}{forget}{seed}",
        **changes,
    )


def table(name, records):
    return field_blocks(name, board(records, METRICS), records, METRICS)


def cells(block, method, source=""):
    (row,) = [
        row
        for row in block.rows
        if row.method == method and row.source.startswith(source) and bool(row.source) == bool(source)
    ]
    return dict(zip(block.heads, (row.cells.get(name, "—") for name in block.columns), strict=True))


# ---- red-team --------------------------------------------------------------------------------------------------------


def test_static_and_adaptive_stand_apart_and_each_column_says_which(tmp_path):
    hits = [True, True, False, True]
    (block,) = table("red-team", [red_team(), red_team("esd", attacks={"unlearndiffatk@full": attack(hits)})])
    assert [head for head in block.heads if "static" in head and "adaptive" in head] == []
    static = [head for head in block.heads if "static" in head]
    assert len(static) == len(RATES) and block.heads[-1] == "unlearndiffatk@full, adaptive (%) ↓"
    assert cells(block, "uce")["Ring-A-Bell, static (%) ↓"] == "50.0" and cells(block, "uce")[block.heads[-1]] == "—"
    assert cells(block, "esd")["UnlearnDiffAtk, static (%) ↓"] == "70.0"
    assert cells(block, "esd")[block.heads[-1]] == "75.0"
    assert block.names[-1] == "adaptive_unlearndiffatk@full"
    notes = "\n".join(block.notes)
    for fact in (
        "ddim, 30 steps",
        "nudenet 3.4.2 at 0.45",
        *SHOWN,
        "q16 (open_clip 3) over 0.5",
        "nudity-p4d.csv ffff",
        "unlearndiffatk@full 4",
    ):
        assert fact in notes, fact


def test_published_numbers_of_the_same_sets_stand_in_sections_of_their_own():
    (block,) = table("red-team", [red_team()])
    trce = [row for row in published.load() if row.source.startswith("TRCE, ") and row.method == "mace"]
    by_metric = {row.metric: row.value for row in trce}
    assert set(by_metric) >= set(published.RED_TEAM)
    shown = cells(block, "mace", "TRCE")
    assert shown["P4D, static (%) ↓"] == f"{by_metric['asr_p4d']:.1f}"
    assert shown["UnlearnDiffAtk, static (%) ↓"] == f"{by_metric['asr_unlearndiffatk']:.1f}"
    assert shown["I2P, static (%) ↓"] == "—"  # 931 prompts are no 4,703
    sheet = field_sheets([block])[0]
    sections = {name for name, _ in sheet.sections}
    assert any(name.startswith("published: TRCE") for name in sections) and len(sections) >= 2
    frame = field_frame([block])
    assert frame[frame.source.isna()].method.tolist() == ["uce"]
    assert frame[frame.source.notna()].static_p4d.max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "red-team-smoke"},
        {"version": "3.0.8"},
        {"settings": {"threshold": 0.6}},
        {"settings": {"row_guidance": False}},
        {"settings": {"flagging": ["FEET_EXPOSED"]}},
        {"settings": {"sampler": {"scheduler": "ddim", "steps": 50, "guidance": 7.5}}},
    ],
    ids=str,
)
def test_nothing_published_stands_beside_another_protocol(change):
    made = red_team(**change)
    (block,) = table("red-team", [made])
    assert not any(row.source for row in block.rows)
    assert published.reading(made, "asr_p4d", "TRCE, ICCV 2025") is None


def test_rates_are_read_for_that_source_alone():
    made = red_team()
    assert published.reading(made, "asr_p4d", "TRCE, ICCV 2025") == pytest.approx(61)
    assert published.reading(made, "asr_p4d", "DES (Ahn and Jung, 2025), Tables 1 to 3") is None
    lines = published.compare_published([row for row in published.load() if row.method == "uce"], [made], METRICS)
    beside = {(line[1], line[3]) for line in lines if line[4] == "red-team" and line[6].startswith("TRCE")}
    assert ("asr_p4d", "61") in beside and ("asr_mma", "42") in beside
    assert not [
        line for line in lines if line[1].startswith("asr_") and line[4] == "red-team" and "TRCE" not in line[6]
    ]


# ---- objects ---------------------------------------------------------------------------------------------------------


def test_objects_have_a_table_for_each_class_and_one_of_means():
    made = [objects("uce", "airplane", 0.2, 0.9, 0.4), objects("esd", "airplane", 0.1, 0.8, 0.2)]
    made += [objects("uce", "ship", 0.4, 0.7, 0.2)]
    first, second, mean = table("objects", made)
    assert [block.key[3] for block in (first, second, mean)] == ["airplane", "ship", "average"]
    assert cells(first, "uce")["ACC_e (%) ↓"] == "20.0"
    assert cells(first, "uce")["H_o (%) ↑"] == "74.5"  # 3 / (1 / 0.8 + 1 / 0.9 + 1 / 0.6) = 3 / 4.0278
    assert cells(second, "uce")["H_o (%) ↑"] == "69.0"  # 3 / (1 / 0.6 + 1 / 0.7 + 1 / 0.8) = 3 / 4.3452
    assert cells(mean, "uce")["H_o (%) ↑"] == "73.0"  # of 0.3, 0.8, 0.3: 3 / (1 / 0.7 + 1 / 0.8 + 1 / 0.7) = 3 / 4.1071
    assert [row.method for row in mean.rows] == ["uce"] and mean.rows[0].n == 2  # esd has no ship
    assert cells(mean, "uce")["ACC_e (%) ↓"] == "30.0" and cells(mean, "uce")["ACC_s (%) ↑"] == "80.0"
    assert "clip-objects" in first.notes[0] and "mean probability" in first.notes[1]
    assert "airplane, ship" in mean.notes[0]


@pytest.mark.parametrize(
    ("accuracies", "wanted"),
    [
        ((0.0, 1.0, 0.0), 1.0),
        ((0.5, 0.5, 0.5), 0.5),
        ((0.1, 0.6, 0.25), 3 / (1 / 0.9 + 1 / 0.6 + 1 / 0.75)),
        ((1.0, 0.9, 0.1), 0.0),
        ((0.1, 0.0, 0.1), 0.0),
        ((0.1, None, 0.1), None),
    ],
)
def test_the_harmonic_mean_by_hand(accuracies, wanted):
    assert harmonic_mean(*accuracies) == (wanted if wanted is None else pytest.approx(wanted))


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_each_format_and_says_what_is_missing(cli, tmp_path):
    for made in (red_team(), objects("uce", "airplane", 0.2, 0.9, 0.4)):
        write_record(made, made.path(tmp_path / "out"))
    said = cli("leaderboard", "out", "--table", "objects", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert (row["method"], row["acc_e"], row["forget"]) == ("uce", "0.2", "airplane")
    assert float(row["h_o"]) == pytest.approx(3 / (1 / 0.8 + 1 / 0.9 + 1 / 0.6))
    text = cli("leaderboard", "out", "--table", "red-team", "--format", "markdown").out
    assert "MMA-Diffusion, static" in text and "published: TRCE" in text and "acc_e" not in text
    assert cli("leaderboard", "out", "--table", "red-team").code == 0
    rows = json.loads(cli("leaderboard", "out", "--table", "red-team", "--format", "json").out)
    assert rows[0]["source"] is None and rows[0]["static_p4d"] == 0.61 and rows[0]["static_unlearndiffatk"] == 0.7
    assert (rows[0]["detector"], rows[0]["threshold"]) == ("nudenet 3.4.2", 0.45)
    assert rows[0]["sampler"] == "ddim, 30 steps, guidance 7.5" and rows[0]["labels"] == ", ".join(SHOWN)
    assert rows[-1]["source"].startswith("TRCE") and rows[-1]["detector"] is None
    for words, fault in (
        (("--table", "red-tem"), "did you mean red-team"),
        (("--table", "objects", "--attacks"), "leave out --attacks"),
        (("--table", "objects", "--columns", "ua"), "leave out"),
        (("--table", "objects", "--task", "sd-nudity"), "--protocol mace-cvpr24"),
        (("--table", "objects", "--write"), "leave out --table"),
    ):
        said = cli("leaderboard", "out", *words)
        assert said.code == 2 and len(said.errors) == 1 and fault in said.errors[0], said.err


def test_a_folder_without_such_records_names_the_command():
    with pytest.raises(UserError, match="--task sd-nudity --protocol red-team"):
        table("red-team", [made_record("esd", 0, {"ua": 0.5})])
