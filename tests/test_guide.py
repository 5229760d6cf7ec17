"""The guide that the package ships: it is complete, what it names exists, and its notebook runs."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

import unlearnbench
from tests.studies import api_reference
from tests.support.small_world import ROOT, python
from unlearnbench import registry
from unlearnbench.cli import guide as command
from unlearnbench.method import can_resume

PAGES = sorted(command.PAGES.glob("*.md"))
TOPICS = [page for page in PAGES if page != command.INDEX]
WITH_COMMANDS = [ROOT / "README.md", *PAGES]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
WIDEST = 100
"""Characters of a line, tables apart."""


def commands(text: str) -> list[list[str]]:
    """The words after `unlearnbench` of every command in the fenced bash blocks of a page."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(BLOCK.findall(text))).splitlines():
        for words in parts_of(shlex_safe(line)):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words and words[0] == "unlearnbench":
                found.append([one for word in words[1:] for one in expanded(word)])
    return found


def parts_of(line: str) -> list[list[str]]:
    """The commands of a line, which && ; and | separate where they are not quoted, as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def shlex_safe(line: str) -> str:
    """A line without its comment, which may hold an apostrophe or a separator of commands."""
    return re.sub(r"(^|\s)#.*", "", line)


def expanded(word: str) -> list[str]:
    """A word with {a,b} as bash expands it."""
    braces = re.fullmatch(r"(.*)\{(.+,.+)\}(.*)", word)
    return [f"{braces[1]}{one}{braces[3]}" for one in braces[2].split(",")] if braces else [word]


def parsed(words: list[str]) -> Any:
    """The context of a command line; raises what the command line itself would refuse."""
    from typer.main import get_command

    from unlearnbench.cli import app

    known: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    if words[0].startswith("-"):
        return get_command(app).make_context("unlearnbench", [*words])
    return known[words[0]].make_context(words[0], words[1:])


def named_in(words: list[str]) -> Iterator[tuple[str, str]]:
    """Methods, tasks and attacks that a command names, each with its kind."""
    for option, value in itertools.pairwise(words):
        kind = {"--method": "methods", "--task": "tasks", "--attacks": "attacks"}.get(option)
        if kind and not value.startswith("-"):
            yield from ((kind, one.partition("@")[0]) for one in value.split(","))


def test_commands_are_found_as_bash_reads_them():
    page = (
        "```bash\npip install -e . && unlearnbench run --method a  # don't\n"
        "A=b unlearnbench compare r/{a,b} \\\n  --out x\n```\n"
    )
    assert commands(page) == [["run", "--method", "a"], ["compare", "r/a", "r/b", "--out", "x"]]


@pytest.mark.parametrize("line", ["run --methods a", "runs --method a", "compare a", "run --method a --budget many"])
def test_a_command_that_does_not_exist_would_be_found(line):
    with pytest.raises((Exception, SystemExit)):
        parsed(line.split())


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_on_a_page_parses(page):
    for words in commands(page.read_text()):
        try:
            parsed(words)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"unlearnbench {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_methods_tasks_and_attacks_that_commands_name_exist(page):
    known = {kind: {*getattr(registry, kind)()} for kind in ("methods", "tasks", "attacks")}
    known["methods"] |= {"all", "NAME"}
    known["attacks"] |= {"standard"}
    named = {pair for words in commands(page.read_text()) for pair in named_in(words)}
    assert {(kind, name) for kind, name in named if not name.endswith(".py") and name not in known[kind]} == set()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_that_the_text_names_exist(page):
    from typer.main import get_command

    from unlearnbench.cli import app

    named = {*re.findall(r"`unlearnbench ([a-z][a-z-]*)", page.read_text())}
    assert named - {*get_command(app).commands} == set()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("small")
def test_the_readme_s_commands_on_digits_run(cli, tmp_path):
    """As printed, with two steps of unlearning; attacks and GPU tasks have tests of their own."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)```", readme, re.DOTALL)
    assert block
    (tmp_path / block["name"]).write_text(block["code"])
    lines = [words for words in commands(readme) if not {"--task", "--attacks"} & {*words}]
    assert {words[0] for words in lines} >= {"run", "leaderboard", "report", "list", "guide", "check", "new-method"}
    for words in lines:
        said = cli(*words, *(["--set", "steps=2"] if words[0] == "run" else []))
        assert said.code == 0, said.err
    assert (tmp_path / "report.html").is_file() and (tmp_path / "my_method.py").is_file()


def test_the_index_names_every_page_once():
    assert [*command.guide_topics()] == [found["name"] for found in command.TOPIC.finditer(command.INDEX.read_text())]
    assert {*command.guide_topics()} == {page.stem for page in TOPICS}


def test_topics_are_listed_and_shown(cli):
    listed = cli("guide")
    assert listed.code == 0
    for name, about in command.guide_topics().items():
        assert re.search(rf"^ *{re.escape(name)} +{re.escape(about)}", listed.out, re.MULTILINE)
    shown = cli("guide", "reading-a-row")
    assert shown.code == 0 and shown.out == (command.PAGES / "reading-a-row.md").read_text()


def test_an_unknown_topic_is_one_line_with_what_was_meant(cli):
    said = cli("guide", "attack")
    assert said.code == 2 and said.out == ""
    assert len(said.errors) == 1 and "'attack'" in said.err and "did you mean attacks" in said.err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("sd", "did you mean stable-diffusion?"),
        ("slurm", "did you mean clusters?"),
        ("fidelity", "`unlearnbench list fidelity`"),
        ("esd", "`unlearnbench list esd`"),
        ("of", "unknown topic"),
    ],
)
def test_a_word_of_another_page_or_command_leads_there(cli, word, meant):
    said = cli("guide", word)
    assert said.code == 2 and len(said.errors) == 1 and meant in said.err


def test_a_terminal_gets_a_laid_out_page(cli, monkeypatch):
    monkeypatch.setattr(command.out, "_force_terminal", True)
    said = cli("guide", "attacks")
    assert said.code == 0
    assert "```" not in said.out and "| --- |" not in said.out
    assert "relearn@retain" in said.out


def test_the_guide_is_read_without_heavy_packages():
    script = (
        "import sys\nfrom unlearnbench.cli import main\nsys.argv = ['unlearnbench', 'guide', 'tuning']\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = python("-c", script, cwd=ROOT)
    assert done.stdout.startswith("# Tuning") and done.stdout.endswith("False\n"), done.stderr


WRITTEN = [page for page in WITH_COMMANDS if page != api_reference.PAGE]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_text_and_code_fit_a_screen(page):
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > WIDEST and not line.startswith("|")] == []


def test_the_api_reference_is_what_the_docstrings_say():
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(), (
        "docstrings changed: python -m tests.studies.api_reference"
    )


def test_the_api_reference_has_every_public_name_once():
    listed = [name for names in api_reference.GROUPS.values() for name in names]
    assert sorted(listed) == sorted({*unlearnbench.__all__} - {"__version__"})
    for name in listed:
        assert api_reference.PAGE.read_text().count(f"### `{name}`\n") == 1


def test_the_api_reference_writes_signatures_and_lists(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        'def f(a: int, *rest: str, long_name_of_an_argument: float = 0.5, another_long_name: str = "text") -> None:\n'
        '    """Do it.\n\n    Args:\n        a: Number\n            of things.\n\n    Returns:\n        Nothing\n'
        '        at all.\n    """\n'
        'class A:\n    """An A."""\n\n    x: int = 1\n    """The x."""\n\n    def go(self, to: int) -> int:\n'
        '        """Go."""\n\n    def _hidden(self): ...\n'
    )
    found = api_reference.definitions(path)
    function = api_reference.described("f", found["f"])
    assert "f(\n    a: int,\n    *rest: str,\n    long_name_of_an_argument: float = 0.5,\n" in function
    assert "- a: Number\n  of things." in function and "**Returns**\n\nNothing\nat all." in function
    assert api_reference.described("A", found["A"]) == (
        "### `A`\n\nAn A.\n\n- `x: int = 1`: The x.\n\n```python\ngo(to: int) -> int\n```\nGo."
    )


def model_and_task_names(text: str) -> set[tuple[str, str]]:
    """Attributes of `model` and `task` that a page names in code."""
    return {(found[1], found[2]) for found in re.finditer(r"`(model|task)\.(\w+)", text)}


def test_what_a_method_may_use_exists():
    from unlearnbench.models.stable_diffusion import StableDiffusion
    from unlearnbench.tasks.digits_class import DigitsClass

    task = DigitsClass("3")
    text = (command.PAGES / "your-method.md").read_text()
    named = model_and_task_names(text)
    model = task.architecture(0)
    lacking = {
        f"{what}.{name}"
        for what, name in named
        if not (hasattr(task, name) if what == "task" else hasattr(model, name) or hasattr(StableDiffusion, name))
    }
    assert len(named) > 40 and lacking == set()


def test_the_methods_that_go_on_at_a_step_are_those_that_the_guide_names():
    named = (command.PAGES / "clusters.md").read_text().partition("bit for bit:\n")[2].partition("\n\nA checkpoint")[0]
    resuming = {name for name in registry.methods() if can_resume(registry.load_method(name))}
    assert set(re.findall(r"`(\w+)`", named)) == resuming


def test_the_method_of_the_guide_and_the_readme_is_the_same():
    pages = [ROOT / "README.md", command.PAGES / "your-method.md"]
    made = [
        re.search(r"^class Relabel.*?^        return model$", page.read_text(), re.DOTALL | re.MULTILINE)
        for page in pages
    ]
    lines = [[line for line in one[0].splitlines() if '"""' not in line and line.strip()] for one in made if one]
    assert len(lines) == 2 and lines[0] == lines[1]


@pytest.mark.usefixtures("small")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    cells = json.loads((command.PAGES / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for source in code:
        exec(compile(source, "first_steps.ipynb", "exec"), names)
    assert names["record"].status == "ok"
    assert [*names["table"].index] == ["original", "random_label+steps=20"]
    assert names["table"].loc["random_label+steps=20", "ra"] == names["record"].scores["ra"].value
    assert names["picture"].size[0] > 100
    assert len(names["images"]) == sum(
        score.n for name, score in names["record"].scores.items() if name in ("ua", "ra")
    )


def test_the_notebook_is_stored_without_results():
    notebook = json.loads((command.PAGES / "first_steps.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_a_built_package_has_the_guide(tmp_path):
    script = "import setuptools; setuptools.setup()"
    built = tmp_path / "lib"
    done = python("-c", script, "-q", "build_py", "--build-lib", str(built), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    inside = built / "unlearnbench"
    assert {path.name for path in (inside / "guide").iterdir()} == {path.name for path in command.PAGES.iterdir()}
    tables = ("pipeline/costs.toml", "leaderboard/published.csv", "records/fingerprints.json", "presets.toml")
    assert [name for name in tables if not (inside / name).is_file()] == []
