"""Every command that a message, a help text or a docstring names is one that can be typed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tests.support.small_world import ROOT
from unlearnbench.cli import app

GROUP = typer.main.get_command(app)
HOLE = "HOLE"
"""What stands for a value that a message fills in."""
QUOTED = re.compile(r"(?<!`)`(?:unlearnbench )?([a-z][a-z-]*)((?:HOLE)?(?: [^`]*)?)`(?!`)")
PLAIN = re.compile(r"(?:: |&& )unlearnbench ([a-z][a-z-]*)([^`]*?)(?= && |`|$)")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a file with their lines; what is formatted into them is a `HOLE`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
            yield node.lineno, " ".join("".join(map(str, parts)).split())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, " ".join(node.value.split())


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands in a text, each as its name and the rest; within backticks `unlearnbench` may be left out."""
    for match in QUOTED.finditer(text):
        if match[0].startswith("`unlearnbench ") or match[1] in GROUP.commands:  # type: ignore[attr-defined]
            yield match[1], match[2].partition(" && ")[0]
    for match in PLAIN.finditer(text):
        yield match[1], match[2]


def wrong(name: str, rest: str) -> str | None:
    """What cannot be typed of a command; None where all can."""
    command = GROUP.commands.get(name)  # type: ignore[attr-defined]
    if command is None:
        return f"no command {name}"
    known = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    try:
        words = shlex.split(rest)
    except ValueError as error:
        return str(error)
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and HOLE not in option and option not in {*known, "--help"}:
            return f"{name} has no option {option}"
    return "… cannot be typed" if "…" in rest else None


FILES = [path for folder in ("unlearnbench", "methods", "metrics") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_command_in_a_text_can_be_typed():
    found = [
        (path.relative_to(ROOT), line, name, rest)
        for path in FILES
        for line, text in texts(path)
        for name, rest in commands(text)
    ]
    bad = [f"{path}:{line}: {name}{rest}: {why}" for path, line, name, rest in found if (why := wrong(name, rest))]
    assert not bad, "\n".join(bad)
    assert len(found) > 40, "the texts are found"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no such: `unlearnbench rum --method X` does", "no command rum"),
        ("make some with `unlearnbench run --oot X`", "run has no option --oot"),
        ("write `list TASK --colour`", "list has no option --colour"),
        ("try it: unlearnbench report --folder X", "report has no option --folder"),
        ("`unlearnbench run … --jobs 2` does", "… cannot be typed"),
        ("`unlearnbench run --method esd --results here`, or `leaderboard FOLDER`", None),
    ],
)
def test_what_cannot_be_typed_is_found(text, why):
    assert [found for name, rest in commands(text) if (found := wrong(name, rest))] == ([why] if why else [])
