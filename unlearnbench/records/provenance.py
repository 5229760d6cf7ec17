"""Show where a record comes from: the command that repeats it, the hardware, and how it was made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.records.numerics import describe_numerics
from unlearnbench.records.schema import Record

SHORT = 12
"""Characters of a hash that are shown."""
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
FIRST = "default"
"""Protocol and preset that commands leave out, since they are the defaults."""


def repeat_command(record: Record) -> str:
    """Return the shell command that repeats a record with its attacks; a second one for each further attack budget.

    For methods that are not built in, and for the user's own concepts, it names the file that they must be in.
    """
    words = _run(record)
    budgets: dict[float | None, list[str]] = {}
    for label, attack in record.attacks.items():
        budgets.setdefault(attack.budget, []).append(AttackSpec.parse(label).base)
    lines = [[*words, *_attacks(labels, budget)] for budget, labels in budgets.items()] or [words]
    return " && ".join(shlex.join(line) for line in lines)


def _run(record: Record) -> list[str]:
    method, environment = record.method, record.environment
    name = method.name if method.name in _built_in() else f"{method.name}.py"
    words = ["unlearnbench", "run", "--task", record.task]
    own = record.protocol.settings.get("concepts")
    words += ["--concept", f"{record.forget}.toml"] if own else ["--forget", record.forget]
    words += ["--method", name, "--seeds", str(record.seeds["unlearning"])]
    if record.protocol.name != FIRST:
        words += ["--protocol", record.protocol.name]
    if method.preset != FIRST:
        words += ["--preset", method.preset]
    for key, value in sorted(method.overrides.items()):
        words += ["--set", f"{key}={_given(value)}"]
    if record.seeds["pretraining"]:
        words += ["--pretrained", f"pretrained/{record.task}"]
    if precision(record) != "fp32":
        words += ["--precision", precision(record)]
    if record.trajectory and record.trajectory.every:
        words += ["--eval-every", str(record.trajectory.every)]
    if memory := environment.get("memory"):
        words += ["--memory", ",".join(map(str, memory))]
    return [*words, "--compile"] if environment.get("compile") else words


@cache
def _built_in() -> frozenset[str]:
    return frozenset(registry.methods())


def _given(value: Any) -> str:
    """Format a setting for `--set`."""
    return value if isinstance(value, str) else json.dumps(value)


def _attacks(labels: list[str], budget: float | None) -> list[str]:
    standard = set(STANDARD) <= set(labels)
    asked = (["standard"] if standard else []) + [name for name in labels if not (standard and name in STANDARD)]
    return ["--attacks", ",".join(asked), *([] if budget is None else ["--budget", f"{budget:g}"])]


def verification(path: Path) -> str:
    """Return the shell command that verifies the record at this path."""
    return shlex.join(["unlearnbench", "verify", path.as_posix()])


def precision(record: Record) -> str:
    """Format the precision for `--precision`."""
    said = record.environment.get("precision") or "float32"
    return PRECISIONS.get(said, str(said))


def hardware(record: Record) -> str:
    """Device, threads, precision and memory savers in one line."""
    environment = record.environment
    threads = environment.get("threads")
    parts = [str(environment.get("device") or environment.get("device_type") or "unknown device")]
    if threads and environment.get("device_type") != "cuda":
        parts.append("1 thread" if threads == 1 else f"{threads} threads")
    parts.append(precision(record))
    parts += map(str, environment.get("memory") or [])
    return ", ".join([*parts, "compiled"] if environment.get("compile") else parts)


def surroundings(records: Iterable[Record]) -> dict[str, Any]:
    """Unlearning seeds, judge and hardware of some runs, for a table's caption."""
    known = list(records)
    judges = dict.fromkeys(f"{record.judge.name} {record.judge.version}" for record in known)
    return {
        "seeds": [record.seeds["unlearning"] for record in known],
        "judge": "; ".join(judges),
        "hardware": "; ".join(dict.fromkeys(map(hardware, known))),
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names such as sampler.steps."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return found


def details(record: Record) -> list[tuple[str, str]]:
    """List label and text of everything that a record says about how it was made; unknown parts are left out.

    Prompts of the user's own concepts are left out too, because they may be unsafe to show.
    """
    return [(label, text) for label, text in _details(record) if text]


def _details(record: Record) -> Iterator[tuple[str, str]]:
    method, judge, environment = record.method, record.judge, record.environment
    step = "" if record.step is None else f" at step {record.step}"
    yield "status", record.status + step + (f": {record.reason}" if record.reason else "")
    yield "judge failed", record.judge_error or ""
    yield "witness failed", record.witness_error or ""
    yield "seeds", _pairs({str(name): seed for name, seed in record.seeds.items()})
    yield "method", f"{method.name}, division {method.division}, preset {method.preset}"
    yield "given", _pairs(method.overrides)
    yield "settings", _pairs(flat(method.settings))
    yield "tuned on", _pairs(flat(method.selection.model_dump(mode="json"))) if method.selection else ""
    yield "data access", ", ".join(method.requires) or "none"
    yield "protocol", f"{record.protocol.name}, hash {_short(record.protocol.hash)}"
    yield "protocol settings", _pairs(flat(_protocol(record)))
    yield "judge", f"{judge.name} {judge.version}, hash {_short(judge.hash)}, threshold {judge.threshold:.4g}"
    for role, witness in sorted(record.witnesses.items()):
        threshold = "" if witness.threshold is None else f", threshold {witness.threshold:.4g}"
        yield role, f"{witness.name} {witness.version}, hash {_short(witness.hash)}{threshold}"
    yield "weights", _pairs({name: _short(hash) for name, hash in record.weights.items()})
    yield "device", hardware(record)
    yield "computed in", describe_numerics(environment.get("numerics"))
    batch = environment.get("sampling_batch")
    yield "sampling batch", f"{batch}, for want of memory" if batch else ""
    micro = environment.get("microbatch")
    yield "micro-batches", f"of {micro}, for want of memory" if micro else ""
    yield "system", _system(environment)
    yield "versions", _pairs({"python": environment.get("python"), **(environment.get("packages") or {})})
    yield "commit", _commit(environment)
    yield "made", f"{record.created}, revision {record.revision}, schema {record.schema_version}"
    yield "code", f"method {_short(method.code_hash)}, engine {_short(record.engine_hash)}"
    yield "data", _short(record.data)
    yield "prompts", _prompts(record)
    yield "per-image values", _short(record.images)
    yield "seal", _short(record.content_hash)
    yield "attacks", ", ".join(f"{label} {attack.status}" for label, attack in record.attacks.items())
    kinds = (describe_numerics(attack.made_with.get("numerics")) for attack in record.attacks.values())
    yield "attacks computed in", "; ".join(filter(None, dict.fromkeys(kinds)))
    yield "trajectory", _trajectory(record)


def _system(environment: Mapping[str, Any]) -> str:
    named = (("nvidia_driver", "NVIDIA driver"), ("cuda_toolkit", "CUDA"))
    parts = [f"{title} {environment[name]}" for name, title in named if environment.get(name)]
    return ", ".join([str(environment.get("system") or ""), *parts]).strip(", ")


def _protocol(record: Record) -> dict[str, Any]:
    kept = {name: value for name, value in record.protocol.settings.items() if name not in ("name", "concepts")}
    own = record.protocol.settings.get("concepts") or ()
    return {**kept, "own concepts": len(own)} if own else kept


def _prompts(record: Record) -> str:
    about = record.prompts
    if about is None:
        return ""
    parts = [f"{about.n:,} different", f"{about.cut:,} cut at {about.length} tokens"]
    if about.empty:
        parts.append(f"{about.empty:,} empty in the file ({about.empty_drawn_as})")
    parts += [f"{name} {_short(sha256)}" for name, sha256 in about.files.items()]
    parts += [f"{name} is not the published file" for name in about.unpublished]
    return ", ".join(parts)


def _trajectory(record: Record) -> str:
    kept = record.trajectory
    if kept is None:
        return ""
    about = _pairs({**kept.protocol.differs, "hash": _short(kept.protocol.hash)})
    points = f"{len(kept.points)} points, {about}" if kept.points else "no points"
    other = kept.other_weights
    again = f"; of a second unlearning, to other weights {_short(other)}" if other else ""
    return f"{kept.steps} steps, {points}; reported is the {kept.rule}{again}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_given(value)}" for name, value in values.items() if value is not None)


def _short(hash: str | None) -> str:
    return (hash or "")[:SHORT]


def _commit(environment: dict[str, Any]) -> str:
    commit = environment.get("commit")
    return f"{_short(commit)}{', with uncommitted changes' if environment.get('dirty') else ''}" if commit else ""
