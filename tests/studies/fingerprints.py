"""Which code moved: `python -m tests.studies.fingerprints` compares with records/fingerprints.json and exits 1 where
any moved.

`--accept` adds the present fingerprints to their versions, after runs of the present code and of the commit that last
changed the table have given equal weights and equal scores, bit for bit, on this machine. `--new` adds what has no
entry yet, or a version that was raised. Neither takes the place of a line in the changelog where numbers change.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearnbench import judges, registry
from unlearnbench.judges import Judge
from unlearnbench.judges.scorer import Witness
from unlearnbench.pipeline.code_hashes import ENGINE_VERSION, engine_hash, judge_code, method_code, metric_code
from unlearnbench.records import lineage
from unlearnbench.task import Protocol

ROOT = Path(__file__).parents[2]
SHIPPED = ("digits-class", "digits-text")
"""Tasks whose weights the package ships."""
TRAINED_HERE = ("digits", "coloured_digits", "cifar", "resnet8")
"""Modules of judges whose weights this project trains."""
TRIED = ("esd", "salun", "erasediff")
"""Methods that an engine is tried with."""
Present = dict[tuple[str, str], tuple[int, str]]
"""(kind, name) -> version and fingerprint."""


def present() -> Present:
    """Of everything that is built in."""
    found: Present = {}
    for name in registry.tasks():
        found["engine", name] = ENGINE_VERSION, engine_hash(registry.load_task(name))
    for name, entry in registry.methods().items():
        if entry.point is None:
            cls = registry.load_method(name)
            found["method", name] = cls.version, method_code(cls)
    for name, metric in registry.load_metrics().items():
        found["metric", name] = metric.version, metric_code(metric)
    for name, attack in registry.load_attacks().items():
        found["attack", name] = attack.version, metric_code(attack)
    for name, cls in judge_classes():
        found["judge", name] = version_number(cls), judge_code(cls.__new__(cls))
    for name in SHIPPED:
        cls: Any = registry.load_task(name)
        found["original", name] = Protocol.version, cls(cls.default_forget).model_identity().hash
        for protocol in cls.protocols:
            judge = cls(cls.default_forget, protocol=protocol).judge()
            found["judge weights", judge.name] = version_number(judge), judge.hash
    return found


def version_number(judge: Any) -> int:
    """The version of a judge that this project trains; 1 for those that go by the version of other people's weights."""
    cls = judge if isinstance(judge, type) else type(judge)
    own = str(getattr(judge, "version", ""))
    return int(own) if cls.__module__.rpartition(".")[2] in TRAINED_HERE and own.isdigit() else 1


def judge_classes() -> Iterator[tuple[str, type]]:
    """Judges and witnesses that bear a name of their own."""
    for module in pkgutil.iter_modules(judges.__path__, f"{judges.__name__}."):
        for cls in vars(importlib.import_module(module.name)).values():
            own = registry.is_class_of(cls, (Judge, Witness)) and cls.__module__ == module.name
            if own and not inspect.isabstract(cls) and isinstance(vars(cls).get("name"), str):
                yield cls.name, cls


def moved(now: Present) -> list[tuple[str, str]]:
    """What has a fingerprint that its version does not know."""
    return [about for about, (version, code) in now.items() if code not in hashes(*about, version)]


def hashes(kind: str, name: str, version: int) -> list[str]:
    """Those that the table holds for a version."""
    return lineage.known_hashes().get(kind, {}).get(name, {}).get(str(version), [])


def added(now: Present, names: list[tuple[str, str]]) -> None:
    """Write these fingerprints into the table."""
    table: dict[str, Any] = json.loads(json.dumps(lineage.known_hashes()))
    for kind, name in names:
        version, code = now[kind, name]
        known = table.setdefault(kind, {}).setdefault(name, {}).setdefault(str(version), [])
        known += [code] if code not in known else []
    lineage.FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def cells(names: list[tuple[str, str]]) -> list[list[str]]:
    """Runs that pass through what moved, as arguments of `unlearnbench run`."""
    methods = sorted({name for kind, name in names if kind == "method"} - {"checkpoint"})
    engines = {name for kind, name in names if kind == "engine"}
    wide = bool(engines) or any(kind not in ("method", "engine") for kind, _ in names)
    chosen = ",".join(dict.fromkeys([*methods, *(TRIED if wide else ())]))
    runs = [["--task", "digits-class", "--method", chosen], ["--task", "digits-text", "--method", chosen]]
    runs += [["--task", "digits-text", "--method", "erasediff,uce", "--attacks", "relearn@10,concept_inversion"]]
    kinds = {kind for kind, _ in names}
    return runs if "attack" in kinds else runs[:2]


def outcome(checkout: Path, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Weights and scores by record, of a run by the code of a checkout in a store of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "UNLEARNBENCH_CACHE": str(folder / "store")}
    command = [
        sys.executable,
        "-m",
        "unlearnbench.cli",
        "run",
        *arguments,
        "--threads",
        "1",
        "--out",
        str(folder),
    ]  # as older commits say it
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
    found = {}
    for path in sorted(folder.rglob("seed-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: score["value"] for name, score in record["scores"].items() if score["axis"] != "cost"}
        attacks = {name: attack["recovered"] for name, attack in record["attacks"].items()}
        found[str(path.relative_to(folder))] = [record["weights"]["unlearned"], record["status"], scores, attacks]
    return found


def equal(names: list[tuple[str, str]]) -> bool:
    """Run what moved by the present code and by that of the commit that the table is of."""
    last = ["git", "-C", str(ROOT), "log", "-1", "--format=%H", "--", str(lineage.FILE.relative_to(ROOT))]
    commit = subprocess.run(last, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(before), commit], check=True)
        try:
            same = True
            for number, arguments in enumerate(cells(names)):
                then = outcome(before, arguments, Path(temporary) / f"then-{number}")
                now = outcome(ROOT, arguments, Path(temporary) / f"now-{number}")
                apart = [name for name in {**then, **now} if then.get(name) != now.get(name)]
                print(f"{' '.join(arguments)}: {len(now)} records, {len(apart)} differ {' '.join(apart)}", flush=True)
                same &= bool(now) and not apart
            return same
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(before)], check=True)


def main() -> None:
    """List, accept or add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="add fingerprints whose runs give equal numbers")
    parser.add_argument("--new", action="store_true", help="add what is new, or of a version that was raised")
    given = parser.parse_args()
    now = present()
    names = moved(now)
    fresh = [about for about in names if not hashes(*about, now[about][0])]
    old = [about for about in names if about not in fresh]
    for kind, name in fresh if given.new and not given.accept else names:
        print(
            f"{kind} {name}: {'no entry for' if (kind, name) in fresh else 'moved under'} version {now[kind, name][0]}"
        )
    if given.new:
        added(now, fresh)
    if given.accept and old:
        if not equal(old):
            sys.exit("numbers differ: raise the version of what changed, with a line in CHANGELOG.md")
        added(now, old)
    if given.new and not given.accept:
        sys.exit(0)  # what moved besides is for --accept, and perhaps somebody else's
    sys.exit(1 if (old and not given.accept) or (fresh and not given.new) else 0)


if __name__ == "__main__":
    main()
