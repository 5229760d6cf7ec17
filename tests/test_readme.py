"""What the README prints works as printed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import unlearnbench
from unlearnbench import registry
from unlearnbench.data.concepts import read_concepts
from unlearnbench.leaderboard.board import board
from unlearnbench.leaderboard.rows import BoardRow
from unlearnbench.pipeline import cell, unlearning
from unlearnbench.records.folder import load_all
from unlearnbench.records.image_table import reader
from unlearnbench.statistics import whole_percents
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / ".github").glob("*.md"))]
PAGES += sorted((ROOT / "unlearnbench" / "guide").glob("*.md"))
PAGES += sorted((ROOT / "results").glob("*.md"))


def test_baseline_as_printed_forgets(tmp_path):
    """That it conforms, `unlearnbench check` says in the test of the README's commands: tests/test_guide.py."""
    block = re.search(r"```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)```", README, re.DOTALL)
    path = tmp_path / block["name"]
    path.write_text(block["code"])
    assert 15 <= len(block["code"].splitlines()) <= 40
    method = registry.load_method(str(path))
    task, quick = DigitsClass("3"), method(steps=20, batch_size=32)
    state, _ = unlearning.unlearn(cell.Cell(quick, task))
    model = unlearning.loaded(cell.Cell(quick, task), state)
    model.sampler, judge = replace(model.sampler, steps=4), task.judge()

    def right(digit: int) -> float:
        images = task.to_uint8(model.sample(task.data("both").y.new_full((20,), digit), list(range(20))).detach())
        return (judge(images).label == digit).float().mean().item()

    assert right(3) <= 0.1
    assert right(8) >= 0.8


def test_a_new_concept_file_is_taken_and_not_written_over(cli, tmp_path):
    said = cli("new-concept", "seven-and-more", "--out", tmp_path)
    assert said.code == 0 and "--concept" in said.out
    name, concepts = read_concepts(tmp_path / "seven-and-more.toml")
    task = DigitsText(name, concepts=concepts)
    assert (task.forget, [concept.name for concept in task.erased]) == ("seven-and-more", ["seven"])
    asked = {item.prompt for item in task.plan() if item.group == "forget" and item.concept == "seven"}
    assert asked == {"a photo of a seven", "a blue seven"}
    again = cli("new-concept", "seven-and-more", "--out", tmp_path)
    assert again.code == 2 and "already exists" in again.err
    wrong = cli("new-concept", "../x", "--out", tmp_path)
    assert wrong.code == 2 and "'../x'" in wrong.err


def test_every_method_and_metric_is_named_in_the_readme():
    for name in registry.methods():
        assert f"`{name}`" in README
    unlearning = set(registry.methods()) - {"checkpoint", "original", "retrain", "destroy", "prompt_filter"}
    assert f"{len(unlearning)} unlearning methods" in " ".join(README.split())


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_the_table_of_the_readme_is_what_the_records_say():
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in README.partition("| method | score")[2].partition("\n\n")[0].splitlines()[2:]
    ]
    assert len(rows) >= 8
    results = ROOT / "results"
    records = [run for folder in (results / "digits-class/default/3").iterdir() for run in load_all(results, folder)]
    plain = [record for record in records if record.method.preset == "default" and not record.method.overrides]
    known = {row.method: row for row in board(plain, images=reader(results))}

    def shown(row: BoardRow, name: str, digits: int, scale: float = 1.0) -> str:
        value = row.stat(name).value
        return "—" if value is None else f"{scale * value:.{digits}f}"

    for name, *cells in rows:
        row = known[name]
        assert cells == [
            shown(row, "score", 2),
            " / ".join(map(str, whole_percents([row.stat(part).value for part in ("still", "another", "nothing")]))),
            shown(row, "likeness", 2),
            shown(row, "ra", 1, 100),
            shown(row, "fid", 3),
            shown(row, "robustness", 0, 100),
        ], name


def test_the_citation_file_has_what_its_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert all(cited[key] for key in ("message", "title", "authors"))
    assert cited["authors"] == [{"name": "unlearnbench developers"}]
    assert cited["version"] == unlearnbench.__version__
    assert f"version = {{{unlearnbench.__version__}}}" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_studies_that_pages_name_exist(page):
    text = page.read_text()
    paths = re.findall(r"`((?:unlearnbench|methods|metrics|tests|\.ci|\.github)/[\w./-]*)`", text)
    studies = re.findall(r"python -m (tests\.studies\.\w+)", text)
    paths += [f"{name.replace('.', '/')}.py" for name in studies]
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_contributing_page_names_every_package():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    packages = {path.parent.name for path in (ROOT / "unlearnbench").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in text} == set()
