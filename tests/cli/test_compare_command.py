"""`compare` as it is typed: tables, formats, the picture, and refusals."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.support.small_world import made_record
from tests.support.tiny_pair import attacked, hits, pictured, planted
from unlearnbench import registry
from unlearnbench.cli import console
from unlearnbench.cli.console import out
from unlearnbench.records.sample_grid import GAP, MARGIN, SIDE
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.statistics import paired_shares

SPAN = " … ".join(f"{100 * end:.1f}" for end in paired_shares(np.array(hits(40, 40)), np.array(hits(10, 40))))
"""Of the difference in UA between the two below."""


@pytest.fixture
def two(tmp_path):
    """Records of two methods that differ in known ways, with pictures and an attack."""
    attacks = {"relearn": attacked([True] * 6 + [False] * 14)}, {"relearn": attacked([False] * 20)}
    a = planted(tmp_path / "results", "esd", 0, hits(10, 40), hits(50, 60), attacks=attacks[0])
    b = planted(tmp_path / "results", "salun", 0, hits(40, 40), hits(50, 60), attacks=attacks[1])
    pictured(a, 90, "esd")
    pictured(b, 200, "salun")
    return a, b


def test_compare_prints_what_sets_two_methods_apart(cli, two):
    said = cli("compare", *two)
    assert (said.code, said.errors) == (0, [])
    lines = [line.split() for line in said.out.splitlines()]
    assert ["UA", "(%)", "↑", "25.0", "100.0", "+75.0", *SPAN.split(), "<0.001"] in lines
    assert next(line for line in lines if "relearn" in line)[:6] == ["relearn", "(%)", "↓", "30.0", "0.0", "-30.0"]
    assert f"B (salun) forgets more (UA +75.0 points, {SPAN}); no difference shown in RA (0.0, " in said.out
    assert "paired: 1 run each (seed 0), images by index: 40 forget, 60 retain" in said.out
    assert ["method", "name", "esd", "salun"] in lines
    assert said.out.splitlines()[-1] == "--out FILE.png draws their images side by side"


def test_compare_fits_eighty_columns(cli, two, monkeypatch):
    monkeypatch.setattr(console.out, "_width", 80)
    said = cli("compare", *two)
    assert any("+75.0" in line and "<0.001" in line and len(line) <= 80 for line in said.out.splitlines())


def test_compare_writes_the_picture_of_original_a_and_b(cli, two, tmp_path):
    said = cli("compare", *two, "--out", tmp_path / "new" / "pair.png")
    assert said.out.splitlines()[-1] == f"wrote {tmp_path / 'new' / 'pair.png'}"
    with Image.open(tmp_path / "new" / "pair.png") as picture:
        assert picture.width == MARGIN + 3 * (SIDE + GAP)
        at = [picture.getpixel((MARGIN + place * (SIDE + GAP) + 10, 60)) for place in range(3)]
    assert at == [(0,) * 3, (90,) * 3, (200,) * 3]


def test_the_original_is_shown_once(cli, two, tmp_path):
    original = planted(tmp_path / "results", "original", 0, hits(1, 40), hits(60, 60))
    assert cli("compare", original, two[1], "--out", tmp_path / "pair.png").code == 0
    with Image.open(tmp_path / "pair.png") as picture:
        assert picture.width == MARGIN + 2 * (SIDE + GAP)
        assert [picture.getpixel((MARGIN + place * (SIDE + GAP) + 10, 60)) for place in range(2)] == [
            (0,) * 3,
            (200,) * 3,
        ]


def test_sentences_are_broken_between_words_in_a_narrow_terminal(cli, two, monkeypatch):
    whole = [line for line in cli("compare", *two).out.splitlines() if line.startswith("p: ")]
    monkeypatch.setattr(out, "_width", 60)
    lines = cli("compare", *two).out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("p: "))
    assert len(whole[0]) > 60
    assert all(len(line) <= 60 for line in lines[start : start + 2])
    assert whole[0].startswith(" ".join(line.strip() for line in lines[start : start + 2]))


def test_two_originals_are_both_in_the_picture(cli, two, tmp_path):
    record = read_record(two[1])
    write_record(record.model_copy(update={"weights": {**record.weights, "original": "9" * 64}}), two[1])
    said = cli("compare", *two, "--out", tmp_path / "pair.png")
    assert said.code == 0, said.err
    with Image.open(tmp_path / "pair.png") as picture:
        assert picture.width == MARGIN + 4 * (SIDE + GAP)


def test_a_missing_picture_is_named(cli, two, tmp_path):
    two[1].with_suffix(".png").unlink()
    said = cli("compare", *two, "--out", tmp_path / "pair.png")
    assert said.code == 2
    assert f"no images from {two[1].with_suffix('.png')}: it is missing" in said.err
    two[1].with_suffix(".parquet").unlink()
    two[0].with_suffix(".parquet").unlink()
    assert "no per-image values" in cli("compare", *two, "--out", tmp_path / "pair.png").err


def test_images_of_an_unsafe_task_are_refused_unless_asked_for(cli, two, tmp_path, monkeypatch):
    monkeypatch.setattr(registry.load_task("digits-class"), "unsafe", True)
    said = cli("compare", *two, "--out", tmp_path / "pair.png")
    assert said.code == 2 and "--include-unsafe" in said.err and not (tmp_path / "pair.png").exists()
    assert cli("compare", *two).code == 0, "numbers are shown all the same"
    assert cli("compare", *two, "--out", tmp_path / "pair.png", "--include-unsafe").code == 0
    assert (tmp_path / "pair.png").is_file()


def test_csv_and_json_have_the_numbers_unscaled(cli, two):
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(cli("compare", *two, "--format", "csv").out))}
    assert (rows["ua"]["a"], rows["ua"]["b"], rows["ua"]["change"]) == ("0.25", "1.0", "0.75")
    assert (rows["relearn"]["kind"], rows["ua"]["kind"], rows["ua"]["ratio"]) == ("attack", "metric", "")
    said = json.loads(cli("compare", *two, "--format", "json").out)
    ua = next(row for row in said["metrics"] if row["name"] == "ua")
    assert (ua["change"], ua["runs"], ua["images"], ua["ratio"]) == (0.75, 1, 40, None)
    assert (said["a"]["method"], said["b"]["method"], said["forget"]) == ("esd", "salun", "3")
    assert said["summary"].startswith("B (salun) forgets more")
    assert said["worst"][0]["label"] == "relearn"


def test_markdown_has_tables_as_wide_as_their_heads(cli, two):
    text = cli("compare", *two, "--format", "markdown").out
    assert f"| UA (%) ↑ | 25.0 | 100.0 | +75.0 | {SPAN} | &lt;0.001 |" in text
    table = text.partition("### digits-class")[2].partition("###")[0]
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {7}


def test_text_of_others_stays_text(cli, tmp_path):
    evil = {"overrides": {"part": "x|<b>y</b>[/red]"}, "settings": {"part": "x|<b>y</b>[/red]"}}
    a = planted(tmp_path / "results", "esd", 0, hits(10, 40), hits(50, 60))
    b = planted(tmp_path / "results", "esd", 0, hits(20, 40), hits(50, 60), method_changes=evil)
    said = cli("compare", a, b)
    assert said.code == 0 and "x|<b>y</b>[/red]" in said.out
    text = cli("compare", a, b, "--format", "markdown").out
    assert "&lt;b>y" in text and "<b>" not in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")} == {5, 7}


def test_identical_records_are_told(cli, tmp_path):
    a = planted(tmp_path / "one", "esd", 0, hits(10, 40), hits(50, 60))
    b = planted(tmp_path / "two", "esd", 0, hits(10, 40), hits(50, 60))
    said = cli("compare", a, b)
    assert said.code == 0 and "made differently: nothing: the records are identical" in said.out


def test_records_without_scores_are_compared_as_far_as_they_go(cli, two, tmp_path):
    gone = made_record("sld", 0, status="diverged", step=3, reason="not finite")
    path = gone.path(tmp_path / "results")
    write_record(gone, path)
    said = cli("compare", path, two[0])
    assert said.code == 0
    assert "A: sld, seed 0" in said.out and "diverged at step 3 (seed 0)" in said.out
    assert "nothing is paired: A has no run with scores" in said.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--format", "latex"], "unknown format 'latex': known: terminal, markdown, csv, json"),
        (["--out", "a.pdf"], "--out a.pdf is not a PNG: give a name that ends in .png"),
    ],
)
def test_bad_options_are_one_line(cli, two, words, line):
    said = cli("compare", *two, *words)
    assert (said.code, said.errors) == (2, [f"unlearnbench: {line}"])


def test_bad_records_are_one_line(cli, two, tmp_path):
    assert cli("compare", two[0], two[0]).errors == [
        "unlearnbench: A and B both have seed-0.json of esd: name two different ones"
    ]
    assert "no record at nothing" in cli("compare", "nothing", two[0]).err
    two[1].write_text("{}")
    said = cli("compare", *two)
    assert said.code == 2 and len(said.errors) == 1 and "is damaged" in said.err
    assert "cannot write" in cli("compare", two[0], other(tmp_path), "--out", tmp_path / "file" / "a.png").err


def other(tmp_path):
    path = planted(tmp_path / "results", "sld", 0, hits(10, 40), hits(50, 60))
    pictured(path, 100)
    (tmp_path / "file").write_text("in the way")
    return path
