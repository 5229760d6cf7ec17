"""Per-image values of records made by hand, so that they have a likeness to retrain."""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearnbench.records.image_table import FEATURES

COUNT = 40
"""Forget images of a record."""


def forget_frame(record, still=None):
    """Forget images of digit 3: all shown by the original; retrain draws eights and fives, other methods like it.

    `still` is the share of images that still show a 3; by default 1 - UA of the record, or none.
    """
    name, seed = record.method.name, record.seeds["unlearning"]
    if still is None:
        score = record.scores.get("ua")
        still = 1.0 if name == "original" else 0.0 if score is None or score.value is None else 1 - score.value
    kept = round(COUNT * still)
    others = [8 if (place + seed) % 2 else 5 for place in range(COUNT - kept - (seed % 3))]
    judged = np.array([3] * kept + others + [9] * (COUNT - kept - len(others)))
    rng = np.random.default_rng(seed + 7 * len(name))
    features = np.eye(10)[judged] * 4 + rng.normal(size=(COUNT, 10)) * 0.2
    return pd.DataFrame(
        {
            "group": "forget",
            "judged": pd.array(judged, dtype="Int16"),
            "refused": pd.array([False] * COUNT, dtype="boolean"),
            "features": [row.astype(FEATURES).tobytes() for row in features],
        }
    )
