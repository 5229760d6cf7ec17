"""`guide`: the user's guide that the package ships, in the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from unlearnbench.cli.console import out, print_table, show_lines
from unlearnbench.errors import UserError, either, unknown

guiding = typer.Typer()
PAGES: Final = Path(__file__).parents[1] / "guide"
INDEX: Final = PAGES / "README.md"
TOPIC: Final = re.compile(r"^- \[[^\]]+\]\((?P<name>[\w-]+)\.md\): (?P<about>.+)$", re.MULTILINE)
"""A line of the index: `- [Title](topic.md): what it says.`"""
SHORTEST: Final = 4
"""Letters of a word that is looked up in what the index says of a page: shorter ones are in every line."""
WIDEST: Final = 100
"""Columns of text, however wide the terminal is: longer lines are hard to read."""


def guide_topics() -> dict[str, str]:
    """The guide's topics in the order of its index, each with the line that says what it is about."""
    return {found["name"]: found["about"] for found in TOPIC.finditer(INDEX.read_text(encoding="utf-8"))}


def _unknown_topic(topic: str, topics: dict[str, str]) -> UserError:
    """Build the error: it names what `list` shows under this word, or the pages that are abbreviated or about it."""
    from unlearnbench.cli.list import CHECKPOINTS, FIDELITY, KINDS

    word = topic.lower()
    if word in (*KINDS, CHECKPOINTS, FIDELITY) or any(word in entries() for entries in KINDS.values()):
        return UserError(f"the guide has no page {topic!r}: `unlearnbench list {word}` shows it")
    fitting = [name for name in topics if word == "".join(part[0] for part in name.split("-"))]
    if not fitting and len(word) >= SHORTEST:
        fitting = [name for name, about in topics.items() if word in re.findall(r"[\w-]+", about.lower())]
    if fitting:
        return UserError(f"unknown topic of the guide {topic!r}: did you mean {either(fitting)}?")
    return unknown("topic of the guide", topic, topics)


@guiding.command()
def guide(
    topic: Annotated[str | None, typer.Argument(help="Topic; without one, the topics are listed.")] = None,
) -> None:
    """Read the guide: first steps, your own method, what a row means.

    In a terminal it is laid out; in a pipe or file it is the Markdown source."""
    topics = guide_topics()
    if topic is None:
        print_table(
            "guide: `unlearnbench guide TOPIC`",
            ["", ""],
            [("", [[name, about] for name, about in topics.items()])],
            left=2,
        )
        return
    if topic not in topics:
        raise _unknown_topic(topic, topics)
    text = (PAGES / f"{topic}.md").read_text(encoding="utf-8")
    if not out.is_terminal:
        show_lines(*text.splitlines())
        return
    from rich.markdown import Markdown

    out.print(Markdown(text, hyperlinks=False), width=min(out.width, WIDEST))
