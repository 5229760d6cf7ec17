"""A method set up from settings that a user, a preset or a record gives: what cannot work is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from unlearnbench.errors import UserError, one_line

if TYPE_CHECKING:
    from unlearnbench.method import Method

LEAST: Final = {
    r"steps|sampler_steps|epochs|rounds|iterations|outer|k|rank|trajectories": 1,
    r"(.*_)?(batch|batch_size|batches|images|samples|timesteps|tokens)": 1,
    r".*_(steps|epochs|rounds|iterations|count)|warmup|cycles": 0,
}
"""Names of fields that count something, as patterns in any case, and the least whole number that they may have."""


def configured(cls: type[Method], settings: Mapping[str, Any]) -> Method:
    """An instance with these settings, as `Method.configured` makes it; built-in methods and those of others alike.

    Raises `UserError` where a count is too small (see `LEAST`), or where the method's own check of its settings raises
    anything. A field whose default is below the least is free down to its default.
    """
    try:
        method = cls.configured(dict(settings))
        values = method.settings()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value}" for name, value in settings.items()) or "its defaults"
        raise UserError(f"{cls.name} does not take {given} ({one_line(error)}): change the settings") from error
    for field in fields(cls):
        value = values[field.name]
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        least = least_of(field.name, field.default)
        if least is not None and value < least:
            raise UserError(f"{field.name}={value} does not fit {cls.name}: give a whole number of at least {least}")
    return method


def least_of(name: str, default: Any) -> int | None:
    """The least that a field of this name may be; None where the name counts nothing."""
    least = next((least for names, least in LEAST.items() if re.fullmatch(names, name, re.IGNORECASE)), None)
    if least is None or isinstance(default, bool) or not isinstance(default, int):
        return least
    return min(least, default)
