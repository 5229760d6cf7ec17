"""A record's unlearned model as a diffusers folder with a model card."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearnbench import __version__, registry
from unlearnbench.errors import UserError
from unlearnbench.hashing import state_hash
from unlearnbench.models.loading import as_pipeline
from unlearnbench.record import Record
from unlearnbench.runner import drafted, weight_parts, wraps
from unlearnbench.stages import Cell, loaded, metrics_for, unlearn
from unlearnbench.store import Store, cannot_write
from unlearnbench.text import TextTask


def export(record: Record, cell: Cell, store: Store, folder: Path) -> Path:
    """Write the model into `folder`, whole or not at all.

    Weights come from the store, or are unlearned anew; either way they must be those that the record names. Raises
    `UserError` for what a diffusers folder cannot carry.
    """
    _exportable(record, cell)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a folder that does not exist, or an empty one")
    parts = weight_parts(cell, drafted(cell, metrics_for(cell.task)))
    state, _ = store.stage("weights", parts, lambda: unlearn(cell, cell.task.pretrained().eval()))
    found = state_hash(state)
    if found != record.weights["unlearned"]:
        raise UserError(
            f"unlearning came to other weights ({found[:12]}) than the record's, "
            f"{str(record.weights['unlearned'])[:12]}: `unlearnbench verify` says what differs; equal ones need the "
            "record's device, libraries and threads"
        )
    model: Any = loaded(cell, state)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
            made = Path(temporary) / "model"
            as_pipeline(model).save_pretrained(made)
            (made / "README.md").write_text(card(record, cell))
            made.chmod(0o755)
            if folder.is_dir():
                folder.rmdir()
            shutil.move(made, folder)
    except OSError as error:
        raise UserError(cannot_write(folder, error, "another DIR")) from error
    return folder


def _exportable(record: Record, cell: Cell) -> None:
    if record.weights["unlearned"] is None:
        raise UserError(
            f"the record is of a run that {record.status} ({record.reason}): there are no weights to export"
        )
    if wraps(cell):
        raise UserError(
            f"{cell.method.name} acts while images are drawn, which no folder can carry: run the method itself"
        )
    if not isinstance(cell.task, TextTask):
        raise UserError(
            f"{cell.task.name} has no text-to-image model, so there is no pipeline to export: its weights are in the "
            "store, and `unlearnbench run` makes them anew"
        )


# ---- the card ------------------------------------------------------------------------------------------------------


def card(record: Record, cell: Cell) -> str:
    """The folder's README: YAML for the hub, then what the model is and what was measured."""
    about = registry.methods()
    method = about[record.method.name].summary if record.method.name in about else record.method.name
    settings = ", ".join(f"{name} = {value}" for name, value in record.method.settings.items()) or "none"
    task: Any = cell.task
    lines = [
        "---",
        f"license: {task.licence}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [machine-unlearning, concept-erasure, unlearnbench]",
        "---",
        "",
        f"# {_plain(record.task)} without {_plain(record.forget)}",
        "",
        f"Unlearned by {_plain(method)}",
        "",
        f"- Settings: {_plain(settings)}",
        f"- Task {_plain(record.task)}, protocol {_plain(record.protocol.name)} ({record.protocol.hash[:12]}), "
        f"unlearning seed {record.seeds['unlearning']}, division {record.method.division}",
        *(f"- Erased: {_plain(line)}" for line in _erased(task)),
        f"- Record: key {record.key}, content hash {record.content_hash}, made {_plain(record.created)}",
        f"- Weights: {record.weights['unlearned']}, from the original's {record.weights['original']}",
        f"- Licence: {task.licence}, {task.origin}. No safety checker was run, and none is in this folder.",
        "",
        "The same record again:",
        "",
        f"    {_plain_code(command(record, cell))}",
        "",
        "| measured | value | 95 % interval | n |",
        "|---|---:|---:|---:|",
        *_scores(record),
        "",
        "## Attacks that got through",
        "",
        *_attacks(record),
        "",
        f"Written by unlearnbench {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def command(record: Record, cell: Cell) -> str:
    """What to type for the same record."""
    words = ["unlearnbench", "run", "--task", record.task, "--method", record.method.name]
    words += ["--concept", "FILE.toml"] if record.protocol.settings.get("concepts") else ["--forget", record.forget]
    words += ["--protocol", record.protocol.name, "--seeds", str(record.seeds["unlearning"])]
    words += ["--preset", record.method.preset]
    given = {name: record.method.settings.get(name, value) for name, value in record.method.overrides.items()}
    words += [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    return shlex.join(words)


def _erased(task: TextTask) -> Iterator[str]:
    for concept in task.erased:
        also = f"; as well known by {', '.join(concept.synonyms)}" if concept.synonyms else ""
        yield f"{', '.join(concept.names)} (substitute {concept.substitute}{also})"


def _scores(record: Record) -> Iterator[str]:
    metrics = registry.load_metrics()
    for name, score in record.scores.items():
        metric = metrics.get(name)
        scale, unit, digits = (metric.scale, metric.unit, metric.digits) if metric else (1.0, score.unit, 3)

        def shown(value: float, scale: float = scale, digits: int = digits) -> str:
            return f"{value * scale:.{digits}f}"

        value = "unknown" if score.value is None else shown(score.value)
        bounds = "—" if score.interval is None else " to ".join(map(shown, score.interval))
        title = f"{metric.title if metric else name}{f' ({unit})' if unit else ''}"
        yield f"| {_plain(title)} | {value} | {bounds} | {score.n} |"


def _attacks(record: Record) -> Iterator[str]:
    tried = {name: score for name, score in record.scores.items() if score.axis == "robustness"}
    if not tried:
        yield "No attack was run on this record. Weights that no longer answer a prompt may still hold the concept."
    for name, score in tried.items():
        yield f"- {_plain(name)}: {'unknown' if score.value is None else f'{score.value:.3g}'} {_plain(score.unit)}"


def _plain(text: str) -> str:
    """A record's text in Markdown: it is data, so that nothing in it may be a link, HTML or a new line."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|])", r"\\\1", " ".join(str(text).split()))


def _plain_code(text: str) -> str:
    return " ".join(text.split())
