"""What forgetting one concept does to every other: shares judged as asked, by concept, beside the original's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from unlearnbench import registry
from unlearnbench.board import Images
from unlearnbench.record import Record

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["label", "method", "forget", "concept", "n", "share", "original", "change", "forgotten"]
SIDES = {"forget": "ua", "retain": "ra"}
"""Group of samples -> the metric that says whether they were judged as asked, or were not."""


def effects(records: Sequence[Record], images: Images) -> pd.DataFrame:
    """One row for a method, a forget concept and a concept that was asked for; of one task and protocol.

    `share` of the `n` images a run that were judged as asked (RA of retain images, 1 - UA of forget images), mean over
    seeds; `original`: the same of the untouched model; `change`: their difference; `forgotten`: whether the concept is
    what was to be forgotten. NaN is unknown; the frame is empty where no record has values by image.
    """
    import pandas as pd

    rows: list[tuple[Any, ...]] = []
    for record in records:
        if record.status in ("ok", "unreliable"):
            about = (record.label(), record.method.name, record.forget)
            rows += [(*about, *seen) for seen in _seen(record, images)]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    every = pd.DataFrame(rows, columns=["label", "method", "forget", "concept", "n", "share", "forgotten"])
    keys = ["label", "method", "forget", "concept", "forgotten"]
    found = every.groupby(keys, sort=False).agg(n=("n", "max"), share=("share", "mean")).reset_index()
    before = found[found.label == "original"].set_index(["forget", "concept"])["share"].rename("original")
    found = found.join(before, on=["forget", "concept"])
    place = {name: number for number, name in enumerate(_order(records[0].task, every))}
    found["change"] = found["share"] - found["original"]
    found["_place"] = found["concept"].map(place)
    places = {key: number for number, key in enumerate(found.groupby(["label", "forget"], sort=False).groups)}
    found["_row"] = [places[key] for key in zip(found["label"], found["forget"], strict=True)]
    return found.sort_values(["_row", "_place"], kind="stable")[COLUMNS].reset_index(drop=True)


def _seen(record: Record, images: Images) -> Iterator[tuple[str, int, float, bool]]:
    """Concept, n, share and whether it was forgotten, of one run; nothing where its images were not judged.

    Plain tuples: a frame for each of thousands of runs takes longer than all else.
    """
    import numpy as np
    import pandas as pd

    frame = images(record)
    if frame is None:
        return
    for group, name in SIDES.items():
        if name not in frame:
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
    """The concepts as the task counts them, before them those that it does not know, as they come."""
    known = registry.load_task(task).concepts if task in registry.tasks() else ()
    found = list(dict.fromkeys(every["concept"]))
    return [*(name for name in found if name not in known), *(name for name in known if name in found)]
