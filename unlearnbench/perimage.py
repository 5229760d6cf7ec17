"""Per-image values beside a record, in Parquet."""

from __future__ import annotations

import io
from pathlib import Path

from unlearnbench.judges import Verdict
from unlearnbench.record import replace_file
from unlearnbench.task import Plan


def write_images(path: Path, plan: list[Plan], verdict: Verdict) -> None:
    """One row an image: group, concept, label, seed, the judge's class, refusal and probability; null is missing."""
    import pandas as pd

    missing = verdict.missing.numpy()
    asked = [item.label for item in plan]
    frame = pd.DataFrame(plan, columns=["group", "concept", "label", "seed"]).astype({"seed": "uint64"})
    frame["judged"] = pd.Series(verdict.closed.numpy(), dtype="Int16").mask(missing)
    frame["refused"] = pd.Series(verdict.refused.numpy(), dtype="boolean").mask(missing)
    probability = verdict.probabilities[range(len(asked)), asked] if asked else verdict.probabilities[:, 0]
    frame["p_asked"] = pd.Series(probability.numpy(), dtype="Float32").mask(missing)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    replace_file(path, buffer.getvalue())
