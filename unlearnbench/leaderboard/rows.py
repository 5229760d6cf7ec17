"""The board: a row for each method, with its metrics, what attacks found, and what a reader must know about it.

Tables, the report and plots read a `Board` through its rows and `Stat`s. Only `Board.wide` builds column names such as
`ua_low`, for CSV and JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench.leaderboard.robustness import NOT_TRIED, AttackResult, Worst
from unlearnbench.names import LOADED

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CONTROLS = ("original", "retrain", "destroy", "prompt_filter")
ANCHORS = ("original", "retrain", "destroy")
"""The controls that anchored scores are computed from."""
VERSIONS = {"original", "judge", "engine", "code"}
"""What rows of one name may differ in, apart from settings and data."""
LONGEST = 80
"""Characters up to which a row's name spells its settings out."""
DEFAULT = "default"
"""How the settings without preset or overrides are named beside others."""
TABLE = ["task", "protocol", "protocol_hash", "forget"]
"""What the rows of one table have in common."""
KEYS = [*TABLE, "access", "label", "method", "division", "overrides"]
"""The columns that say what a row is about. `label` is unique within a table: where runs with one label are not
comparable seeds, it says how they differ."""
ANCHORED = (
    "score",
    "erasure",
    "likeness",
    "likeness_verdicts",
    "likeness_features",
    "utility",
    "utility_ra",
    "utility_fid",
)
"""Scores that are computed from metrics and the controls."""
BOXES = {"robustness": None, "robustness_white": "white", "robustness_black": "black"}
"""Worst cases, and the access to the model of the attacks that each is over; None is any access."""
ANNOTATIONS = ("p_original", "p_best", "mark")

TableKey = tuple[str, str, str, str]


class Stat(NamedTuple):
    """One metric, anchored score or worst case of one row, unscaled."""

    value: float | None = None
    sd: float | None = None
    """Over seeds."""
    low: float | None = None
    """Ends of the 95 % interval."""
    high: float | None = None
    n: int = 0
    """Images of a run; of a worst case the attacks that it is over."""
    missing: int = 0
    """Images without a value, in all runs together."""
    floor: float | None = None
    """What real images score."""
    p_original: float | None = None
    """Against the original, adjusted by Holm over the table's methods."""
    p_best: float | None = None
    """Against the best of the methods with equal access, adjusted by Holm over these."""
    mark: str | None = None
    """"best" where five or more seeds tell it from the second best; "not worse" where they do not tell it from the
    best, or the best from the second."""
    bound: bool = False
    """Whether the value is a lower bound: an attack is missing."""
    plain: bool = False
    """Whether a worst case is plain ASR, since there is no retrain to take off."""
    compared: bool = False
    """Whether methods are tested and marked by it: metrics with a better direction, costs apart."""

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


class Rank(NamedTuple):
    """The place of a row among the methods of its table, controls left out; 1 is the best."""

    place: int
    """Rows with equal values share the better place."""
    best: int | None = None
    """The best rank that intervals leave open; None without an interval."""
    worst: int | None = None
    """The worst one."""

    def __str__(self) -> str:
        return f"{self.place}" if self.best == self.worst else f"{self.place} ({self.best}–{self.worst})"


def words_of(file: str, setting: Sequence[str]) -> str:
    """Name a setting by its file of weights, preset and values; empty for the defaults."""
    return ", ".join([*filter(None, [file]), *setting])


class Twin(NamedTuple):
    """Other settings of a row's method whose runs have the same images, bit for bit: they have no row of their own."""

    label: str
    setting: str
    """In words, such as "tuned"."""


@dataclass(frozen=True)
class BoardRow:
    """One method with its settings, on one concept under one protocol."""

    index: int
    """Place in the whole board."""
    task: str
    protocol: str
    protocol_hash: str
    forget: str
    access: str
    """Data that the method needs; unknown for weights that others unlearned."""
    label: str
    method: str
    division: str
    overrides: int = 0
    """Number of settings given by the user."""
    setting: tuple[str, ...] = ()
    """Preset and settings given by the user, such as ("published", "lr=0.001"); empty for the defaults."""
    file: str = ""
    """Name of the file or repository of weights that others unlearned; empty for methods that run here."""
    apart: str = ""
    """What tells it from rows with the same method and settings, such as "engine v1"."""
    twins: tuple[Twin, ...] = ()
    """Settings that this row stands for as well, since their images are equal."""
    n: int = 1
    """Runs that count; equal ones count once."""
    seeds: list[int] = field(default_factory=list)
    judge: str = ""
    hardware: str = ""
    flags: str = ""
    """What went wrong, by seed, and what was left out."""
    older: list[str] = field(default_factory=list)
    """Parts of this project that were older when a run was made, such as "engine" and "method"."""
    stats: Mapping[str, Stat] = field(default_factory=dict)
    """By metric or anchored score."""
    unscored: str = ""
    """Why anchored scores are missing."""
    rank: Rank | None = None
    """By score; None for controls and rows without a score."""
    rank_attacked: Rank | None = None
    """By the worse of the score and of what the worst attack leaves; None where attacks are missing."""
    lacking: tuple[str, ...] = ()
    """Anchors without runs that are comparable with this row's."""
    attacked_n: int = 0
    """Runs that were attacked."""
    attacked_ua: float | None = None
    """UA of these runs alone."""
    attacked_scores: tuple[tuple[float, int], ...] = ()
    """UA and number of images of each of these runs, equal ones once."""
    attacks: Mapping[str, AttackResult] = field(default_factory=dict)
    """By label of the attack."""
    worst: Mapping[str | None, Worst | None] = field(default_factory=dict)
    """By access of the attacks: None for all, "white", "black"."""

    @property
    def table(self) -> TableKey:
        """What the row shares with the rest of its table."""
        return self.task, self.protocol, self.protocol_hash, self.forget

    @property
    def name(self) -> str:
        """The method, with settings, versions and failures only where it has any: `esd (published) · engine v1`.

        Settings with equal images are named together: `esd (default = tuned)`.
        """
        setting = words_of(self.file, self.setting)
        text = f"{self.method} ({setting})" if setting else self.method
        if self.twins:
            text = f"{self.method} ({' = '.join([setting or DEFAULT, *(twin.setting for twin in self.twins)])})"
        text = text if len(text) <= LONGEST else self.label.removesuffix(f" ({self.apart})")
        versions = {part.partition(" ")[0] for part in self.apart.split("; ")} & VERSIONS
        older = "other version" if self.older and not versions else ""
        failed = "" if self.n else self.flags.partition(" ")[0]
        return " · ".join(filter(None, (text, self.apart, older, failed)))

    @property
    def title(self) -> str:
        """Its label, as in commands; where it stands for several settings, the name with all of them."""
        return self.name if self.twins else self.label

    @property
    def is_control(self) -> bool:
        """Whether it is a control."""
        return self.method in CONTROLS

    @property
    def is_loaded(self) -> bool:
        """Whether others unlearned its weights: nobody here knows from what data, or how long that took."""
        return self.method == LOADED

    @property
    def section(self) -> str:
        """The heading that it stands under in a table."""
        if self.is_loaded:
            return f"weights of others (data access {self.access})"
        return "controls" if self.is_control else f"with {self.access}"

    def stat(self, name: str) -> Stat:
        """A metric, anchored score or worst case by name; an empty one where the row has none."""
        if name not in BOXES:
            return self.stats.get(name, Stat())
        if (worst := self.worst.get(BOXES[name])) is None:
            return Stat()
        low, high = worst.interval or (None, None)
        return Stat(
            worst.value, low=low, high=high, n=worst.tried, bound=worst.bound,
            plain=worst.value is not None and not worst.over_retrain,
        )  # fmt: skip

    def attack(self, label: str) -> AttackResult:
        """What one attack found; `NOT_TRIED` where no run was attacked with it."""
        return self.attacks.get(label, NOT_TRIED)


@dataclass(frozen=True)
class Board:
    """Rows of one or more tables. Rows of one table are neighbours."""

    rows: list[BoardRow]
    attack_labels: list[str] = field(default_factory=list)
    """Every attack among the records, the standard ones first."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[BoardRow]:
        return iter(self.rows)

    def tables(self) -> list[tuple[TableKey, Board]]:
        """Each table with its key, in the order of their first rows."""
        tables: dict[TableKey, list[BoardRow]] = {}
        for row in self.rows:
            tables.setdefault(row.table, []).append(row)
        return [(key, self.of(rows)) for key, rows in tables.items()]

    def of(self, rows: Iterable[BoardRow]) -> Board:
        """A board with these rows in place of its own."""
        return replace(self, rows=list(rows))

    def where(self, keep: Callable[[BoardRow], bool]) -> Board:
        """A board with the rows for which `keep` is true."""
        return self.of(filter(keep, self.rows))

    def has(self, name: str) -> bool:
        """Whether any row has a value of this metric, anchored score or worst case."""
        return any(row.stat(name).known for row in self.rows)

    def column(self, name: str, part: str = "value") -> np.ndarray:
        """One number of each row's `Stat`, as floats (N,), NaN where there is none: `column("ua", "low")`."""
        import numpy as np

        found = [getattr(row.stat(name), part) for row in self.rows]
        return np.array([math.nan if value is None else float(value) for value in found])

    def frame(self) -> pd.DataFrame:
        """The rows without their numbers: keys, n, seeds, judge, hardware, flags, anchored scores, attacked runs."""
        return self.wide(metrics=ANCHORED, attacks=())

    def tidy(self) -> pd.DataFrame:
        """One row for each row of the board and metric: `row`, `metric`, then the fields of `Stat`."""
        import pandas as pd

        cells = [
            {"row": row.index, "metric": name, **row.stat(name)._asdict()}
            for row in self.rows
            for name in (*row.stats, *(box for box, access in BOXES.items() if access in row.worst))
        ]
        return pd.DataFrame(cells, columns=["row", "metric", *Stat._fields])

    def wide(
        self,
        metrics: Collection[str] | None = None,
        attacks: Collection[str] | None = None,
        about: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """One row of the frame for each row of the board, as CSV and JSON have it; empty without rows.

        Columns: those of `about` (all, when None) that say what a row is, and for each metric, anchored score and
        attack that is asked for (all, when None) its value and what belongs to it: `ua`, `ua_sd`, `ua_low`, ….
        """
        import pandas as pd

        def wanted(column: _Column) -> bool:
            for kind, chosen in (("metric", metrics), ("attack", attacks), ("about", about)):
                if column.kind == kind:
                    return chosen is None or column.owner in chosen
            raise AssertionError(column.kind)

        return pd.DataFrame([{c.name: c.value for c in _columns(row) if wanted(c)} for row in self.rows])


class _Column(NamedTuple):
    kind: str
    owner: str
    """The metric, attack or key that it belongs to."""
    name: str
    value: Any


def _columns(row: BoardRow) -> Iterator[_Column]:
    """Every column of a row as CSV and JSON have it, in order."""
    for name in (*KEYS, "n", "seeds", "judge", "hardware", "flags"):
        yield _Column("about", name, name, getattr(row, name))
    yield _Column("about", "twins", "twins", ", ".join(twin.label for twin in row.twins))
    for name, stat in row.stats.items():
        if name not in ANCHORED:
            yield _Column("metric", name, name, stat.value)
            for part in ("sd", "low", "high", "n", "missing", "floor"):
                yield _Column("metric", name, f"{name}_{part}", getattr(stat, part))
    for name in ANCHORED:
        stat = row.stat(name)
        for part in ("value", "low", "high"):
            yield _Column("metric", name, name if part == "value" else f"{name}_{part}", getattr(stat, part))
    for name, rank in (("rank", row.rank), ("rank_attacked", row.rank_attacked)):
        for part in Rank._fields:
            value = None if rank is None else getattr(rank, part)
            yield _Column("about", "rank", name if part == "place" else f"{name}_{part}", value)
    yield _Column("about", "unscored", "unscored", row.unscored)
    yield _Column("about", "attacked_n", "attacked_n", row.attacked_n)
    yield _Column("about", "attacked_ua", "attacked_ua", row.attacked_ua)
    for label, result in row.attacks.items():
        for name, value in _attack_columns(result):
            yield _Column("attack", label, f"{label}_{name}" if name else label, value)
    for name, access in BOXES.items():
        if access in row.worst:
            for part, value in _worst_columns(row.worst[access]):
                yield _Column("metric", "robustness", f"{name}_{part}" if part else name, value)
    for name, stat in row.stats.items():
        if name not in ANCHORED and stat.compared:
            for part in ANNOTATIONS:
                yield _Column("metric", name, f"{name}_{part}", getattr(stat, part))


def _attack_columns(result: AttackResult) -> Iterator[tuple[str, Any]]:
    low, high = result.interval or (None, None)
    yield from (("", result.value), ("low", low), ("high", high), ("n", result.n))
    yield from (("why", result.reason), ("applies", result.applies))
    yield from (("missing", result.missing), ("area", result.area), ("excess", result.excess))
    low, high = result.excess_interval or (None, None)
    yield from (("excess_low", low), ("excess_high", high), ("excess_area", result.excess_area))
    low, high = result.share_interval or (None, None)
    yield from (("floor", result.floor), ("ceiling", result.ceiling), ("floor_runs", len(result.floor_hits)))
    yield from (("share", result.share), ("share_low", low), ("share_high", high))
    yield from (("runs", len(result.hits)), ("targets", result.targets))


def _worst_columns(worst: Worst | None) -> Iterator[tuple[str, Any]]:
    low, high = (worst.interval if worst else None) or (None, None)
    yield from (("", worst.value if worst else None), ("low", low), ("high", high))
    yield from (("n", worst.tried if worst else 0), ("of", worst.of if worst else 0))
    yield from (("by", worst.label if worst else None), ("bound", bool(worst and worst.bound)))
    yield ("over_retrain", bool(worst and worst.over_retrain))
    for part in ("largest", "excess", "ceiling", "runs", "targets", "floor_runs"):
        yield (part, getattr(worst, part) if worst else None)
    yield ("left_out", ", ".join(worst.left_out) if worst else "")
