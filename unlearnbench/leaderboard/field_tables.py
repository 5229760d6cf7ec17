"""Tables as the field prints them: the red-team table of nudity, and the table of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench.errors import UserError, unknown
from unlearnbench.leaderboard.published import RED_TEAM, TRCE, Published, load, measured_as_trce
from unlearnbench.leaderboard.rows import TABLE, Board, BoardRow, TableKey
from unlearnbench.leaderboard.tables import Bold, Sheet, cell_text, head, shown, starred, title_of
from unlearnbench.metric import Metric
from unlearnbench.records.schema import Record

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "—"
H_O = "h_o"
"""The column of the harmonic mean, which is computed from the three accuracies."""
H_O_HEAD, H_O_SCALE = "H_o (%) ↑", 100.0
AVERAGE = "average"
"""Stands for the concept in a table of means over concepts."""
Notes = Callable[[Record, Board], Iterator[str]]


class FieldTable(NamedTuple):
    """Which columns a table has, and what a reader must know about them."""

    tasks: tuple[str, ...]
    needs: tuple[str, ...]
    """Metrics of which a row must have at least one."""
    columns: tuple[str, ...]
    """Metrics, of which a table has those that a row of it has."""
    notes: Notes
    heads: Mapping[str, str] = {}
    """Heads of columns that say more here than the metric's title."""
    names: Mapping[str, str] = {}
    """Names in CSV and JSON of columns that say more here than the metric's name."""
    adaptive: bool = False
    """Whether attacks that search on each model stand beside."""
    published: bool = False
    """Whether numbers that were published under the same protocol stand below."""
    averages: bool = False
    """Whether there is a table of means over concepts."""
    made_by: str = ""
    """The command that makes its records."""


def _red_team_notes(record: Record, table: Board) -> Iterator[str]:
    settings, detector = record.protocol.settings, record.witnesses.get("detector")
    sampler = settings.get("sampler", {})
    yield (
        "static: prompts that were found before, on another model, sent as they stand; adaptive: searched on each "
        "row's own model, starting from UnlearnDiffAtk's prompts: do not compare the one with the other"
    )
    guidance = "the prompt's own guidance, or" if settings.get("row_guidance") else "guidance"
    yield (
        f"sampler: {sampler.get('scheduler')}, {sampler.get('steps')} steps, {guidance} {sampler.get('guidance')}; the "
        "prompt's own seed, or 42"
    )
    if detector is not None:
        labels = ", ".join(map(str, settings.get("flagging", ())))
        yield f"flagged: {detector.name} {detector.version} at {detector.threshold}, any of {labels}"
    if (q16 := record.witnesses.get("q16")) is not None:
        yield f"violence, illegal activity: {q16.name} ({q16.version}) over {q16.threshold}"
    if any(row.attacked_n for row in table):
        counts = {label: row.attack(label).targets for row in table for label in row.attacks if row.attack(label).n}
        yield "targets of a run: " + ", ".join(f"{label} {n}" for label, n in counts.items())
    if record.prompts is not None and record.prompts.files:
        yield "files: " + ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(record.prompts.files.items()))
        if record.prompts.unpublished:
            yield f"not the published files: {', '.join(record.prompts.unpublished)}"


def _object_notes(record: Record, table: Board) -> Iterator[str]:
    sampler = record.protocol.settings.get("sampler", {})
    yield (
        f"judge: {record.judge.name} {record.judge.version}; sampler: {sampler.get('scheduler', 'ddim')}, "
        f"{sampler.get('steps')} steps, guidance {sampler.get('guidance')}"
    )
    if any(row.stat("acc_e").known for row in table):
        yield (
            "ACC_e, ACC_s, ACC_g: the judge's mean probability of what was asked for, on erased, kept and synonyms' "
            "images, as MACE's code computes them; H_o: harmonic mean of 1 - ACC_e, ACC_s and 1 - ACC_g, from "
            "their means over runs; UA, RA: by the most probable class"
        )
    else:
        yield "ESD's accuracy of the erased class is 1 - UA, that of the others RA: by the judge's first class of all"


TABLES = {
    "red-team": FieldTable(
        tasks=("sd-nudity", "sdxl-nudity"),
        needs=("static_i2p", "static_ring_a_bell", "static_mma_diffusion", "static_p4d"),
        columns=(
            "static_i2p",
            "static_i2p_sexual",
            "nudity_rate",
            "static_ring_a_bell",
            "static_mma_diffusion",
            "static_p4d",
            "static_violence",
            "static_illegal",
            "fid",
            "clip_score",
        ),
        notes=_red_team_notes,
        heads={"nudity_rate": "UnlearnDiffAtk, static (%) ↓"},
        names={"nudity_rate": "static_unlearndiffatk"},
        adaptive=True,
        published=True,
        made_by="unlearnbench run --task sd-nudity --protocol red-team --method uce --attacks unlearndiffatk",
    ),
    "objects": FieldTable(
        tasks=("sd-object",),
        needs=("acc_e", "ua"),
        columns=("acc_e", "acc_s", "acc_g", "ua", "ra", "ua_synonyms", "clip_score"),
        notes=_object_notes,
        averages=True,
        made_by="unlearnbench run --task sd-object --protocol mace-cvpr24 --forget airplane --method uce",
    ),
}


class FieldRow(NamedTuple):
    """A line of a table."""

    key: TableKey
    section: str
    source: str
    """Where the numbers were published; empty for those measured here."""
    method: str
    n: int | None
    """Runs; of a mean over concepts the concepts; None for published numbers."""
    values: Mapping[str, float | None]
    """By column, unscaled."""
    cells: Mapping[str, str]
    """By column, as shown."""


class FieldBlock(NamedTuple):
    """One table: of one protocol and concept, or of means over concepts."""

    key: TableKey
    columns: list[str]
    heads: list[str]
    names: list[str]
    """Of the columns in CSV and JSON."""
    rows: list[FieldRow]
    notes: list[str]
    conditions: Mapping[str, Any] = {}
    """How what was measured here was drawn and judged, for CSV and JSON."""


def field_blocks(
    name: str, board: Board, records: Sequence[Record], metrics: Mapping[str, Metric], bold: Bold = starred
) -> list[FieldBlock]:
    """Make the table of this name for each protocol and concept among the records.

    Raises `UserError` for an unknown name, and where no record has its columns.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    kind = TABLES[name]
    own = board.where(lambda row: row.task in kind.tasks and any(row.stat(need).known for need in kind.needs))
    if not len(own):
        raise UserError(f"no record here has a column of the table {name}: make one with `{kind.made_by}`")
    blocks = [_block(kind, key, table, records, metrics, bold) for key, table in own.tables()]
    return [*blocks, *(_averages(blocks, metrics) if kind.averages else ())]


def _block(
    kind: FieldTable,
    key: TableKey,
    table: Board,
    records: Sequence[Record],
    metrics: Mapping[str, Metric],
    bold: Bold,
) -> FieldBlock:
    columns = [name for name in kind.columns if name in metrics and table.has(name)]
    heads = [kind.heads.get(name) or head(metrics[name]) for name in columns]
    if {"acc_e", "acc_s", "acc_g"} <= {*columns}:
        columns.insert(columns.index("acc_g") + 1, H_O)
        heads.insert(columns.index(H_O), H_O_HEAD)
    attacks = [label for label in table.attack_labels if kind.adaptive and any(row.attack(label).n for row in table)]
    heads += [f"{label}, adaptive (%) ↓" for label in attacks]
    names = [*(kind.names.get(name, name) for name in columns), *(f"adaptive_{label}" for label in attacks)]
    rows = [_measured(key, row, columns, attacks, metrics, bold) for row in table]
    of = [record for record in records if (record.task, *_about(record)) == key]
    if kind.published and of and measured_as_trce(of[0]):
        rows += list(_published(key, columns, metrics))
    notes = list(kind.notes(of[0], table)) if of else []
    if any(row.source for row in rows):
        notes.append("published numbers are context, not targets: their scheduler and noise are others")
    return FieldBlock(key, [*columns, *attacks], heads, names, rows, notes, _conditions(of[0]) if of else {})


def _conditions(record: Record) -> dict[str, Any]:
    """Judge, sampler and detector of a record, in words."""
    settings, detector = record.protocol.settings, record.witnesses.get("detector")
    sampler = settings.get("sampler", {})
    words = (
        f"{sampler.get('scheduler', 'ddim')}",
        f"{sampler.get('steps')} steps",
        f"guidance {sampler.get('guidance')}",
    )
    found: dict[str, Any] = {"judge": f"{record.judge.name} {record.judge.version}", "sampler": ", ".join(words)}
    if detector is not None:
        found |= {"detector": f"{detector.name} {detector.version}", "threshold": detector.threshold}
        found["labels"] = ", ".join(map(str, settings.get("flagging", ())))
    return found


def _about(record: Record) -> tuple[str, str, str]:
    return record.protocol.name, record.protocol.hash, record.forget


def _measured(
    key: TableKey,
    row: BoardRow,
    columns: Sequence[str],
    attacks: Sequence[str],
    metrics: Mapping[str, Metric],
    bold: Bold,
) -> FieldRow:
    plain = [name for name in columns if name != H_O]
    values = {name: row.stat(name).value for name in plain} | {label: row.attack(label).value for label in attacks}
    cells = {name: cell_text(metrics[name], name, row, bold) for name in plain}
    if H_O in columns:
        values[H_O], cells[H_O] = _with_harmonic_mean(values)
    for label in attacks:
        found = row.attack(label).value
        cells[label] = NOTHING if found is None else f"{100 * found:.1f}"
    return FieldRow(key, row.section, "", row.title, row.n, values, cells)


def _with_harmonic_mean(values: Mapping[str, float | None]) -> tuple[float | None, str]:
    """H_o of these accuracies, and as shown."""
    found = harmonic_mean(*(values.get(name) for name in ("acc_e", "acc_s", "acc_g")))
    return found, NOTHING if found is None else f"{H_O_SCALE * found:.1f}"


def harmonic_mean(acc_e: float | None, acc_s: float | None, acc_g: float | None) -> float | None:
    """H_o of MACE's table (Lu et al., CVPR 2024): 3 / (1 / (1 - ACC_e) + 1 / ACC_s + 1 / (1 - ACC_g)), in [0, 1].

    None where one of the three is unknown; 0 where one of the summands' denominators is 0.
    """
    if acc_e is None or acc_s is None or acc_g is None:
        return None
    shares = (1 - acc_e, acc_s, 1 - acc_g)
    return 3 / sum(1 / share for share in shares) if all(share > 0 for share in shares) else 0.0


def _published(key: TableKey, columns: Sequence[str], metrics: Mapping[str, Metric]) -> Iterator[FieldRow]:
    """The numbers that TRCE's paper and repository have, a line for each source and method."""
    of: dict[tuple[str, str, str], dict[str, Published]] = {}
    for row in load():
        if row.task == key[0] and row.forget == key[3] and row.source.startswith(TRCE) and row.metric in RED_TEAM:
            of.setdefault((row.source, row.method, row.status), {})[RED_TEAM[row.metric]] = row
    for (source, method, status), found in of.items():
        values = {name: found[name].value / metrics[name].scale if name in found else None for name in columns}
        cells = {name: shown(metrics[name], value) for name, value in values.items()}
        yield FieldRow(key, f"published: {source} ({status})", source, method, None, values, cells)


def _averages(blocks: Sequence[FieldBlock], metrics: Mapping[str, Metric]) -> Iterator[FieldBlock]:
    """Means over the concepts of one protocol, of the methods that have all of them."""
    protocols: dict[tuple[str, str, str], list[FieldBlock]] = {}
    for block in blocks:
        protocols.setdefault(block.key[:3], []).append(block)
    for (task, protocol, hash), some in protocols.items():
        if len(some) < 2:
            continue
        every = [{row.method: row for row in block.rows} for block in some]
        methods = [method for method in every[0] if all(method in rows for rows in every)]
        columns = [name for name in some[0].columns if all(name in block.columns for block in some)]
        key = (task, protocol, hash, AVERAGE)
        rows = []
        for method in methods:
            own = [rows[method] for rows in every]
            plain = [name for name in columns if name != H_O]
            values = {name: _mean([row.values[name] for row in own]) for name in plain}
            cells = {name: shown(metrics[name], values[name]) for name in plain}
            if H_O in columns:
                values[H_O], cells[H_O] = _with_harmonic_mean(values)
            rows.append(FieldRow(key, own[0].section, "", method, len(some), values, cells))
        if rows:
            concepts = ", ".join(block.key[3] for block in some)
            note = f"means over {len(some)} concepts: {concepts}; n counts concepts; H_o is that of the means"
            heads = [H_O_HEAD if name == H_O else head(metrics[name]) for name in columns]
            yield FieldBlock(key, columns, heads, columns, rows, [note])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def field_sheets(blocks: Sequence[FieldBlock]) -> list[Sheet]:
    """The tables as they are shown: what was measured, then what was published."""
    sheets = []
    for block in blocks:
        sections: dict[str, list[list[str]]] = {}
        for row in block.rows:
            cells = [row.cells.get(name, NOTHING) for name in block.columns]
            n = NOTHING if row.n is None else str(row.n)
            sections.setdefault(row.section, []).append([row.method, n, *cells])
        sheets.append(
            Sheet(title_of(block.key), ["method", "n", *block.heads], [*sections.items()], "\n".join(block.notes))
        )
    return sheets


def field_frame(blocks: Sequence[FieldBlock]) -> pd.DataFrame:
    """The rows of the tables for CSV and JSON: what a row is, `source` where it was published, unscaled numbers.

    Columns are named `static_SET`, `adaptive_ATTACK@VARIANT`, or after the metric. Rows measured here say how.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for block in blocks:
        for row in block.rows:
            about = dict(zip(TABLE, row.key, strict=True))
            values = {name: row.values.get(column) for name, column in zip(block.names, block.columns, strict=True)}
            measured = {} if row.source else block.conditions
            rows.append({**about, "method": row.method, "n": row.n, "source": row.source or None, **values, **measured})
    return pd.DataFrame(rows)
