"""What the tests share: a protocol of a few images, method files to write, records made by hand."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FORGET_IMAGES, RETAIN_IMAGES, CHUNK = 20, 4, 20
IMAGES = FORGET_IMAGES + 9 * RETAIN_IMAGES
CHUNKS = 3
"""Of which the last is padded."""

NUDGE = '''"""Nudge: move every weight a little (Nobody, Nowhere 2020)."""

from dataclasses import dataclass

import torch

from unlearnbench import Method


@dataclass(frozen=True)
class Nudge(Method):
    """theta <- (1 + size) theta."""

    size: float = 0.01

    def unlearn(self, model, task, prepared=None):
        """At once."""
        with torch.no_grad():
            for value in model.select("full").values():
                value *= 1 + self.size
        return model
'''


def small_protocol() -> Any:
    """The digits task's protocol with a few images and steps; the last chunk is padded."""
    from unlearnbench.diffusion.sampler import Sampler
    from unlearnbench.tasks.digits_class import DigitsClass

    return dataclasses.replace(
        DigitsClass.protocols["default"],
        sampler=Sampler(steps=2, eta=0.0, guidance=1.25),
        forget_images=FORGET_IMAGES,
        retain_images=RETAIN_IMAGES,
        chunk=CHUNK,
    )


def small_text_protocol(smoke: Any) -> Any:
    """The smoke protocol of `digits-text` with fewer images and steps, in one chunk."""
    counts = dict.fromkeys(("direct_images", "synonym_images", "held_out_images", "neighbour_images"), 2)
    sampler = dataclasses.replace(smoke.sampler, steps=2)
    return dataclasses.replace(smoke, sampler=sampler, forget_images=6, retain_images=8, chunk=22, **counts)


def write_method(folder: Path, body: str, name: str = "mine", head: str = "", fields: str = "") -> Path:
    """A method file whose `unlearn` has this body, in one line or several."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    more = "".join(f"    {line}\n" for line in fields.splitlines())
    path = folder / f"{name}.py"
    path.write_text(
        f'"""{name}: a method of the tests."""\n\nfrom dataclasses import dataclass\n\nimport torch\n\n'
        f"from unlearnbench import Guidance, Method, minimise\n\n{head}\n\n@dataclass(frozen=True)\n"
        f'class Mine(Method):\n    """Made for a test."""\n\n{more}\n'
        f"    def unlearn(self, model, task, prepared=None):\n{lines}\n"
    )
    return path


def write_nudge(folder: Path, name: str = "nudge") -> Path:
    """A method that needs no training."""
    path = folder / f"{name}.py"
    path.write_text(NUDGE)
    return path


def python(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, outside the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**kept, **env}, capture_output=True, text=True, check=False
    )


def run_cell(
    method: str | Path, store: Path, results: Path, forget: str = "3", force: bool = False, **task: Any
) -> Any:
    """The record of one cell, through the runner, without the command line."""
    from unlearnbench import registry
    from unlearnbench.pipeline import runner
    from unlearnbench.pipeline.cell import Cell
    from unlearnbench.storage.store import Store
    from unlearnbench.tasks.digits_class import DigitsClass

    cls = registry.load_method(str(method))
    return runner.run_cell(Cell(cls(), DigitsClass(forget, **task)), Store(store), results, force)


def read_only(folder: Path, pattern: str = "**/seed-*.json") -> Any:
    """The one record below a folder."""
    from unlearnbench.records.schema import read_record

    (path,) = [path for path in folder.glob(pattern) if "original" not in path.parts]
    return read_record(path)


def comparable(record: Any) -> dict[str, Any]:
    """A record without what differs from run to run of the same thing."""
    from unlearnbench.records.schema import TIMED

    volatile = {"environment", "created", "content_hash", "revision"}
    values = record.model_dump(mode="json", exclude=volatile)
    return {**values, "scores": {name: score for name, score in values["scores"].items() if name not in TIMED}}


def debris(folder: Path) -> list[str]:
    """Files that a broken-off write would leave."""
    return [str(path) for path in folder.rglob("*") if re.match(r"\.|.*\.(tmp|part)$", path.name)]


def made_record(
    method: str = "esd", seed: int = 0, scores: dict[str, float | None] | None = None, **changes: Any
) -> Any:
    """A valid record by hand; `scores` are values by metric."""
    from unlearnbench import registry
    from unlearnbench.records.schema import JudgeRecord, MethodRecord, ProtocolRecord, Record
    from unlearnbench.records.scores import ScoreRecord

    metrics = registry.load_metrics()
    known = {
        name: ScoreRecord(
            value=value,
            n=10,
            interval=None if value is None else (value - 0.1, value + 0.1),
            axis=metrics[name].axis,
            better=metrics[name].better,
            unit=metrics[name].stored or metrics[name].unit,
            code_hash="c" * 64,
        )
        for name, value in (scores or {}).items()
    }
    described = {"name": method, "division": "default", "preset": "default", "overrides": {}, "settings": {"lr": 0.1}}
    described["requires"] = ("concept",)
    described["code_hash"] = "m" * 64
    described.update(changes.pop("method_changes", {}))
    protocol = {"name": "default", "hash": "a" * 64, "settings": {}, **changes.pop("protocol_changes", {})}
    values = {
        "key": "k" * 64,
        "task": "digits-class",
        "protocol": ProtocolRecord(**protocol),
        "forget": "3",
        "method": MethodRecord(**described),
        "seeds": {"pretraining": 0, "unlearning": seed, "sampling": 0},
        "status": "ok",
        "scores": known,
        "judge": JudgeRecord(name="digits-cnn", version="1", hash="j" * 64, threshold=0.5),
        "weights": {"original": "o" * 64, "unlearned": "u" * 64},
        "engine_hash": "e" * 64,
        "environment": {"threads": 1},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**values, **changes})
