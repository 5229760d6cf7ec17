"""The command `leaderboard` on a folder of records made by hand, and what LaTeX makes of its tables."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess

import pytest

from tests.support.small_world import made_record
from unlearnbench.cli import console
from unlearnbench.leaderboard import formats
from unlearnbench.leaderboard.tables import Sheet
from unlearnbench.records.schema import AttackRecord, write_record

HOSTILE = r"a_b$x^2$&{c}%#~\d<e>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tables; a row with overrides that LaTeX could take for commands."""
    results = tmp_path_factory.mktemp("results")
    values = {
        "original": (0.0, 1.0),
        "retrain": (1.0, 0.9),
        "destroy": (1.0, 0.0),
        "esd": (0.8, 0.7),
        "salun": (0.9, 0.6),
    }
    for forget in ("3", "8"):
        for method, (ua, ra) in values.items():
            for seed in (0, 1):
                record = made_record(method, seed, {"ua": ua - seed / 100, "ra": ra, "fid": 1 - ra}, forget=forget)
                write_record(record, record.path(results))
    changed = {"overrides": {"part": HOSTILE}, "division": "custom"}
    odd = made_record("esd", 0, {"ua": 0.5}, method_changes=changed, status="diverged", step=3, reason="not finite")
    write_record(odd, odd.path(results))
    return results


def labels(text: str) -> list[str]:
    return [row["label"] for row in csv.DictReader(io.StringIO(text))]


def test_rows_are_narrowed_by_task_protocol_concept_and_method(cli, folder):
    said = cli("leaderboard", folder, "--forget", "8", "--methods", "esd, salun", "--format", "csv")
    assert labels(said.out) == ["esd", "salun"]
    assert {row["forget"] for row in csv.DictReader(io.StringIO(said.out))} == {"8"}
    assert cli("leaderboard", folder, "--protocol", "default", "--task", "digits-class").code == 0


def test_sorted_rows_keep_their_tables(cli, folder):
    rows = json.loads(cli("leaderboard", folder, "--sort", "fid", "--methods", "esd,salun", "--format", "json").out)
    assert [(row["forget"], row["method"]) for row in rows if row["fid"]] == [
        ("3", "esd"),
        ("3", "salun"),
        ("8", "esd"),
        ("8", "salun"),
    ]


def test_columns_of_one_axis_with_intervals(cli, folder):
    said = cli("leaderboard", folder, "--axis", "utility", "--intervals", "--format", "markdown").out
    heads = next(line for line in said.splitlines() if line.startswith("| method"))
    assert "RA (%)" in heads and "UA" not in heads
    assert re.search(r"\| esd \|.* 70\.0 \[\d+\.\d, \d+\.\d\]", said)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A table with every column, long names and numbers of many digits."""
    results = tmp_path_factory.mktemp("wide")
    hit = AttackRecord(
        status="ok", key="k" * 64, box="white", unit="steps", limit=100.0, value=1.0, n=2, missing=0,
        interval=(0.3, 1.0), area=1.0, recovered=(True, True), spent=(1.0, 1.0), settings={}, code_hash="a" * 64,
    )  # fmt: skip
    numbers = {"still": 0.0, "another": 0.0, "nothing": 1.0, "ra": 1.0, "fid": 160.854, "unlearn_time": 1224.3}
    for method, changes in (
        ("retrain", {}),
        ("selective_amnesia", {"preset": "published", "division": "published"}),
        ("concept_ablation", {"overrides": {"batch_size": 32, "lr": 0.0003}, "division": "custom"}),
    ):
        for seed in (0, 1):
            scores = {**numbers, "fid": numbers["fid"] + seed, "unlearn_time": numbers["unlearn_time"] + seed}
            half = hit.model_copy(
                update={"value": 0.5, "recovered": (True, False), "interval": (0.1, 0.9), "area": 0.5}
            )
            attacks = {"concept_inversion": half if method == "retrain" else hit}
            record = made_record(method, seed, scores, method_changes=changes, attacks=attacks)
            write_record(record, record.path(results))
    return results


NUMBERS = {"100.0", "0/0/100", "161.354", "1224.8"}


def numbers(text: str) -> set[str]:
    return set(re.findall(r"[\d.]+(?:/[\d.]+)*", text))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_short_table_is_one_table_in_a_terminal(cli, wide, monkeypatch, width):
    monkeypatch.setattr(console.out, "_width", width)
    table = cli("leaderboard", wide).out.partition("\nmean")[0].partition("\nscores lack")[0]
    assert max(map(len, table.splitlines())) <= width
    assert table.count("──" * 20) >= 1 and "(1 of" not in table and "left out" not in table
    assert numbers(table) >= NUMBERS, "numbers are whole"
    names = "".join(line[1:].split("  ")[0] for line in table.splitlines()).replace(" ", "")
    assert "selective_amnesia(published)" in names
    assert ("±" in table) == (width > 80), "deviations where there is room"


def test_a_narrower_terminal_has_every_number_in_several_tables(cli, wide, monkeypatch):
    monkeypatch.setattr(console.out, "_width", 48)
    assert numbers(cli("leaderboard", wide).out) >= NUMBERS


def test_columns_all_has_every_column_in_each_format(cli, folder):
    for kind in ("terminal", "markdown", "latex"):
        short, whole = (cli("leaderboard", folder, "--format", kind, *more).out for more in ((), ("--columns", "all")))
        assert "entropy" not in short and "entropy" in whole, kind
    short, whole = (cli("leaderboard", folder, "--format", "csv", *more).out for more in ((), ("--columns", "all")))
    assert short == whole, "scripts go on working"


@pytest.mark.parametrize(
    ("words", "names", "remedy"),
    [
        (("--format", "xml"), "'xml'", "known: terminal"),
        (("--sort", "uaa"), "'uaa'", "did you mean ua"),
        (("--columns", "ua,allx"), "'allx'", "did you mean all"),
        (("--axis", "speed"), "'speed'", "efficacy"),
        (("--methods", "esdd"), "'esdd'", "did you mean esd"),
        (("--methods", ","), "--methods is empty", "name at least one"),
        (("--forget", "9"), "'9'", "3, 8"),
        (("--protocol", "smoke"), "'smoke'", "default"),
        (("--task", "digits-text"), "'digits-text'", "digits-class"),
        (("--columns", "ua", "--axis", "cost"), "--columns ua", "leave one of the two out"),
        (("--write", "--forget", "3"), "--write covers the whole folder", "leave out --forget"),
        (("--attacks", "--published"), "separate tables", "give one"),
        (("--attacks",), "no record here was attacked", "--attacks standard"),
        (("--write", "--check"), "exclude each other", "give one"),
        (("--check", "--format", "latex"), "--check makes a page", "leave out --format"),
        (("--columns", ""), "--columns is empty", "leave the option out"),
        (("--axis", ","), "--axis is empty", "leave the option out"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(cli, folder, words, names, remedy):
    said = cli("leaderboard", folder, *words)
    assert said.code == 2
    assert names in said.err and remedy in said.err
    assert "Traceback" not in said.err


def test_csv_and_json_have_the_columns_asked_for_and_what_is_about_them(cli, folder):
    words = ("leaderboard", folder, "--columns", "ua", "--methods", "esd")
    rows = list(csv.DictReader(io.StringIO(cli(*words, "--format", "csv").out)))
    assert {"label", "n", "hardware", "ua", "ua_low", "ua_high"} <= set(rows[0])
    assert not {"ra", "fid", "ua_closed", "ua_closed_low", "unlearn_time"} & set(rows[0])
    assert set(json.loads(cli(*words, "--format", "json").out)[0]) == set(rows[0])


def test_a_file_in_place_of_a_folder_is_refused(cli, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Results")
    said = cli("leaderboard", path)
    assert said.code == 2 and "README.md is a file: give the folder" in said.err


def test_published_numbers_in_every_format(cli, tmp_path):
    words = ("leaderboard", tmp_path, "--published", "--task", "cifar10-class", "--methods", "erasediff")
    rows = list(csv.DictReader(io.StringIO(cli(*words, "--format", "csv").out)))
    assert rows and {row["method"].partition("[")[0] for row in rows} == {"erasediff"}
    assert {row["status"] for row in rows} <= {"verified", "secondary", "unverified"}
    assert all(row["source"] for row in rows)
    assert "published and measured" in cli(*words, "--format", "markdown").out
    assert "\\begin{tabular}{ll" in cli(*words, "--format", "latex").out
    assert json.loads(cli(*words, "--format", "json").out)[0]["task"] == "cifar10-class"


def test_latex_is_ascii_and_escapes_every_special_character(cli, folder):
    text = cli("leaderboard", folder, "--format", "latex").out
    assert text.isascii()
    assert "Judge: digits-cnn 1" in text and "Measured on: " in text and "seeds (0-1)" in text
    for line in (line for line in text.splitlines() if " & " in line):
        assert not re.search(r"(?<![\\])[_#]|(?<!\\)%", line), line


def test_a_table_taller_than_a_page_becomes_several(cli, folder):
    rows = [[f"method {number}", "1"] for number in range(formats.ROWS + 5)]
    text = formats.as_latex(
        [Sheet("a title", ["method", "n"], [("controls", rows[:3]), ("with concept", rows[3:])], "note")]
    )
    assert text.count("\\begin{table}") == 2
    assert all(text.count(f"method {number} &") == 1 for number in range(len(rows)))
    assert text.count("a title, continued.") == text.count("Note.") == 1


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-latex-recommended")
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--columns", "all"),
        ("--intervals", "--columns", "ua,ra,fid,kid,score,unlearn_time,peak_memory"),
        ("--published", "--task", "cifar10-class"),
    ],
)
@pytest.mark.parametrize("paper", ["{article}", "[twocolumn]{article}"])
def test_latex_compiles_as_its_first_line_says(cli, folder, tmp_path, words, paper):
    (tmp_path / "table.tex").write_text(cli("leaderboard", folder, "--format", "latex", *words).out)
    by_itself = (tmp_path / "table.tex").read_text().splitlines()[0].partition("pdflatex ")[2].strip("'")
    by_itself = by_itself.replace("{article}", paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", by_itself.replace("FILE", "table")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search(r"Overfull \\hbox|LaTeX Warning: Float too large|Missing character", done.stdout)
    assert (tmp_path / "article.pdf").is_file() or list(tmp_path.glob("*.pdf"))
