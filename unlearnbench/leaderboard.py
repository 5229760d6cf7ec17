"""Records -> one table, in the terminal, markdown, csv, json or LaTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.metric import Metric
from unlearnbench.record import Record
from unlearnbench.statistics import Interval, t_interval

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("original", "retrain", "destroy")
KEYS = ["task", "protocol", "protocol_hash", "forget", "label", "method", "division", "access"]
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
FIRST = ("ua", "ra", "coherence", "fid", "unlearn_time", "ua_closed")
"""Columns that come first where there is no room for all."""
LABEL = 24
"""Width up to which method labels are kept on one line in the terminal."""


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: keys, status and every score's value."""
    import pandas as pd

    rows = [
        {
            "task": record.task,
            "protocol": record.protocol.name,
            "protocol_hash": record.protocol.hash,
            "forget": record.forget,
            "label": record.label(),
            "method": record.method.name,
            "division": record.method.division,
            "access": ", ".join(record.method.requires) or "none",
            "seed": record.seeds["unlearning"],
            "status": record.status,
            **{name: score.value for name, score in record.scores.items()},
        }
        for record in records
    ]
    return pd.DataFrame(rows)


def board(records: Iterable[Record], metrics: dict[str, Metric] | None = None) -> pd.DataFrame:
    """One row a method, concept and protocol: n, flags and each metric's mean, `_sd`, `_low`, `_high` (t-interval).

    A row depends on its own records alone. Seeds that diverged or were skipped have no values; `flags` counts them.
    """
    import pandas as pd

    metrics = metrics or registry.load_metrics()
    table = frame(records)
    if table.empty:
        return table
    rows = []
    for keys, group in table.groupby(KEYS, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(KEYS, keys, strict=True))
        row["n"] = int(group.status.isin(["ok", "unreliable"]).sum())
        bad = group.status[group.status != "ok"].value_counts()
        row["flags"] = ", ".join(f"{status} {count}/{len(group)}" for status, count in bad.items())
        for name in metrics:
            values = group[name].dropna().astype(float) if name in group else pd.Series(dtype=float)
            interval = t_interval(values.to_numpy())
            row[name] = values.mean() if len(values) else None
            row[f"{name}_sd"] = values.std(ddof=1) if len(values) > 1 else None
            row[f"{name}_low"], row[f"{name}_high"] = interval or (None, None)
        rows.append(row)
    result = pd.DataFrame(rows)
    rank = result.method.map(lambda name: CONTROLS.index(name) if name in CONTROLS else len(CONTROLS))
    order = result.assign(rank=rank).sort_values(
        ["task", "protocol", "protocol_hash", "forget", "rank", "label"], kind="stable"
    )
    return order.drop(columns="rank").reset_index(drop=True)


def chosen(names: str | None, metrics: dict[str, Metric]) -> list[str]:
    """The metrics named in a comma-separated list, or all."""
    if not names:
        return list(metrics)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in metrics:
            from unlearnbench.errors import unknown

            raise unknown("metric", name, metrics)
    return wanted


def shown(metric: Metric, value: float | None, sd: float | None = None) -> str:
    """A value with its spread, in the metric's unit and decimals; — where it is not known."""
    if value is None or math.isnan(value):
        return "—"
    text = f"{value * metric.scale:.{metric.digits}f}"
    return text if sd is None or math.isnan(sd) else f"{text} ± {sd * metric.scale:.{metric.digits}f}"


def summary(records: Sequence[Record], name: str) -> tuple[float | None, Interval | None]:
    """A score over seeds: the mean and a t-interval on seed means; of one record, its value and its own interval."""
    scores = [record.scores[name] for record in records if name in record.scores]
    values = [score.value for score in scores if score.value is not None]
    if not values:
        return None, None
    return sum(values) / len(values), scores[0].interval if len(records) == 1 else t_interval(values)


def head(metric: Metric) -> str:
    """A column's name: title, arrow, unit."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.title}{unit} {ARROWS[metric.better]}".rstrip()


def grouped(records: Iterable[Record]) -> list[list[Record]]:
    """Records of one concept and one method together, in the order in which they come."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.forget, record.label()), []).append(record)
    return list(groups.values())


def gold(records: Iterable[Record], like: Record) -> list[Record]:
    """The retrain records measured on the same task, concept and protocol."""
    same = [record for record in records if record.method.name == "retrain" and record.method.division == "default"]
    key = (like.task, like.forget, like.protocol.hash)
    return [record for record in same if (record.task, record.forget, record.protocol.hash) == key]


def run_rows(group: Sequence[Record], original: Record, retrain: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table after a run: metric, original, method, retrain if there, change, interval."""
    rows = []
    for name, metric in registry.load_metrics().items():
        mean, interval = summary(group, name)
        before, after = summary([original], name)[0], summary(retrain, name)[0]
        change = None if mean is None or before is None or metric.axis == "cost" else mean - before
        bounds = "—" if interval is None else " … ".join(shown(metric, value) for value in interval)
        cells = [shown(metric, value) for value in (before, mean)] + ([shown(metric, after)] if retrain else [])
        rows.append([head(metric), *cells, ("+" if change and change > 0 else "") + shown(metric, change), bounds])
    return ["metric", "original", group[0].label(), *(["retrain"] if retrain else []), "change", "95 % interval"], rows


def tables(
    result: pd.DataFrame, metrics: dict[str, Metric], columns: Sequence[str]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows of one table for each task, protocol and concept: they are never mixed."""
    made = []
    for (task, protocol, hash, forget), group in result.groupby(
        ["task", "protocol", "protocol_hash", "forget"], sort=False
    ):
        title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}"
        heads = ["method", "n", *(head(metrics[name]) for name in columns), "flags"]
        rows = [
            [
                row.label,
                str(row.n),
                *(shown(metrics[name], row[name], row[f"{name}_sd"]) for name in columns),
                row["flags"],
            ]
            for _, row in group.iterrows()
        ]
        if not any(row[-1] for row in rows):
            heads, rows = heads[:-1], [row[:-1] for row in rows]
        made.append((title, heads, rows))
    return made


def fitting(result: pd.DataFrame, metrics: dict[str, Metric], width: int) -> list[str]:
    """The metrics that fit into a terminal of this width, the headline ones first, in their usual order."""
    kept: list[str] = []
    for name in [*FIRST, *(name for name in metrics if name not in FIRST)]:
        trial = [metric for metric in metrics if metric in (*kept, name)]
        for _, heads, rows in tables(result, metrics, trial):
            widths = [max(map(len, [title, *cells])) for title, *cells in zip(heads, *rows, strict=True)]
            if sum(widths[1:]) + min(widths[0], LABEL) + 3 * len(widths) > width:
                return [metric for metric in metrics if metric in kept]
        kept.append(name)
    return list(metrics)


def markdown(result: pd.DataFrame, metrics: dict[str, Metric], columns: Sequence[str]) -> str:
    """GitHub's tables; mean ± standard deviation over n unlearning seeds."""
    parts = []
    for title, heads, rows in tables(result, metrics, columns):
        lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] + ["---:"] * (len(heads) - 1), *rows)]
        parts.append(f"### {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def page(result: pd.DataFrame, metrics: dict[str, Metric], columns: Sequence[str]) -> str:
    """The README of a results folder."""
    notes = "\n".join(
        f"- {head(metrics[name])}: {(type(metrics[name]).__doc__ or '').strip().partition(chr(10))[0]}"
        for name in columns
    )
    return (
        "# Results\n\nMade by `unlearnbench leaderboard --write` from the records below this folder; edits are lost. "
        "Mean ± standard deviation over n unlearning seeds; tables of different protocols must not be compared. "
        "Rankings on small worlds are no evidence about Stable Diffusion.\n\n"
        f"{markdown(result, metrics, columns)}\n## Columns\n\n{notes}\n"
    )


def latex(result: pd.DataFrame, metrics: dict[str, Metric], columns: Sequence[str]) -> str:
    """booktabs tables with a caption that says what was measured."""
    parts = []
    for title, heads, rows in tables(result, metrics, columns):
        lines = [" & ".join(map(_escape, cells)) + r" \\" for cells in (heads, *rows)]
        body = "\n".join(lines[1:])
        caption = _escape(f"{title}. Mean ± standard deviation over n unlearning seeds.")
        parts.append(
            "\\begin{table}\n\\centering\n\\caption{"
            + caption
            + "}\n\\begin{tabular}{l"
            + "r" * (len(heads) - 1)
            + "}\n\\toprule\n"
            f"{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _escape(text: str) -> str:
    for plain, command in (
        ("\\", r"\textbackslash{}"),
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("±", r"$\pm$"),
        ("↑", r"$\uparrow$"),
        ("↓", r"$\downarrow$"),
        ("—", "---"),
        ("~", r"\textasciitilde{}"),
    ):
        text = text.replace(plain, command)
    return text


def as_json(result: pd.DataFrame) -> str:
    """Rows as JSON; numbers are numbers, unknown is null."""
    return json.dumps(json.loads(result.to_json(orient="records")), indent=1, ensure_ascii=False) + "\n"


def formatted(result: pd.DataFrame, metrics: dict[str, Metric], columns: Sequence[str], kind: str) -> str:
    """The board as text of one kind."""
    if kind == "markdown":
        return markdown(result, metrics, columns)
    if kind == "latex":
        return latex(result, metrics, columns)
    if kind == "csv":
        return result.to_csv(index=False)
    if kind == "json":
        return as_json(result)
    raise UserError(f"unknown format {kind!r}: known: terminal, markdown, csv, latex, json")
