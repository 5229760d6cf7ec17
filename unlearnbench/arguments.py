"""What the command line takes, read and refused by value."""

from __future__ import annotations

import inspect
import re
from enum import Enum
from typing import Any

from unlearnbench.errors import UserError


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def parse_seeds(text: str) -> list[int]:
    """`0`, `0-2` or `0,3,5` as numbers, in order."""
    numbers: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last - first >= 1000:
            raise UserError(f"--seeds {text}: {last - first + 1} seeds are too many; at most 1,000")
        if last < first:
            raise UserError(
                f"--seeds {text}: write one number, an ascending range such as 0-2, or a list such as 0,3,5"
            )
        numbers += [number for number in range(first, last + 1) if number not in numbers]
    return numbers


def parse_settings(settings: list[str], option: str = "set", such_as: str = "lr=1e-4") -> dict[str, Any]:
    """`key=value` words as a dictionary."""
    for word in settings:
        if not re.fullmatch(r"[\w-]+=.+", word):
            raise UserError(f"--{option} {word}: write key=value, such as --{option} {such_as}")
    return dict(word.split("=", 1) for word in settings)


def parse_share(text: str, option: str = "sample", of: str = "images") -> float:
    """`5%` or `0.05`, given with an option, as a share in (0, 1]."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text, re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share <= 1:
        raise UserError(f"--{option} {text}: write a share of the {of} above 0 and up to 100%, such as 5% or 0.05")
    return share


def words(values: list[str]) -> list[str]:
    """Comma-separated and repeated values as one list, without repetitions."""
    return list(dict.fromkeys(word.strip() for value in values for word in value.split(",") if word.strip()))


def accepted(task: type[Any], **given: Any) -> dict[str, Any]:
    """Those of a task's own settings that were given; refuses what it does not take."""
    known = {name for cls in task.__mro__ for name in inspect.signature(vars(cls).get("__init__", object)).parameters}
    for name, value in given.items():
        if value is not None and name not in known:
            raise UserError(f"{task.name} takes no --{name}: leave it out")
    return {name: value for name, value in given.items() if value is not None}
