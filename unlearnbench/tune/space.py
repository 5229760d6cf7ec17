"""The candidates for a method: default, published preset, and quasi-random draws from `space`."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench.errors import UserError
from unlearnbench.hashing import seed_of
from unlearnbench.method import Method

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DECADE = 10.0
DIGITS = 4
"""Significant digits of a drawn float."""


class Candidate(NamedTuple):
    """All settings of one trial, and the presets that they equal."""

    settings: dict[str, Any]
    presets: tuple[str, ...] = ()
    """"default" and "published", or neither if the settings were drawn."""


def distributions(space: dict[str, tuple[Any, ...]]) -> dict[str, BaseDistribution]:
    """The distribution of each field, by the form of its range.

    Two integers: an integer between them, both included. Two numbers: a float, on a log scale if both are above 0 and
    span a decade or more. Any other tuple: one of its values, drawn as a position in it, so that choices are
    quasi-random like the rest, whatever optuna's version.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in space.items():
        if _choice(values):
            found[name] = FloatDistribution(0.0, float(len(values)))
        elif all(isinstance(value, int) for value in values):
            found[name] = IntDistribution(*values)
        else:
            low, high = map(float, values)
            found[name] = FloatDistribution(low, high, log=low > 0 and high / low >= DECADE)
    return found


def _choice(values: tuple[Any, ...]) -> bool:
    return len(values) != 2 or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)


def _value(values: tuple[Any, ...], drawn: float) -> Any:
    if _choice(values):
        return values[min(int(drawn), len(values) - 1)]
    return drawn if isinstance(drawn, int) else float(f"{drawn:.{DIGITS}g}")


def candidates(cls: type[Method], task: str, trials: int) -> list[Candidate]:
    """This many candidates, the same on every machine: default, published preset if it differs, then draws.

    Where the default is what an earlier tuning chose, preset "untuned" takes its place, which was the default before:
    otherwise a tuning that was followed could not be repeated.
    Draws come from a scrambled Sobol sequence, seeded by task and method, so that fewer trials are the first of more.
    They change only the fields in `space`. Each is checked by `Method.configured`.
    """
    before = "untuned" if cls.has_preset("untuned", task) else "default"
    known = [Candidate(cls.configured(cls.preset(before, task)).settings(), ("default",))]
    if cls.has_preset("published", task) and cls.preset("published", task):
        published = cls.configured(cls.preset("published", task)).settings()
        if published == known[0].settings:
            known = [Candidate(published, ("default", "published"))]
        else:
            known.append(Candidate(published, ("published",)))
    base = known[0].settings
    for drawn in _drawn(cls, task, trials - len(known)):
        values = {name: _value(cls.space[name], value) for name, value in drawn.items()}
        known.append(Candidate(cls.configured({**base, **values}).settings()))
    return known[:trials]


def _drawn(cls: type[Method], task: str, count: int) -> list[dict[str, float]]:
    import optuna

    spread = distributions(cls.space)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="The balance properties of Sobol")
        sampler = optuna.samplers.QMCSampler(scramble=True, seed=seed_of("tuning", task, cls.name) >> 33)
        study = optuna.create_study(sampler=sampler)
        # the sampler takes its space from the first finished trial
        study.add_trial(optuna.trial.create_trial(params=_inside(spread), distributions=spread, value=0.0))
        return [study.ask(spread).params for _ in range(count)]


def _inside(spread: dict[str, Any]) -> dict[str, Any]:
    return {name: distribution.low for name, distribution in spread.items()}


def require_space(cls: type[Method]) -> None:
    """Refuse a method whose `space` is empty, names an unknown field, or has a range that cannot be drawn from."""
    if not cls.space:
        raise UserError(f"{cls.name} declares no `space`: there is nothing to tune; give its settings with --set")
    known = cls.configured({}).settings()
    for name, values in cls.space.items():
        if name not in known:
            raise UserError(f"the `space` of {cls.name} names {name!r}, which is no setting of it: mend its file")
        fits = len(values) > 1 and (_choice(values) or (values[0] < values[1] and all(map(math.isfinite, values))))
        if not fits:
            raise UserError(f"the `space` of {cls.name} has {name}={values}: give (low, high), or several choices")
