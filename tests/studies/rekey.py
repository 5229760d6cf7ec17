"""Give records of an older engine the present identity: `python -m tests.studies.rekey RERUN [RESULTS]`.

RERUN is a folder of records that were run again. A record of RESULTS is rewritten where its counterpart in RERUN has
the same settings and the same numbers: n and missing are equal, and every score but times, with its interval, is less
than half a unit of the last digit that tables show away. Nothing but the identity changes in it. All others are listed
with what differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from unlearnbench import registry
from unlearnbench.records.folder import load_all
from unlearnbench.records.schema import TIMED, VERSION, Record, ScoreRecord, read, write
from unlearnbench.run.fingerprint import drafted
from unlearnbench.run.scoring import metrics_for
from unlearnbench.verification.verify import rebuilt


def apart(then: Record, now: Record) -> Iterator[str]:
    """What keeps two records from being one result."""
    for name in ("task", "forget", "seeds", "status"):
        if getattr(then, name) != getattr(now, name):
            yield name
    if then.protocol.settings != now.protocol.settings or then.method.settings != now.method.settings:
        yield "settings"
    for name, score in then.scores.items():
        if name not in TIMED and not (name in now.scores and equal(name, score, now.scores[name])):
            yield f"{name} {score.value} there, {now.scores[name].value if name in now.scores else None} here"


def equal(name: str, then: ScoreRecord, now: ScoreRecord) -> bool:
    """Whether no value is half a unit of the last digit that tables show away from the other."""
    metric = registry.known_metric(name)
    scale, digits = (metric.scale, metric.digits) if metric else (1.0, 4)
    ends = [(score.value, *(score.interval or (None, None)), score.floor) for score in (then, now)]
    near = [
        one is other if one is None or other is None else abs(one - other) * scale < 0.5 * 10**-digits
        for one, other in zip(*ends, strict=True)
    ]
    return all(near) and (then.n, then.missing) == (now.n, now.missing)


def rekeyed(record: Record, now: Record) -> Record:
    """The record with the identity that a run of today would have."""
    cell = rebuilt(record, "cpu", None, None)
    metrics = metrics_for(cell.task)
    draft = drafted(cell, metrics)
    today = {name: {"code_hash": score.code_hash, "version": score.version} for name, score in identities().items()}
    scores = {name: score.model_copy(update=today.get(name, {})) for name, score in record.scores.items()}
    made = now.environment
    where = f"{made.get('device')}, torch {(made.get('packages') or {}).get('torch')}, {made.get('threads')} threads"
    return record.model_copy(
        update={
            "schema_version": VERSION,
            "revision": record.revision + 1,
            "key": draft.key,
            "protocol": draft.protocol,
            "method": record.method.model_copy(
                update={"code_hash": draft.method.code_hash, "version": draft.method.version}
            ),
            "scores": scores,
            "weights": {**record.weights, "original": draft.weights["original"]},
            "engine_hash": draft.engine_hash,
            "engine_version": draft.engine_version,
            "rekeyed": f"{now.created}: {where}",
        }
    )


def identities() -> dict[str, ScoreRecord]:
    """Code and version of every metric, as a run would record them."""
    from unlearnbench.metric import Score
    from unlearnbench.run.scoring import score_record

    return {name: score_record(metric, Score(None, 0)) for name, metric in registry.load_metrics().items()}


def main() -> None:
    """Rewrite what was shown to be equal; list the rest."""
    rerun, results = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "results")
    count = 0
    for now in load_all(rerun):
        path = now.path(results)
        if not path.is_file():
            continue
        record = read(path)
        if found := list(apart(record, now)):
            print(f"{path}: {'; '.join(found)}")
            continue
        write(rekeyed(record, now), path)
        count += 1
    print(f"{count} records have today's identity")


if __name__ == "__main__":
    main()
