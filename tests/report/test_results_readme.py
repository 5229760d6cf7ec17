"""The page of a results folder, its pictures, and that those committed are what the records give."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
import yaml

from tests.support.small_world import ROOT, made_record
from unlearnbench import registry
from unlearnbench.leaderboard import tables as lb
from unlearnbench.leaderboard.board import board as make_board
from unlearnbench.records.folder import ResultsFolder, load_all
from unlearnbench.records.image_table import reader
from unlearnbench.records.schema import write_record
from unlearnbench.report.results_readme import abandoned, files, full_path, source, stale

RESULTS = ROOT / "results"
METRICS = registry.load_metrics()
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
    assert_links_lead_to_files(folder)


def assert_links_lead_to_files(results):
    """Every link of the page and of the tables beside it."""
    for path in (results / "README.md", *(results / "full").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / unquote(link)).is_file(), link


def test_the_page_of_published_numbers_is_linked_where_the_folder_has_it(cli, folder):
    assert cli("leaderboard", folder, "--write").code == 0
    assert "protocols.md" not in (folder / "README.md").read_text()
    (folder / "protocols.md").write_text("# The same name")
    assert cli("leaderboard", folder, "--check").code == 1
    assert cli("leaderboard", folder, "--write").code == 0
    assert "(protocols.md)" in (folder / "README.md").read_text()
    assert_links_lead_to_files(folder)


def test_links_lead_to_files_whatever_the_concept_is_called(cli, tmp_path):
    record = made_record("esd", 0, {"ua": 0.9, "ra": 0.8}, forget="a (b) c+d")
    write_record(record, record.path(tmp_path))
    assert cli("leaderboard", tmp_path, "--write").code == 0
    assert "%20" in (tmp_path / "README.md").read_text()
    assert_links_lead_to_files(tmp_path)


def test_the_page_has_short_tables_and_leads_to_every_column(cli, folder):
    cli("leaderboard", folder, "--write")
    heads = {
        path.name: [line for line in path.read_text().splitlines() if line.startswith("| method")]
        for path in (folder / "README.md", folder / "full/digits-class-default-3.md")
    }
    assert heads["README.md"] == [
        "| method | score ↑ | rank / attacked | UA (%) ↑ | RA (%) ↑ | FID ↓ | time (s) ↓ | n |"
    ]
    (every,) = heads["digits-class-default-3.md"]
    assert all(f" {lb.head(metric)} |" in every for metric in METRICS.values() if metric.everywhere)
    assert "](full/digits-class-default-3.md)" in (folder / "README.md").read_text()


def test_every_command_of_the_page_exists(cli, folder):
    cli("leaderboard", folder, "--write")
    named = set(re.findall(r"unlearnbench ([a-z][a-z-]*)", (folder / "README.md").read_text()))
    assert {"run", "validate", "leaderboard", "verify", "check", "report"} <= named
    for name in named:
        assert cli(name, "--help").code == 0, name


def test_what_is_older_than_its_records_is_found(cli, folder):
    missing = cli("leaderboard", folder, "--check")
    assert missing.code == 1
    assert "3 files checked, 3 stale" in missing.out
    cli("leaderboard", folder, "--write")
    assert cli("leaderboard", folder, "--check").code == 0
    changed = made_record("esd", 1, {"ua": 0.5, "ra": 0.4})
    write_record(changed, changed.path(folder))
    said = cli("leaderboard", folder, "--check")
    assert said.code == 1
    text = " ".join(said.out.split())
    assert all(f"{name} is older than its records" in text for name in ("pareto.png", "full/digits-class-default-3.md"))


def test_a_table_whose_records_are_gone_is_stale_and_is_removed(cli, folder):
    other = made_record("esd", 0, {"ua": 0.9, "ra": 0.9}, forget="5")
    write_record(other, other.path(folder))
    assert cli("leaderboard", folder, "--write").code == 0
    (folder / "full/notes.md").write_text("mine")
    other.path(folder).unlink()
    said = cli("leaderboard", folder, "--check")
    assert said.code == 1 and "full/digits-class-default-5.md" in said.out
    cli("leaderboard", folder, "--write")
    assert sorted(path.name for path in (folder / "full").iterdir()) == ["digits-class-default-3.md", "notes.md"]
    assert cli("leaderboard", folder, "--check").code == 0


def test_a_table_with_nothing_to_draw_has_no_figure(cli, folder):
    gone = made_record("esd", 0, status="diverged", step=3, reason="not finite", forget="5")
    write_record(gone, gone.path(folder))
    assert cli("leaderboard", folder, "--write").code == 0
    page = (folder / "README.md").read_text()
    assert "| esd · diverged |" in page and "default/3/pareto.png" in page and "default/5/pareto.png" not in page
    assert_links_lead_to_files(folder)
    assert cli("leaderboard", folder, "--check").code == 0


def test_tables_of_one_name_have_files_of_their_own(tmp_path):
    long = "方" * 60
    keys = [("a-b", "c", "3"), ("a", "b-c", "3"), ("a", "b", long)]
    records = [
        made_record("esd", 0, {"ua": 0.5}, task=task, forget=forget, protocol_changes={"name": protocol})
        for task, protocol, forget in keys
    ]
    board = make_board(records)
    paths = [full_path(board, key) for key, _ in board.tables()]
    assert len(set(paths)) == 3
    assert all(len(path.name.encode()) < 200 for path in paths)


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
    made = files(make_board(records, images=reader(RESULTS)), records, ResultsFolder(RESULTS).tunings(), RESULTS)
    assert len(made) >= 5
    assert stale(RESULTS, made) == [], "run `unlearnbench leaderboard --write`"
    assert abandoned(RESULTS, made) == []
    assert_links_lead_to_files(RESULTS)


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
