"""Measure how forgetting one concept affects all others, as shares judged as asked, compared with the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unlearnbench import registry
from unlearnbench.leaderboard.board import Images
from unlearnbench.records.identity import (
    Identity,
    group_records,
    matching,
    measured_by,
    record_identity,
    scored_alike,
    unique_labels,
)
from unlearnbench.records.schema import Record

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["label", "method", "forget", "concept", "n", "share", "original", "change", "forgotten"]
SIDES = {"forget": "ua", "retain": "ra"}
"""Group of samples -> the metric that is the share judged as asked, or one minus it."""


def effects(records: Sequence[Record], images: Images) -> pd.DataFrame:
    """Make one row for each method, forget concept and concept asked for, within one task and protocol.

    `share` is the share of the `n` images per run that were judged as asked (RA of retain images, 1 - UA of forget
    images), a mean over seeds; `original` is the same for the untouched model; `change` is their difference;
    `forgotten` says whether the concept was to be forgotten. NaN means unknown; the frame is empty where no record has
    per-image values.
    """
    import pandas as pd

    counted = [record for record in records if record.status in ("ok", "unreliable")]
    names = unique_labels(named_across(records))
    originals = [record for record in counted if record.label() == "original"]
    parts = []
    for one, group in group_records(counted).items():
        about = {"label": names[one._replace(forget="")], "method": group[0].method.name, "forget": group[0].forget}
        if (seen := _pooled(group, images)) is not None:
            before = _pooled(matching(originals, group[0], "original")[0], images, like=group)
            known = seen.join(_shares(before), on=["concept", "forgotten"])
            parts.append(known.assign(**about))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    every = found = pd.concat(parts, ignore_index=True)
    place = {name: number for number, name in enumerate(_order(records[0].task, every))}
    found["change"] = found["share"] - found["original"]
    found["_place"] = found["concept"].map(place)
    places = {key: number for number, key in enumerate(found.groupby(["label", "forget"], sort=False).groups)}
    found["_row"] = [places[key] for key in zip(found["label"], found["forget"], strict=True)]
    return found.sort_values(["_row", "_place"], kind="stable")[COLUMNS].reset_index(drop=True)


def named_across(records: Sequence[Record]) -> dict[Identity, list[Record]]:
    """Group records by identity regardless of the forget concept, so that a method has one name in all rows."""
    groups: dict[Identity, list[Record]] = {}
    for record in records:
        groups.setdefault(record_identity(record)._replace(forget=""), []).append(record)
    return groups


def _pooled(group: Sequence[Record], images: Images, like: Sequence[Record] | None = None) -> pd.DataFrame | None:
    """Average over seeds by concept, for each metric over the runs that one version scored (that of `like`).

    Columns: concept, forgotten, n, share; None where no run has per-image values.
    """
    import pandas as pd

    kept: dict[str, set[int]] = {}
    for name in SIDES.values():
        code = next((measured_by(record, name) for record in scored_alike(like or group, name)), None)
        kept[name] = {id(record) for record in group if measured_by(record, name) == code}
    rows = [
        row
        for record in group
        for row in _seen(record, images, [name for name, ids in kept.items() if id(record) in ids])
    ]
    if not rows:
        return None
    found = pd.DataFrame(rows, columns=["concept", "n", "share", "forgotten"])
    keys = ["concept", "forgotten"]
    return found.groupby(keys, sort=False).agg(n=("n", "max"), share=("share", "mean")).reset_index()


def _shares(found: pd.DataFrame | None) -> pd.Series:
    import pandas as pd

    if found is None:
        empty = pd.MultiIndex.from_arrays([pd.Index([], dtype=object), pd.Index([], dtype=bool)])
        return pd.Series([], index=empty, dtype=float, name="original")
    return found.set_index(["concept", "forgotten"])["share"].rename("original")


def _seen(record: Record, images: Images, metrics: Sequence[str]) -> Iterator[tuple[str, int, float, bool]]:
    """Yield concept, n, share and whether it was forgotten for one run and these metrics; nothing without images.

    These are plain tuples because thousands of small frames would be slow.
    """
    import numpy as np
    import pandas as pd

    frame = images(record)
    if frame is None:
        return
    for group, name in SIDES.items():
        if name not in frame or name not in metrics:
            continue
        inside = (frame["group"] == group).to_numpy()
        codes, concepts = pd.factorize(frame["concept"].to_numpy()[inside])
        hits = frame[name].to_numpy(dtype=float, na_value=math.nan)[inside]
        hits = 1 - hits if group == "forget" else hits
        known = ~np.isnan(hits)
        count = np.bincount(codes[known], minlength=len(concepts))
        sums = np.bincount(codes[known], weights=hits[known], minlength=len(concepts))
        share = np.divide(sums, count, out=np.full(len(concepts), math.nan), where=count > 0)
        n = np.bincount(codes, minlength=len(concepts))
        for concept, images_of, value in zip(concepts, n.tolist(), share.tolist(), strict=True):
            yield concept, images_of, value, group == "forget"


def _order(task: str, every: pd.DataFrame) -> list[str]:
    """Concepts in the task's order, after those that the task does not know."""
    known = registry.load_task(task).concepts if task in registry.tasks() else ()
    found = list(dict.fromkeys(every["concept"]))
    return [*(name for name in found if name not in known), *(name for name in known if name in found)]
