"""Scores computed again from the per-image table alone, by the metrics' own code."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from unlearnbench.judges import ABSTAINS
from unlearnbench.metric import Metric, Score, Side
from unlearnbench.statistics import within
from unlearnbench.task import Plan

if TYPE_CHECKING:
    import pandas as pd


class NotInTable(Exception):
    """A metric looked at something that the per-image table does not hold, such as pixels or features."""


class TableVerdict:
    """What a judge said, as far as the columns `judged`, `refused` and `p_asked` tell.

    It stands in for a `judges.Verdict`: labels are exact, of the probabilities only those of the asked labels are
    known, and everything else raises `NotInTable`.
    """

    def __init__(self, judged: Tensor, refused: Tensor, missing: Tensor, probabilities: Any):
        self.closed, self.refused, self.missing, self.probabilities = judged, refused, missing, probabilities

    @property
    def label(self) -> Tensor:
        """(N,) class, or `ABSTAINS`."""
        return torch.where(self.refused, ABSTAINS, self.closed)


class AskedProbabilities:
    """Probabilities (N, K) of which only the asked label's is known for each image."""

    def __init__(self, asked: Tensor, p_asked: Tensor):
        self._asked, self._p_asked = asked, p_asked

    def gather(self, dim: int, index: Tensor) -> Tensor:
        """As `Tensor.gather`, for the asked labels (N, 1) along the classes."""
        if dim not in (1, -1) or index.shape != (len(self._asked), 1) or not bool((index[:, 0] == self._asked).all()):
            _absent("probabilities of other labels than those asked for")
        return self._p_asked[:, None]

    def __getattr__(self, name: str) -> NoReturn:
        _absent(f"probabilities ({name})")

    def __getitem__(self, index: Any) -> NoReturn:
        _absent("probabilities")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """What torch calls where a function of its own is given this."""
        _absent("probabilities")


class _Absent:
    """Stands where the table has nothing: any use raises `NotInTable`."""

    def __init__(self, what: str):
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        _absent(self._what)

    def __getitem__(self, index: Any) -> NoReturn:
        _absent(self._what)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """What torch calls where a function of its own is given this."""
        _absent("samples")


class TableOutcome:
    """A run's `Outcome` as far as its per-image table tells; metrics by image can be measured on it.

    The verdict on a label asked for besides, in another domain, is in the table only where the column `cra` says it.
    Elsewhere `besides` is assumed: True, every such label was seen; False, none.
    """

    def __init__(self, plan: list[Plan], frame: pd.DataFrame, besides: bool = True):
        self.plan, self._frame, self._besides = plan, frame, besides

    def __getattr__(self, name: str) -> NoReturn:
        _absent(name)

    @cached_property
    def forget(self) -> Side:
        """Samples of the forgotten concept."""
        return self.side("forget")

    @cached_property
    def retain(self) -> Side:
        """Samples of the other concepts."""
        return self.side("retain")

    def side(self, group: str) -> Side:
        """Samples of one group."""
        index = [i for i, item in enumerate(self.plan) if item.group == group]
        rows = self._frame.iloc[index]
        asked = torch.tensor([self.plan[i].label for i in index], dtype=torch.long)
        other = torch.tensor([self.plan[i].other for i in index], dtype=torch.long)
        missing = torch.from_numpy(rows["judged"].isna().to_numpy(bool))
        judged = torch.from_numpy(rows["judged"].fillna(ABSTAINS).to_numpy(np.int64))
        refused = torch.from_numpy(rows["refused"].fillna(False).to_numpy(bool))
        p_asked = torch.from_numpy(rows["p_asked"].to_numpy(np.float32, na_value=np.nan))
        verdict: Any = TableVerdict(judged, refused, missing, AskedProbabilities(asked, p_asked))
        seen = torch.full((len(index),), self._besides)
        if "cra" in rows:
            said = rows["cra"].to_numpy(float, na_value=np.nan)
            seen = torch.from_numpy(np.where(np.isnan(said), seen.numpy(), said == 1))
        label = torch.where(other < 0, 0, torch.where(seen, other, ABSTAINS))
        none: Any = _Absent("the verdict on other domains")
        besides: Any = TableVerdict(label, torch.zeros(len(index), dtype=torch.bool), missing, none)
        samples: Any = _Absent("samples")
        return Side(samples, asked, verdict, other, besides)


def possible(metric: Metric, plan: list[Plan], frame: pd.DataFrame) -> tuple[Score, Score] | None:
    """The least and the greatest that a metric by image can be, by `judged`, `refused` and `p_asked`.

    The two are equal unless the metric looks at labels asked for besides. None where it rests on something else, such
    as all probabilities, or a detector.
    """
    try:
        low, high = (metric.measure(TableOutcome(plan, frame, besides)) for besides in (False, True))  # type: ignore[arg-type]
    except NotInTable:
        return None
    return low, high


def of_column(metric: Metric, column: pd.Series, n: int) -> Score:
    """The score whose per-image values are these: a share with Wilson's interval, or a mean with Student's.

    `n` images count; a value that is null is missing. A share's values must be 0 or 1 (`ValueError`).
    """
    values = column.to_numpy(float, na_value=np.nan)
    kept = values[~np.isnan(values)]
    if metric.stored == "share" and not np.isin(kept, (0.0, 1.0)).all():
        raise ValueError("its per-image values must be 0 or 1")
    make = Score.share if metric.stored == "share" else Score.mean
    score = make(torch.from_numpy(kept), torch.zeros(len(kept), dtype=torch.bool))
    interval = within(score.interval, *metric.bounds())
    return Score(score.value, n, n - len(kept), interval)


def _absent(what: str) -> NoReturn:
    raise NotInTable(what)
