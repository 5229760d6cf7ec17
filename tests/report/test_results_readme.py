"""The page of a results folder, its pictures, and that those committed are what the records give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.small_world import ROOT, made_record
from unlearnbench import registry
from unlearnbench.cli import console
from unlearnbench.leaderboard import tables as lb
from unlearnbench.leaderboard.board import board as make_board
from unlearnbench.records.folder import ResultsFolder, load_all
from unlearnbench.records.image_table import reader
from unlearnbench.records.schema import write_record
from unlearnbench.report.results_readme import files, source, stale

RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text()


@pytest.fixture
def folder(tmp_path):
    for method, ua, ra in (("original", 0.0, 1.0), ("esd", 0.9, 0.8), ("salun", 1.0, 0.7)):
        record = made_record(method, 0, {"ua": ua, "ra": ra})
        write_record(record, record.path(tmp_path))
    return tmp_path


def test_the_page_explains_every_column_and_says_how_to_send_a_row(cli, folder):
    assert cli("leaderboard", folder, "--write").code == 0
    page = (folder / "README.md").read_text()
    for metric in lb.columns_of(registry.load_metrics()).values():
        assert f"- {lb.head(metric)}: " in page
    assert "no evidence about Stable Diffusion" in page
    assert "How to add a row" in page
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (folder / picture).is_file()


def test_every_command_of_the_page_exists(cli, folder):
    cli("leaderboard", folder, "--write")
    named = set(re.findall(r"unlearnbench ([a-z][a-z-]*)", (folder / "README.md").read_text()))
    assert {"run", "validate", "leaderboard", "verify", "check", "report"} <= named
    for name in named:
        assert cli(name, "--help").code == 0, name


def test_what_is_older_than_its_records_is_found(cli, folder):
    missing = cli("leaderboard", folder, "--check")
    assert missing.code == 1
    assert "2 files checked, 2 stale" in missing.out
    cli("leaderboard", folder, "--write")
    assert cli("leaderboard", folder, "--check").code == 0
    changed = made_record("esd", 1, {"ua": 0.5, "ra": 0.4})
    write_record(changed, changed.path(folder))
    said = cli("leaderboard", folder, "--check")
    assert said.code == 1
    assert "pareto.png is older than its records" in " ".join(said.out.split())


def test_a_picture_of_another_kind_is_stale_and_is_written_over(cli, folder):
    cli("leaderboard", folder, "--write")
    (picture,) = folder.rglob("pareto.png")
    right = source(picture)
    assert re.fullmatch("[0-9a-f]{64}", right)
    picture.write_bytes(b"no picture")
    assert source(picture) is None
    assert cli("leaderboard", folder, "--check").code == 1
    cli("leaderboard", folder, "--write")
    assert source(picture) == right


def test_pictures_that_are_up_to_date_are_left_as_they_are(cli, folder):
    cli("leaderboard", folder, "--write")
    (picture,) = folder.rglob("pareto.png")
    before = picture.stat().st_mtime_ns
    cli("leaderboard", folder, "--write")
    assert picture.stat().st_mtime_ns == before


def test_the_committed_page_and_pictures_are_what_the_records_give():
    records = load_all(RESULTS)
    made = files(make_board(records, images=reader(RESULTS)), records, ResultsFolder(RESULTS).tunings())
    assert len(made) >= 5
    assert stale(RESULTS, made) == [], "run `unlearnbench leaderboard --write`"


def test_the_readme_prints_what_its_command_gives(monkeypatch):
    """Its first command answers from the committed record at once, with this table."""
    place = RESULTS / "digits-class/default/3"
    (record,), (original,) = load_all(RESULTS, place / "erasediff")[:1], load_all(RESULTS, place / "original")[:1]
    monkeypatch.setattr(console.out, "_width", 120)
    monkeypatch.chdir(ROOT)
    with console.out.capture() as capture:
        console.show_run([record], original, Path("results"))
    said = [line.rstrip() for line in capture.get().splitlines() if line.strip()]
    block = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    assert [line.rstrip() for line in block.splitlines()] == said


def test_pictures_of_the_readme_come_from_the_results():
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert shown
    for picture in shown:
        assert picture.startswith("results/") and (ROOT / picture).is_file()


def test_the_workflow_checks_a_pull_request_by_commands_that_exist(cli):
    steps = yaml.safe_load((ROOT / ".github/workflows/results.yml").read_text())["jobs"]["records"]["steps"]
    ran = "\n".join(step.get("run", "") for step in steps)
    commands = [line.split() for line in ran.splitlines() if line.strip().startswith("unlearnbench ")]
    assert [words[1] for words in commands] == ["validate", "validate", "leaderboard", "report"]
    for words in commands:
        usage = cli(words[1], "--help").out
        assert all(word in usage for word in words[2:] if word.startswith("--")), words
