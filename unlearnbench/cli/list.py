"""`list`: methods, tasks, metrics, attacks and released weights, and the settings of each."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnbench import registry
from unlearnbench.cli.completion import complete_listed, complete_tasks
from unlearnbench.cli.console import out, print_table, show_lines
from unlearnbench.cli.develop import metric_name
from unlearnbench.cli.task_needs import show_needs
from unlearnbench.data.wording import Wording, join_words
from unlearnbench.errors import UserError, unknown

if TYPE_CHECKING:
    from unlearnbench.method import Method
    from unlearnbench.task import Task

lists = typer.Typer()
KINDS = {
    "methods": registry.methods,
    "tasks": registry.tasks,
    "metrics": registry.metrics,
    "attacks": registry.attacks,
}

CHECKPOINTS, FIDELITY = "checkpoints", "fidelity"
SOURCES = "results/fidelity.md"
"""The page of the repository that has each setting of a paper with its source."""
PARTS = {
    **dict.fromkeys(("preset", "presets", "setting", "settings"), ("METHOD", "method", "settings and presets")),
    **dict.fromkeys(("concept", "concepts", "protocol", "protocols"), ("TASK", "task", "concepts and protocols")),
    **dict.fromkeys(("variant", "variants"), ("ATTACK", "attack", "settings and variants")),
}
"""Words for what is listed with the thing that it belongs to: its placeholder, its kind, what is shown of it."""
WORDS = "words of its own, instead of the task's where it has text: --set 'NAME=one; two', or a JSON list"
INDENT = 6
"""Columns that explanations are indented by."""
READABLE = 100
"""Longest line of an explanation, in a pipe as well."""


@lists.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            help="methods, tasks, metrics, attacks, checkpoints or fidelity; or one's name, to see its settings "
            "or protocols; or the path of a .py file of your own.",
            autocompletion=complete_listed,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Show which methods this task supports.", autocompletion=complete_tasks)
    ] = None,
) -> None:
    """List methods, tasks, metrics and attacks, or describe one, which may be a file of your own.

    For a method: its settings and presets. For a task: its concepts and protocols. `checkpoints` are unlearned weights
    that papers released, for `--method checkpoint --set path=released:NAME`. `fidelity` says for which tasks each
    method has the presets published and released, and how far their numbers are from the papers' own code."""
    if task is not None:
        if what is not None:
            raise UserError("list takes a name or --task: leave one out")
        _supported(task)
        return
    if what == CHECKPOINTS:
        _checkpoints()
        return
    if what == FIDELITY:
        _fidelity()
        return
    named = {name: kind for kind, entries in KINDS.items() for name in entries()}
    if what in named:
        _one(what, named[what])
        return
    if what and what.endswith(".py"):
        _file(what)
        return
    if what and what not in KINDS:
        _released(what, [*KINDS, CHECKPOINTS, FIDELITY, *named])
        return
    for name in [what] if what else KINDS:
        title = f"{name} (variants, such as relearn@10: `list NAME`)" if name == "attacks" else name
        rows = [[entry_name, entry.summary] for entry_name, entry in KINDS[name]().items()]
        print_table(title, ["", ""], [("", rows)], left=2)
        out.print()
    if what is None:
        out.print(
            "also: `unlearnbench list fidelity`, how close each method is to its paper and the paper's code; "
            "`unlearnbench list checkpoints`, weights that papers released",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _file(path: str) -> None:
    """Describe the method or metric of a file."""
    name = metric_name(path)
    if name is not None:
        _one(name, "attacks" if name in registry.attacks() else "metrics")
        return
    cls = registry.load_method(path)
    out.print((inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0], markup=False, soft_wrap=True)
    _method(cls)


def _one(name: str, kind: str) -> None:
    out.print(KINDS[kind]()[name].summary, markup=False, soft_wrap=True)
    if kind == "metrics":
        metric = registry.load_metrics()[name]
        better = f"{metric.better} is better" if metric.better else "neither end is better"
        about = inspect.getdoc(type(metric)) or ""
        show_lines(*about.splitlines(), f"{metric.title}: {metric.axis}; {better}")
        return
    if kind == "methods":
        _method(registry.load_method(name))
        return
    if kind == "attacks":
        _print(_attack(name))
        _attack_presets(name)
        return
    _protocols(registry.load_task(name))
    show_needs(registry.load_task(name))


def _method(cls: type[Method]) -> None:
    """Print what a method needs, its settings and its presets."""
    out.print(f"needs {', '.join(sorted(cls.requires)) or 'nothing'}", markup=False)
    registry.require_fields(cls)
    _settings(cls)
    _presets(cls)


def _checkpoints() -> None:
    """Print the table of released weights, method by method."""
    from unlearnbench.data.hosted_weights import released_weights

    groups: dict[str, list[list[str]]] = {}
    for name, entry in released_weights().items():
        fetched = "downloaded" if entry.fetchable else "by hand"
        groups.setdefault(entry.method, []).append([name, entry.erases, entry.format, entry.licence, fetched])
    heads = ["checkpoint", "erases", "format", "licence", "how to get it"]
    print_table("released weights: --method checkpoint --set path=released:NAME", heads, list(groups.items()), left=5)
    out.print("`list NAME` shows paper, original and address", soft_wrap=True, markup=False)


def _fidelity() -> None:
    """Print a block for each method: where published and released exist, what was measured, and what differs."""
    from unlearnbench.fidelity import fidelity_table

    out.print(
        "published: what the paper says, with the code's number where the paper leaves one open; released: what its "
        f"code does, bugs included. The source of each setting: {SOURCES}. Numbers are the largest relative "
        "difference from the repository's own function; exact: equal to the last bit.",
        soft_wrap=True,
    )
    for name, one in fidelity_table().items():
        out.print()
        out.print(f"{name}: {one.paper}", soft_wrap=True, highlight=False)
        for preset in ("published", "released"):
            _block(f"{preset}, {one.tasks(preset)}", one.measured(preset))
        for note in one.notes():
            _indented(f"- {note}")


def _released(name: str, known: list[str]) -> None:
    """Print one entry of the table of released weights."""
    from unlearnbench.data.hosted_weights import released_folder, released_weights

    if name not in released_weights():
        if name in PARTS:
            placeholder, kind, shown = PARTS[name]
            raise UserError(f"list {name}: `unlearnbench list {placeholder}` shows the {shown} of one {kind}")
        raise unknown("kind or name", name, [*known, *released_weights()])
    entry = released_weights()[name]
    rows = [[field, str(value)] for field, value in entry._asdict().items() if field not in ("name", "fetchable")]
    if not entry.fetchable:
        rows.append(
            ["by hand", f"download it from the address, and put its file or folder into {released_folder(name)}"]
        )
    print_table(
        f"{name}: --method checkpoint --set path=released:{name}", ["", ""], [("", [r for r in rows if r[1]])], left=2
    )


def _print(rows: Iterator[list[str]]) -> None:
    """Print a table; the first row is its header. Print nothing if there are no rows."""
    heads = next(rows, None)
    if heads is not None:
        print_table("", heads, [("", list(rows))], left=len(heads))


def _supported(task: str) -> None:
    """Print for each method whether the task supports it, and why not."""
    cls = registry.load_task(task)
    rows = []
    for name in registry.methods():
        method = registry.load_method(name)
        lacking = method.requires - cls.provides - cls.model_parts
        if lacking:
            status, why = "unsupported", f"needs {', '.join(sorted(lacking))}"
        elif cls.defaults or method.chosen_for(task) or not method.space:
            status, why = "supported", ""
        else:
            status, why = "untested", "no settings were chosen for this task"
        about = [why, "needs settings that you give" if method.incomplete else ""]
        about += ["experimental: its update is not yet checked against the formula" if method.experimental else ""]
        rows.append([name, status, "; ".join(filter(None, about))])
    rows.sort(key=lambda row: ("supported", "untested", "unsupported").index(row[1]))
    print_table("", ["method", f"on {task}", ""], [("", rows)], left=3)
    _memory(cls, [row[0] for row in rows if row[1] != "unsupported"])
    show_needs(cls)
    if registry.untried(task):
        out.print(f"{task} was {registry.UNTRIED} by this project: settings are known, results are not", soft_wrap=True)


def _memory(task: type[Task], names: Sequence[str]) -> None:
    """Print how much memory these methods take on a GPU, with their default settings for the task."""
    from unlearnbench.cli.memory_table import show_memory
    from unlearnbench.pipeline.memory import memory_plan, model_costs

    plans, model = {}, model_costs(task)
    for name in names:
        method = registry.load_method(name)
        if not method.incomplete:
            plans[name] = memory_plan(model, method.configured(method.preset("default", task.name)))
    show_memory(plans)


def _settings(cls: type[Method]) -> None:
    """Print the hyper-parameters with their defaults, each with what it means below it."""
    settings, docs = cls().settings(), cls.field_docs()
    words = [key for key in settings if hasattr(cls, "wording") and key in Wording._fields]
    if set(settings) - set(words):
        out.print()
        out.print("settings, changed by --set NAME=VALUE:", highlight=False)
    for key in settings:
        if key not in words:
            _block(f"{key} = {settings[key]}", docs[key])
    if words:
        out.print()
        out.print(WORDS, highlight=False)
    for key in words:
        _block(key, docs[key])


def _presets(cls: type[Method]) -> None:
    """Print a block for each preset and task: what it sets to another value than the default."""
    from unlearnbench.method import OF_PAPERS

    built_in = cls().settings()
    offered = [
        (preset, task, {key: value for key, value in values.items() if built_in.get(key) != value})
        for preset, tasks in cls.offered().items()
        for task, values in tasks.items()
    ]
    _blocks("presets, chosen by --preset NAME, with what they change:", offered)
    if any(preset in OF_PAPERS for preset, _, _ in offered):
        out.print()
        out.print("how close these are to the paper and its code: unlearnbench list fidelity", highlight=False)


def _attack_presets(name: str) -> None:
    """Print a block for each preset of an attack and each task that it was run on."""
    attack = registry.load_attacks()[name]
    built_in = asdict(attack)
    offered = [
        (f"{name}@{preset}", task, {key: value for key, value in values.items() if built_in.get(key) != value})
        for preset, tasks in attack.presets.items()
        for task, values in tasks.items()
    ]
    _blocks("presets of the papers' code, on the tasks that it ran, with what they change:", offered)


def _blocks(title: str, offered: list[tuple[str, str, dict[str, Any]]]) -> None:
    if offered:
        out.print()
        out.print(title, highlight=False)
    for preset, task, changed in offered:
        words = [f"{key}={join_words(value)}" for key, value in changed.items()]
        _block(f"{preset}, {'other tasks' if task == '*' else task}", ", ".join(words) or "as built in")


def _block(title: str, text: str) -> None:
    """Print a title and, indented below it, a text that is broken between words."""
    out.print(f"  {title}", highlight=False, soft_wrap=True)
    _indented(text)


def _indented(text: str) -> None:
    """Print a text that is indented and broken between words; the lines after a dash begin behind it."""
    behind = "  " if text.startswith("- ") else ""
    width = max(min(out.width, READABLE) - INDENT, INDENT)
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=behind):
        out.print(f"{' ' * INDENT}{line}", highlight=False, soft_wrap=True)


def _attack(name: str) -> Iterator[list[str]]:
    """Rows of an attack's settings: the value, and the value in each variant."""
    from unlearnbench.attacks.base import STANDARD
    from unlearnbench.attacks.spec import AttackSpec

    attack = registry.load_attacks()[name]
    needs = f"; needs {', '.join(sorted(attack.needs))}" if attack.needs else ""
    ensemble = [label for label in STANDARD if AttackSpec.parse(label).name == name]
    lines = [*(inspect.getdoc(type(attack)) or "").splitlines(), f"{attack.box} box{needs}; budget in {attack.spends}"]
    lines += [f"in --attacks standard: {', '.join(ensemble) or 'no'}; a variant is {name}@NAME"]
    show_lines(*lines)
    yield ["setting", "built in", *attack.variants]
    for key, value in asdict(attack).items():
        yield [key, _short(value), *(_short(own[key]) if key in own else "" for own in attack.variants.values())]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _protocols(cls: type[Task]) -> None:
    """Print a block for each protocol, with the settings in which it differs, after one of those that all share."""
    from unlearnbench.records.provenance import flat

    out.print(f"concepts: {', '.join(cls.concepts)}; {cls.default_forget} when none is named", soft_wrap=True)
    protocols: dict[str, dict[str, Any]] = {name: flat(asdict(protocol)) for name, protocol in cls.protocols.items()}
    keys = [key for key in dict.fromkeys(key for values in protocols.values() for key in values) if key != "name"]
    shared = [key for key in keys if len({str(values.get(key)) for values in protocols.values()}) == 1]
    out.print()
    out.print("protocols, chosen by --protocol NAME, with their settings:", highlight=False)
    _block("all of them", _listed({key: next(iter(protocols.values()))[key] for key in shared}))
    for name, values in protocols.items():
        _block(name, _listed({key: values[key] for key in keys if key in values and key not in shared}))


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if value not in ("", ()))
