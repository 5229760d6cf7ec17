"""Commands for writing methods, metrics and concepts: check, new-method, new-metric, new-concept."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from unlearnbench import registry
from unlearnbench.cli.console import out
from unlearnbench.errors import UserError
from unlearnbench.printable import printable

own = typer.Typer()


class TemplateStyle(str, Enum):
    """Kinds of method template."""

    losses = "losses"
    loop = "loop"
    edit = "edit"


@own.command()
def check(
    file: Annotated[str, typer.Argument(help="Path of a method's .py file, or the name of a method or metric.")],
) -> None:
    """Check that a method follows the interface of `Method`, or that a metric gives its known answers."""
    name = metric_name(file)
    if name is not None:
        _check_metric(name)
    cls = registry.load_method(file)

    from unlearnbench.verification.conformance import conformance

    failed = 0
    for name, meaning, failure in conformance(cls):
        failed += failure is not None
        mark = ("✓", "green") if failure is None else ("✗", "red")
        line = Text.assemble(mark, " ", (name, "bold"), f" {printable(failure or meaning)}")
        out.print(line, highlight=False, soft_wrap=True)
    out.print(f"{cls.name} conforms" if not failed else f"{cls.name}: {failed} to fix")
    raise typer.Exit(1 if failed else 0)


def metric_name(file: str) -> str | None:
    """The metric that a name or path stands for; None if it stands for none."""
    path = Path(file)
    known = registry.metrics().keys() | registry.attacks().keys()
    if file in known:
        return file
    named = path.suffix == ".py" and path.parent.name == "metrics" and path.is_file()
    return path.stem if named and path.stem in known else None


def _check_metric(name: str) -> None:
    from unlearnbench.verification.selfcheck import check_metric

    failed = 0
    for result in check_metric({**registry.load_metrics(), **registry.load_attacks()}[name]):
        failed += not result.passed
        mark = ("✓", "green") if result.passed else ("✗", "red")
        text = f" {printable(result.case)}: {printable(result.found)}, expected {printable(result.expected)}"
        out.print(Text.assemble(mark, text), highlight=False, soft_wrap=True)
    out.print(f"{name} gives its known answers" if not failed else f"{name}: {failed} to fix")
    raise typer.Exit(1 if failed else 0)


@own.command("new-method")
def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method: lower-case letters, digits and _.")],
    style: Annotated[
        TemplateStyle,
        typer.Option(help="Template: a stream of losses, your own training loop, or an edit of the weights."),
    ] = TemplateStyle.losses,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path(),
) -> None:
    """Create a working template for a method of your own."""
    from unlearnbench.cli.templates import method_template

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} cannot name a method: use lower-case letters, digits and _, such as my_method")
    if name in registry.methods():
        raise UserError(f"{name!r} is a method already: choose another name, such as my_{name}")
    path = folder / f"{name}.py"
    _start(path, method_template(name, style.value))
    out.print(f"wrote {path}; next: unlearnbench check {path} && unlearnbench run --method {path}", soft_wrap=True)


@own.command("new-metric")
def new_metric(
    name: Annotated[str, typer.Argument(help="Name of the metric: lower-case letters, digits and _.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("metrics"),
) -> None:
    """Create a working template for a metric of your own, in the metrics folder of a checkout."""
    from unlearnbench.cli.templates import metric_template

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} cannot name a metric: use lower-case letters, digits and _, such as my_metric")
    if name in registry.metrics().keys() | registry.attacks().keys():
        raise UserError(f"{name!r} is a metric already: choose another name, such as my_{name}")
    path = folder / f"{name}.py"
    _start(path, metric_template(name))
    out.print(f"wrote {path}; next: unlearnbench check {name}", soft_wrap=True)


@own.command("new-concept")
def new_concept(
    name: Annotated[str, typer.Argument(help="Name of the concept in records and folders.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path(),
) -> None:
    """Create a commented concept file for --concept."""
    from unlearnbench.cli.templates import CONCEPT

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,59}", name):
        raise UserError(f"{name!r} cannot name a concept file: use letters, digits, +, - and _, such as my-concept")
    path = folder / f"{name}.toml"
    _start(path, CONCEPT.format(name=name))
    out.print(f"wrote {path}; next: unlearnbench run --task digits-text --concept {path} --method uce", soft_wrap=True)


def _start(path: Path, text: str) -> None:
    """Write a new file; refuse to overwrite one."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        if not folder.is_dir():
            raise UserError(f"cannot write below {folder}, which is a file: name a folder with --out") from error
        raise UserError(f"{path} already exists: choose another name, or delete it") from error
    except OSError as error:
        why = (error.strerror or "").lower()
        raise UserError(f"cannot write {path} ({why}): name another folder with --out") from error
