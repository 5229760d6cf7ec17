"""Tables at every width: names and numbers stay whole, and no column is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len

from tests.support.small_world import made_record
from unlearnbench.cli import console
from unlearnbench.cli.table_layout import TextColumn, fit_columns, split, wrapped
from unlearnbench.records.schema import write_record

WIDTHS = (1, 20, 40, 60, 80, 100, 200)
LONG = "erasediff@published+batch_size=32+inner_lr=0.0003+lr=0.0001+target=substitute"
HEADS = ["method", "n", "UA (%) ↑", "FID ↓", "worst attack (%) ↓", "rank", "by", "flags"]
ROWS = [
    ["esd", "3", "100.0 ± 0.0 *", "154.812 ± 11.849", "10.0", "1", "latent_probe@inpainting", "diverged, 1 of 3"],
    [LONG, "12", "2.1 ± 0.8", "0.072 ± 0.005 †", "100.0 [77.2, 100.0]", "2", "p4d", ""],
    ["方法" * 20, "1", "[red]5[/red]", "—", "0.0", "", "", "skipped"],
]


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def first_column(text: str) -> str:
    """What the first column says, without blanks: lines begin with one, and two end a cell."""
    return "".join(squeezed(line[1:].split("  ")[0]) for line in text.splitlines() if not line.startswith("  "))


def shown(monkeypatch, capsys, width: int, *args, **options) -> tuple[str, list[str]]:
    monkeypatch.setattr(console.out, "_width", width)
    capsys.readouterr()
    left_out = console.print_table(*args, **options)
    return capsys.readouterr().out, left_out


@pytest.mark.parametrize("width", WIDTHS)
def test_every_name_number_and_column_appears_whole(monkeypatch, capsys, width):
    text, left_out = shown(monkeypatch, capsys, width, "", HEADS, [("with concept", ROWS)])
    assert not left_out and "…" not in text
    if width >= 40:
        for row in ROWS:
            assert squeezed(row[0]) in first_column(text)
            for number in row[1:6]:
                assert number in text, number
        for head in HEADS:
            assert all(word in text for word in head.split())
        least = 43  # the narrowest name beside the widest value and its rank
        assert max(map(cell_len, text.splitlines())) <= max(width, least)


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_that_do_not_fit_are_returned_and_the_others_are_shown(monkeypatch, capsys, width):
    first = ["n", "flags", "FID ↓"]
    text, left_out = shown(monkeypatch, capsys, width, "", HEADS, [("", ROWS)], fit=True, first=first)
    kept = [head for head in HEADS if head not in left_out]
    assert kept[:2] == ["method", "n"]
    assert all(all(word in text for word in head.split()) for head in kept)
    assert all(squeezed(row[0]) in first_column(text) for row in ROWS if width >= 40)
    assert ("worst attack (%) ↓" in left_out) == ("rank" in left_out)
    if width == 200:
        assert not left_out
    if "FID ↓" in left_out:
        assert "UA (%) ↑" in left_out  # it has no priority


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_parts_repeat_the_names_and_keep_the_order(width):
    columns = [TextColumn(head, [row[i] for row in ROWS], i == 0) for i, head in enumerate(HEADS)]
    parts = split(columns, width, keys=1)
    assert [i for part in parts for i in part.columns[1:]] == list(range(1, len(HEADS)))
    assert all(part.columns[0] == 0 and len(part.columns) == len(part.widths) for part in parts)
    assert all(part.width <= width or part.columns[1:] in ([4, 5], *([i] for i in range(8))) for part in parts)
    assert all(5 in part.columns for part in parts if 4 in part.columns)  # a rank without its value says nothing
    assert split(columns, 10_000)[0].columns == list(range(len(HEADS))) == fit_columns(columns, 10_000)


@pytest.mark.parametrize("width", [1, 5, 12, 24, 100])
@pytest.mark.parametrize("text", [LONG, "方法" * 9, "UA closed (%) ↑", "", "a b\nc", "x" * 50])
def test_wrapped_text_is_complete_and_within_the_width(text, width):
    lines = wrapped(text, width)
    assert squeezed("".join(lines)) == squeezed(text)
    assert all(cell_len(line) <= max(width, 2) for line in lines)


def test_text_wraps_where_its_parts_meet():
    assert wrapped("concept_ablation@published", 24) == ["concept_ablation", "@published"]
    assert wrapped("esd+lr=0.0003+steps=10", 12) == ["esd", "+lr=0.0003", "+steps=10"]
    assert wrapped("worst (%) ↑", 6) == ["worst", "(%) ↑"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_leaderboard_shows_all_columns_asked_for(cli, tmp_path, monkeypatch, width):
    results, names = tmp_path / "made", ("ua", "ra", "fid", "kid", "precision", "recall", "coherence", "entropy")
    changes = {"overrides": {"batch_size": 32, "inner_lr": 0.0003, "part": "noxattn"}}
    for method, changed in (("original", {}), ("esd", {}), ("erasediff", changes)):
        record = made_record(method, 0, dict.fromkeys(names, 0.5), method_changes=changed)
        write_record(record, record.path(results))
    monkeypatch.setattr(console.out, "_width", width)
    said = cli("leaderboard", results, "--columns", ",".join(names))
    tables = said.out.partition("mean ±")[0]
    assert said.code == 0 and "left out" not in tables
    for word in ("UA", "RA", "FID", "KID", "precision", "recall", "coherence", "entropy"):
        assert re.search(rf"^.* {word}\b", tables, re.M), word
    rules = [line for line in tables.splitlines() if "──" in line]
    assert rules and max(map(cell_len, rules)) <= width
    assert "erasediff+batch_size=32+inner_lr=0.0003+part=noxattn" in first_column(tables)


@pytest.mark.parametrize(("columns", "expected"), [(None, 10_000), ("0", 10_000), ("wide", 10_000), ("72", 72)])
def test_a_pipe_has_no_width_but_that_of_the_environment(columns, expected):
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {} if columns is None else {"COLUMNS": columns}
    code = "from unlearnbench.cli.console import out; print(out.width)"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(said.stdout) == expected
