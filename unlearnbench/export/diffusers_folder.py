"""Save a record's unlearned model as a diffusers folder with a model card."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench import __version__, registry
from unlearnbench.data.wording import join_words
from unlearnbench.errors import UserError
from unlearnbench.hashing import state_hash
from unlearnbench.models.flow_folder import as_flow_pipeline
from unlearnbench.models.loading import as_pipeline
from unlearnbench.models.text_flow import TextFlow
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted, wraps
from unlearnbench.pipeline.runner import unlearned
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.pipeline.unlearning import loaded
from unlearnbench.printable import printable
from unlearnbench.records.schema import Record
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.storage.files import cannot_write, flush
from unlearnbench.storage.store import Store
from unlearnbench.storage.weights import full_disk
from unlearnbench.tasks._text import TextTask
from unlearnbench.training import Diverged

ELSEWHERE = "`unlearnbench verify` says what differs; equal weights need the record's device, libraries and threads"


def export_folder(record: Record, cell: Cell, store: Store, folder: Path) -> Path:
    """Write the model into `folder`, completely or not at all.

    Weights come from the store, or the model is unlearned again; either way they must have the hash in the record.
    Raises `UserError` for what a diffusers folder cannot hold.
    """
    _exportable(record, cell)
    _free(folder)
    model: Any = loaded(cell, recalled(record, cell, store))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
            made = Path(temporary) / "model"
            with full_disk(), _silent():
                pipeline = as_flow_pipeline(model) if isinstance(model, TextFlow) else as_pipeline(model)
                pipeline.save_pretrained(made)
            (made / "README.md").write_text(card(record, cell), encoding="utf-8")
            for path in [made, *made.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)  # libraries make weights readable to their owner alone
                if path.is_file():
                    flush(path)
            if folder.is_dir():
                folder.rmdir()
            made.rename(folder)
    except OSError as error:
        raise UserError(cannot_write(folder, error, "`export RECORD DIR`")) from error
    return folder


def recalled(record: Record, cell: Cell, store: Store) -> dict[str, Tensor]:
    """The unlearned weights of a record, from the store or unlearned again; `UserError` if their hash differs."""
    _finished(record)
    draft = drafted(cell, metrics_for(cell.task))
    then, now = record.weights["original"], draft.weights["original"]
    if now != then:
        raise UserError(
            f"the record's original weights are {str(then)[:12]}, these are {str(now)[:12]}: name the folder with the "
            "record's own by --pretrained"
        )
    try:
        state, _ = unlearned(cell, draft, store)
    except Diverged as error:
        raise UserError(f"unlearning anew diverged ({error}), which the record's did not: {ELSEWHERE}") from error
    if (found := state_hash(state)) != record.weights["unlearned"]:
        raise UserError(
            f"unlearning came to other weights ({found[:12]}) than the record's, "
            f"{str(record.weights['unlearned'])[:12]}: {ELSEWHERE}"
        )
    return state


def _finished(record: Record) -> None:
    if record.weights["unlearned"] is None:
        raise UserError(
            f"the record is of a run that {'was ' * (record.status == 'skipped')}{record.status} ({record.reason}), "
            "which left no weights to export: "
            "name a record of a run that came to its end"
        )


def _exportable(record: Record, cell: Cell) -> None:
    _finished(record)
    if not isinstance(cell.task, TextTask):
        raise UserError(
            f"{cell.task.name} has no text-to-image model, so there is no pipeline to export: its weights are in the "
            "store, and `unlearnbench run` makes them anew"
        )
    if wraps(cell):
        raise UserError(
            f"{cell.method.name} acts while images are drawn, which no folder can carry: run the method itself"
        )


def _free(folder: Path) -> None:
    """Check before the work, and without leaving anything, that the folder can be written."""
    try:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UserError(f"{folder} is there already: name a DIR that does not exist, or an empty one")
        if folder.resolve() == Path.cwd():  # it would be replaced while a process uses it as its working folder
            raise UserError(f"{folder} is the current folder: name a DIR in it, such as {folder / 'model'}")
        above = next(place for place in folder.absolute().parents if place.exists())
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(cannot_write(folder, error, "`export RECORD DIR`")) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Hide the progress bar that transformers shows for files which are written in a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ---- the card ------------------------------------------------------------------------------------------------------


def card(record: Record, cell: Cell) -> str:
    """The folder's README: YAML for the hub, then what the model is and what was measured."""
    about = registry.methods()
    method = _plain(about[record.method.name].summary) if record.method.name in about else _code(record.method.name)
    settings = ", ".join(_code(f"{name} = {value}") for name, value in record.method.settings.items()) or "none"
    task: Any = cell.task
    licence, origin = _licence(record, task)
    status = f"{record.status} ({_code(record.reason)})" if record.reason else record.status
    lines = [
        "---",
        f"license: {licence}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [machine-unlearning, concept-erasure, unlearnbench]",
        "---",
        "",
        f"# {task.name} without {_code(record.forget)}",
        "",
        f"Unlearned by {method}",
        "",
        f"- Settings: {settings}",
        f"- Task {task.name}, protocol {_code(record.protocol.name)} ({_code(record.protocol.hash[:12])}), "
        f"unlearning seed {record.seeds['unlearning']}, division {record.method.division}",
        *(f"- Erased: {line}" for line in _erased(task)),
        f"- Record: status {status}, key {_code(record.key)}, content hash {_code(record.content_hash)}, made "
        f"{_code(record.created)}",
        f"- Weights: {_code(record.weights['unlearned'])}, from the original's {_code(record.weights['original'])}",
        f"- Licence: {licence}; {origin}. No safety checker was run, and none is in this folder.",
        "",
        "The same record again:",
        "",
        f"    {' '.join(remake_command(record, cell).split())}",
        "",
        *_definition(record, task),
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


def _licence(record: Record, task: TextTask) -> tuple[str, str]:
    """The licence in the hub's form and its owner; unknown for weights that this package does not ship."""
    if task.weights is not None:
        return "unknown", "the original's weights are the user's own, under the licence that they came with"
    if record.method.name == "checkpoint":
        return "unknown", f"the original is {task.licence}, {task.origin}; the checkpoint has a licence of its own"
    return task.licence, task.origin


def remake_command(record: Record, cell: Cell) -> str:
    """The command that makes the same record; words in capitals stand for files that the record does not hold."""
    name = record.method.name
    words = ["unlearnbench", "run", "--task", record.task]
    words += ["--method", name if name in registry.methods() else f"{name}.py"]
    words += ["--concept", "FILE.toml"] if record.protocol.settings.get("concepts") else ["--forget", record.forget]
    words += ["--protocol", record.protocol.name, "--seeds", str(record.seeds["unlearning"])]
    words += ["--preset", record.method.preset, "--device", cell.task.device]
    words += ["--pretrained", "FOLDER"] if cell.task.weights is not None else []
    saved = cell.resources.named()
    words += ["--precision", saved["precision"]] if "precision" in saved else []
    words += ["--memory", ",".join(saved["memory"])] if "memory" in saved else []
    words += ["--compile"] if "compile" in saved else []
    given = {name: record.method.settings.get(name, value) for name, value in record.method.overrides.items()}
    given |= {"path": "CHECKPOINT"} if name == "checkpoint" else {}
    words += [word for name, value in given.items() for word in ("--set", f"{name}={join_words(value)}")]
    return shlex.join(words)


def _erased(task: TextTask) -> Iterator[str]:
    for concept in task.erased:
        also = f"; as well known by {_code(', '.join(concept.synonyms))}" if concept.synonyms else ""
        yield f"{_code(', '.join(concept.names))} (substitute {_code(concept.substitute)}{also})"


def _definition(record: Record, task: TextTask) -> Iterator[str]:
    """The user's concept file as an indented block, which nothing within a line can end."""
    if not record.protocol.settings.get("concepts"):
        return
    yield from ("with `FILE.toml`:", "", f"    name = {_quoted(record.forget)}")
    for concept in task.erased:
        yield from ("", "    [[concept]]")
        yield from (f"    {name} = {_quoted(value)}" for name, value in asdict(concept).items() if value)
    yield ""


def _quoted(value: Any) -> str:
    """A string or list of strings in TOML, which is JSON but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _scores(record: Record) -> Iterator[str]:
    for name, score in record.scores.items():
        title, shown = _as_shown(name, score)
        value = (
            shown(score.value) if score.value is not None else f"unknown: {_code(score.reason or 'no reason given')}"
        )
        bounds = "—" if score.interval is None else " to ".join(map(shown, score.interval))
        yield f"| {title} | {value} | {bounds} | {score.n} |"


def _as_shown(name: str, score: ScoreRecord) -> tuple[str, Callable[[float], str]]:
    """A score's title with its unit, and the format of its values; for an unknown metric, as in the record."""
    metric = registry.load_metrics().get(name)
    if metric is None:
        return " ".join([_code(name), *([f"({_code(score.unit)})"] if score.unit else [])]), "{:.4g}".format
    title = _plain(f"{metric.title} ({metric.unit})" if metric.unit else metric.title)
    return title, lambda value: f"{value * metric.scale:.{metric.digits}f}"


def _attacks(record: Record) -> Iterator[str]:
    if not record.attacks:
        yield (
            "No attack was run for this record. Weights alone may not keep the concept from coming back: by other "
            "words, by prompts or embeddings that are searched for, or by a little training."
        )
        return
    yield "Share of forget samples that each attack recovered; some attacks recover a concept from any model."
    yield ""
    for label, attack in record.attacks.items():
        share = f"not known ({_plain(attack.reason or attack.status)})"
        if attack.value is not None:
            share = f"{100 * attack.value:.1f} % of {attack.n - attack.missing}"
        yield f"- {_code(label)} ({attack.box} box, up to {attack.limit:,.0f} {attack.unit} each): {share}"


def _plain(text: str) -> str:
    """Our own text in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~])", r"\\\1", " ".join(printable(text).split()))


def _code(text: object) -> str:
    """Text from a record in Markdown: no part of it may become a link, HTML, another cell or a new line."""
    return f"`{' '.join(printable(str(text)).replace('`', chr(39)).split()).replace('|', '/') or '—'}`"
