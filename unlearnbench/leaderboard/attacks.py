"""What attacks found as tables: the ranking by worst case beside the ranking by UA, and every attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.errors import unknown
from unlearnbench.leaderboard.board import CONTROLS, KEYS, TABLE
from unlearnbench.leaderboard.robustness import GOLD, box_of
from unlearnbench.leaderboard.tables import Sheet, width_of
from unlearnbench.records.identity import plain
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.registry import words

if TYPE_CHECKING:
    import pandas as pd


FORGETS, FALLS = 0.9, 0.5
"""A method falls that forgets by UA, and whose worst case is at least this."""
HEADS = ["UA (%) ↑", "rank", "worst attack (%) ↓", "rank", "by", "white box", "black box"]
NOT_BRIEF = ["95 % intervals", *HEADS[-2:]]
"""What a brief table leaves out."""
NOTHING = "—"
LEGEND = (
    "n: runs that were attacked, UA is theirs; "
    "worst attack: excess of ASR over retrain's under the same attack (plain ASR where no retrain was attacked), the "
    "largest of the standard ensemble, with its 95 % interval; ≥ where an attack of it is missing or skipped. Of each "
    "attack: ASR, and its excess in brackets. Ranks are among methods on which all of it was tried. The largest of "
    "many attacks on few targets leans upwards; intervals are over targets and seeds, not over searches"
)


def labels(result: pd.DataFrame, chosen: str | None = None) -> list[str]:
    """The attacks that a board has columns of: those chosen, comma-separated, or all by their own schedules.

    Trials with a budget that a user gave are shown where they are chosen.
    """
    known = [name.removesuffix("_excess_area") for name in result if str(name).endswith("_excess_area")]
    every = standard_first(known)
    if chosen is None:
        return [label for label in every if AttackSpec.parse(label).budget is None]
    wanted = words([chosen])
    for label in wanted:
        if label not in every:
            raise unknown("attack among the records", label, every)
    return wanted


def sheets(
    result: pd.DataFrame, most: int | None = None, chosen: str | None = None, brief: bool = False
) -> list[Sheet]:
    """One table for each task, protocol and concept that has attacks; `most` limits the attacks shown.

    A `brief` one leaves out intervals and the two boxes.
    """
    made = []
    for (task, protocol, hash, forget), rows in attacked_groups(result):
        names = [label for label in labels(result, chosen) if rows[f"{label}_n"].max() > 0]
        rivals = rows[~rows.method.isin(CONTROLS)]
        by_ua, by_worst = _ranks(rivals["attacked_ua"], rising=False), _ranks(_comparable(rivals), rising=True)
        sections: dict[str, list[list[str]]] = {}
        for i, row in rows.iterrows():
            access = "controls" if row.method in CONTROLS else f"with {row.access}"
            first = [
                row.label,
                str(row.attacked_n),
                _percent(row.attacked_ua),
                by_ua.get(i, ""),
                _worst(row, brief),
                by_worst.get(i, ""),
            ]
            by = NOTHING if plain(row.label) == GOLD else row.robustness_by
            boxes = [] if brief else [_plain(row, f"robustness_{box}") for box in ("white", "black")]
            first += [by or NOTHING, *boxes]
            sections.setdefault(access, []).append([*first, *(_cell(row, label) for label in names[:most])])
        heads = [
            "method",
            "n",
            *(HEADS[:-2] if brief else HEADS),
            *(f"{label}{_marked(label)}" for label in names[:most]),
        ]
        title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}: under attack"
        made.append(Sheet(title, heads, list(sections.items()), _notes(rows, rivals)))
    return made


def attacked_groups(result: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Key and rows of each table that has any run that was attacked."""
    known = result.astype(object).where(result.notna(), None)  # pandas would call an unknown text a number
    return list(known[known.attacked_n > 0].groupby(TABLE, sort=False))


def fitting(result: pd.DataFrame, width: int, chosen: str | None = None) -> list[Sheet]:
    """The tables with as many attacks as so many characters have room for; brief where that is none."""
    count = len(labels(result, chosen))
    for most in range(count, -1, -1):
        made = sheets(result, most, chosen)
        if max(map(width_of, made)) <= width:
            return made
    return sheets(result, 0, chosen, brief=True)


def frame(result: pd.DataFrame, chosen: str | None = None) -> pd.DataFrame:
    """The board's rows that were attacked, with the columns about these attacks alone."""
    names = labels(result, chosen)
    wanted = ("attacked_n", "attacked_ua", "robustness")
    kept = [c for c in result if c in KEYS or str(c).startswith(wanted) or any(_about(str(c), name) for name in names)]
    return result.loc[result.attacked_n > 0, kept]


def _about(column: str, label: str) -> bool:
    return column == label or column.startswith(f"{label}_")


def _comparable(rivals: pd.DataFrame) -> pd.Series:
    """Worst cases of all attacks; those over retrain where there are any: lower bounds and plain ASR are no rivals."""
    over = rivals.robustness_over_retrain.astype(bool)
    return rivals.robustness[~rivals.robustness_bound.astype(bool) & (over if over.any() else True)]


def _ranks(values: pd.Series, rising: bool) -> dict[Any, str]:
    known = values.astype(float).dropna()
    return {i: f"{rank:.0f}" for i, rank in known.round(9).rank(method="min", ascending=rising).items()}


def _marked(label: str) -> str:
    return " (black)" if box_of(label) == "black" else ""


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if _known(value) else NOTHING


def _plain(row: pd.Series, name: str) -> str:
    return ("≥ " if row[f"{name}_bound"] and _known(row[name]) else "") + _percent(row[name])


def _worst(row: pd.Series, brief: bool) -> str:
    bounds = [None, None] if brief else [row.robustness_low, row.robustness_high]
    span = f" [{_percent(bounds[0])}, {_percent(bounds[1])}]" if all(map(_known, bounds)) else ""
    plain = " (ASR)" if _known(row.robustness) and not row.robustness_over_retrain else ""
    return _plain(row, "robustness") + span + plain


def _cell(row: pd.Series, label: str) -> str:
    if not _known(row[label]):
        return "skipped" if row[f"{label}_why"] and not row[f"{label}_missing"] else NOTHING
    lost = f", {row[f'{label}_missing']:.0f} missing" if row[f"{label}_missing"] else ""
    over = f" ({100 * row[f'{label}_excess']:+.1f})" if _known(row[f"{label}_excess"]) else ""
    return f"{_percent(row[label])}{over}{lost}"


def _notes(rows: pd.DataFrame, rivals: pd.DataFrame) -> str:
    """Which methods fall, and what could not be tried."""
    fallen = rivals[(rivals.attacked_ua.astype(float) >= FORGETS) & (rivals.robustness.astype(float) >= FALLS)]
    fallen = fallen.sort_values("robustness", ascending=False)
    said = [f"{row.label} ({_percent(row.robustness)} by {row.robustness_by})" for _, row in fallen.iterrows()]
    lines = [f"UA of {FORGETS:.0%} or more, yet fall by {FALLS:.0%} or more: {', '.join(said) or 'none'}"]
    if not rows.robustness_over_retrain.any():
        lines.append("no retrain was attacked here, so that these are plain ASR: some attacks recover from any model")
    why: dict[str, list[str]] = {}
    for label in labels(rows):
        for _, row in rows.iterrows():
            if not row[f"{label}_applies"]:
                why.setdefault(row[f"{label}_why"], []).append(label)
            elif row[f"{label}_why"] and not _known(row[label]):
                why.setdefault(row[f"{label}_why"], []).append(f"{label} on {row.label}")
    lines += [f"skipped or missing: {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in why.items()]
    return "; ".join(lines)


def run_rows(
    group: Sequence[Record], gold: Sequence[Record], asked: Sequence[str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """The table of the attacks asked for in a run, a row each, and lines that say why there is no value."""
    from unlearnbench.leaderboard import robustness

    rows, why = [], {}  # type: list[list[str]], dict[str, list[str]]
    for label in asked:
        one = robustness.fought(group, gold, label)
        if one is None:
            continue
        first = next(record.attacks[label] for record in group if label in record.attacks)
        bounds = "" if one.interval is None else f" [{_percent(one.interval[0])}, {_percent(one.interval[1])}]"
        over = NOTHING if one.excess is None else f"{100 * one.excess:+.1f}"
        lost = f" ({one.missing} missing)" if one.missing else ""
        rows.append([label, one.box, _percent(one.value) + bounds + lost, over, _area(one.area), _spent(first)])
        if one.reason:
            why.setdefault(one.reason, []).append(label)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in why.items()]
    return ["attack", "box", "ASR (%) ↓", "excess", "area", "budget"], rows, lines


def _area(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _spent(attack: AttackRecord) -> str:
    unit = {"model evaluations": "", "further unlearnings": " unlearnings"}.get(attack.unit, f" {attack.unit}")
    return f"{attack.limit:,.0f}{unit}" if attack.n else NOTHING
