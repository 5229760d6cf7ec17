"""Recompute scores from the per-image table alone, with the metrics' own code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from unlearnbench.judges import ABSTAINS
from unlearnbench.metric import Metric, Score, Side
from unlearnbench.statistics import clip_interval
from unlearnbench.task import Plan

if TYPE_CHECKING:
    import pandas as pd


JUDGED = ("judged", "refused", "p_asked")
"""The columns that hold the judge's verdicts."""


class NotInTable(Exception):
    """Raised when a metric needs something that the per-image table does not hold, such as pixels or features."""


class TableVerdict:
    """The judge's verdict, as far as the columns `judged`, `refused` and `p_asked` tell.

    Stands in for a `judges.Verdict`. Labels are exact; probabilities are known only for the labels asked for; anything
    else raises `NotInTable`.
    """

    def __init__(self, judged: Tensor, refused: Tensor, missing: Tensor, probabilities: Any):
        self.closed, self.refused, self.missing, self.probabilities = judged, refused, missing, probabilities

    @property
    def label(self) -> Tensor:
        """(N,) class, or `ABSTAINS`."""
        return torch.where(self.refused, ABSTAINS, self.closed)


class AskedProbabilities:
    """Probabilities (N, K) of which only that of the label asked for is known for each image."""

    def __init__(self, asked: Tensor, p_asked: Tensor):
        self._asked, self._p_asked = asked, p_asked

    def gather(self, dim: int, index: Tensor) -> Tensor:
        """`Tensor.gather`, for the labels asked for (N, 1) along the classes."""
        if dim not in (1, -1) or index.shape != (len(self._asked), 1) or not bool((index[:, 0] == self._asked).all()):
            _absent("probabilities of other labels than those asked for")
        return self._p_asked[:, None]

    def __getattr__(self, name: str) -> NoReturn:
        _absent(f"probabilities ({name})")

    def __getitem__(self, index: Any) -> NoReturn:
        _absent("probabilities")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Called by torch when one of its functions gets this object."""
        _absent("probabilities")


class _Absent:
    """Placeholder for what the table does not hold: any use raises `NotInTable`."""

    def __init__(self, what: str):
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        _absent(self._what)

    def __getitem__(self, index: Any) -> NoReturn:
        _absent(self._what)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Called by torch when one of its functions gets this object."""
        _absent("samples")


class TableOutcome:
    """A run's `Outcome` as far as the per-image table tells; metrics by image can be measured on it.

    The verdict on a second label, in another domain, is in the table only if the column `cra` holds it. Otherwise
    `besides` is assumed: True if every such label was seen, False if none was.
    """

    def __init__(self, plan: list[Plan], frame: pd.DataFrame, besides: bool = True):
        self.plan, self._frame, self._besides = plan, frame, besides
        self._sides: dict[str, Side] = {}

    def __getattr__(self, name: str) -> NoReturn:
        _absent(name)

    @property
    def forget(self) -> Side:
        """Samples of the forgotten concept."""
        return self.side("forget")

    @property
    def retain(self) -> Side:
        """Samples of the other concepts."""
        return self.side("retain")

    def side(self, group: str) -> Side:
        """Samples of one group."""
        if group not in self._sides:
            self._sides[group] = self._side(group)
        return self._sides[group]

    def _side(self, group: str) -> Side:
        index = [i for i, item in enumerate(self.plan) if item.group == group]
        columns = {name: self._frame[name].iloc[index] for name in (*JUDGED, "cra") if name in self._frame}
        asked = torch.tensor([self.plan[i].label for i in index], dtype=torch.long)
        other = torch.tensor([self.plan[i].other for i in index], dtype=torch.long)
        missing = torch.from_numpy(columns["judged"].isna().to_numpy(bool, copy=True))
        judged = torch.from_numpy(columns["judged"].to_numpy(np.int64, copy=True, na_value=ABSTAINS))
        refused = torch.from_numpy(columns["refused"].to_numpy(bool, copy=True, na_value=False))
        p_asked = torch.from_numpy(columns["p_asked"].to_numpy(np.float32, copy=True, na_value=np.nan))
        verdict: Any = TableVerdict(judged, refused, missing, AskedProbabilities(asked, p_asked))
        seen = torch.full((len(index),), self._besides)
        if "cra" in columns:
            said = columns["cra"].to_numpy(float, na_value=np.nan)
            seen = torch.from_numpy(np.where(np.isnan(said), seen.numpy(), said == 1))
        label = torch.where(other < 0, 0, torch.where(seen, other, ABSTAINS))
        none: Any = _Absent("the verdict on other domains")
        besides: Any = TableVerdict(label, torch.zeros(len(index), dtype=torch.bool), missing, none)
        samples: Any = _Absent("samples")
        return Side(samples, asked, verdict, other, besides)


class Extremes:
    """The range of values that metrics can have, given a plan and the judge's columns."""

    def __init__(self, plan: list[Plan], frame: pd.DataFrame):
        most = TableOutcome(plan, frame, True)
        alone = all(item.other < 0 for item in plan)
        self._outcomes = (most if alone else TableOutcome(plan, frame, False), most)

    def of(self, metric: Metric) -> tuple[Score, Score] | None:
        """The least and greatest possible score of a metric by image.

        They are equal unless the metric looks at second labels. None if it needs something that is not in the table,
        such as all probabilities, or a detector.
        """
        least, most = self._outcomes
        try:
            low = metric.measure(least)  # type: ignore[arg-type]
            return low, low if most is least else metric.measure(most)  # type: ignore[arg-type]
        except NotInTable:
            return None


def of_column(metric: Metric, column: pd.Series, n: int) -> Score:
    """The score with these per-image values: a share with Wilson's interval, or a mean with Student's.

    `n` images count; a null value is missing. Values of a share must be 0 or 1 (`ValueError`).
    """
    values = column.to_numpy(float, na_value=np.nan)
    kept = values[~np.isnan(values)]
    if metric.stored == "share" and not np.isin(kept, (0.0, 1.0)).all():
        raise ValueError("its per-image values must be 0 or 1")
    make = Score.share if metric.stored == "share" else Score.mean
    score = make(torch.from_numpy(kept), torch.zeros(len(kept), dtype=torch.bool))
    interval = clip_interval(score.interval, *metric.bounds())
    return Score(score.value, n, n - len(kept), interval)


def _absent(what: str) -> NoReturn:
    raise NotInTable(what)
