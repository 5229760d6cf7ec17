"""Rank the methods of a table by score, with and without attacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from unlearnbench.leaderboard.rows import Board, BoardRow, Rank, Stat
from unlearnbench.statistics import rank_intervals


def ranked(rows: Iterable[BoardRow]) -> list[BoardRow]:
    """Add to each row its rank by score, and by the worse of the score and of what attacks leave of the forgetting.

    Controls and rows without a value have no rank, and do not count for others.
    """
    found: dict[int, BoardRow] = {row.index: row for row in rows}
    for _, table in Board(list(found.values())).tables():
        rivals = [row for row in table if not row.is_control]
        plain = rank_of({row.index: row.stat("score") for row in rivals})
        attacked = rank_of({row.index: under_attack(row) for row in rivals})
        for row in rivals:
            found[row.index] = replace(row, rank=plain.get(row.index), rank_attacked=attacked.get(row.index))
    return list(found.values())


def under_attack(row: BoardRow) -> Stat:
    """The worse of a row's score and 1 - its worst attack's share of what an attack can find.

    Empty without a score, without attacks, and where an attack of the ensemble is missing.
    """
    score, attack = row.stat("score"), row.stat("robustness")
    if not score.known or not attack.known or attack.bound or attack.plain:
        return Stat()
    left = Stat(1 - (attack.value or 0.0), low=_less(attack.high), high=_less(attack.low))
    return min(score, left, key=lambda stat: stat.value or 0.0)


def _less(value: float | None) -> float | None:
    return None if value is None else 1 - value


def rank_of(stats: Mapping[int, Stat]) -> dict[int, Rank]:
    """Rank values, the highest first, with the ranks that their intervals leave open; equal values share a rank."""
    known = {key: round(stat.value, 9) for key, stat in stats.items() if stat.value is not None}
    falling = [
        None if (low := stats[key].low) is None or (high := stats[key].high) is None else (-high, -low) for key in known
    ]
    return {
        key: Rank(1 + sum(other > value for other in known.values()), *(possible or (None, None)))
        for (key, value), possible in zip(known.items(), rank_intervals(falling), strict=True)
    }
