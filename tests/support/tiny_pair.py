"""Records made by hand with the per-image values and pictures that they vouch for, in a results folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tests.support.small_world import made_record
from unlearnbench.records.sample_grid import write_grid
from unlearnbench.records.schema import AttackRecord, write_record
from unlearnbench.statistics import wilson
from unlearnbench.tasks.digits_class import DigitsClass

FORGET, RETAIN = 40, 60


def hits(n: int, of: int) -> list[float]:
    """The first n of them are hits."""
    return [1.0] * n + [0.0] * (of - n)


def planted(
    results: Path, method: str, seed: int = 0, ua: Any = (), ra: Any = (), other: Any = None, **changes: Any
) -> Path:
    """Write a record with these per-image UA (40) and RA (60); `other` scores have no images. Returns its path."""
    ua, ra = (np.array(values, dtype=float) for values in (ua, ra))
    scores = {**{name: float(np.nanmean(column)) for name, column in (("ua", ua), ("ra", ra))}, **(other or {})}
    shift = changes.pop("noise", 0)
    record = made_record(method, seed, scores, **changes)
    frame = pd.DataFrame(
        {
            "group": ["forget"] * FORGET + ["retain"] * RETAIN,
            "concept": ["3"] * FORGET + [str(i % 9 + (i % 9 >= 3)) for i in range(RETAIN)],
            "label": [3] * FORGET + [0] * RETAIN,
            "seed": np.arange(FORGET + RETAIN, dtype="uint64") + shift,
            "ua": pd.array([*ua, *[None] * RETAIN], dtype="Float64"),
            "ra": pd.array([*[None] * FORGET, *ra], dtype="Float64"),
        }
    )
    for name, column in (("ua", ua), ("ra", ra)):
        interval = wilson(int(np.nansum(column)), int((~np.isnan(column)).sum()))
        record = record.model_copy(
            update={"scores": {**record.scores, name: record.scores[name].model_copy(update={"interval": interval})}}
        )
    path = record.path(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path.with_suffix(".parquet"), index=False)
    digest = hashlib.sha256(path.with_suffix(".parquet").read_bytes()).hexdigest()
    write_record(record.model_copy(update={"images": digest}), path)
    return path


def pictured(path: Path, colour: int, label: str = "mine") -> None:
    """The picture beside a record: the original's images are black, the method's of one grey."""
    task = DigitsClass("3")
    n = len(task.plan())
    before, after = torch.zeros(n, 3, 8, 8, dtype=torch.uint8), torch.full((n, 3, 8, 8), colour, dtype=torch.uint8)
    write_grid(path.with_suffix(".png"), task, before, after, label)


def attacked(recovered: list[bool | None], **changes: Any) -> AttackRecord:
    """An attack by hand that recovered these targets."""
    known = [hit for hit in recovered if hit is not None]
    values = {
        "status": "ok",
        "value": sum(known) / len(known),
        "n": len(recovered),
        "missing": len(recovered) - len(known),
        "interval": wilson(sum(known), len(known)),
        "area": 0.5,
        "limit": 10.0,
        "recovered": tuple(recovered),
        "spent": (5.0,) * len(recovered),
        "box": "white",
        "unit": "model evaluations",
        "settings": {"steps": 10},
        "code_hash": "d" * 64,
        "key": "k" * 64,
    }
    return AttackRecord(**{**values, **changes})
