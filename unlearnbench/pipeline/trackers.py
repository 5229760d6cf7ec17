"""Experiment trackers that show a run's values as they come, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from unlearnbench.errors import UserError, one_line, unknown
from unlearnbench.reporting import tell

DEFAULT_PLACE = {"tensorboard": "tracking", "trackio": "unlearnbench", "wandb": "unlearnbench"}
"""Default folder or project of each kind."""
EXTRA = {
    "tensorboard": "pip install 'unlearnbench[tracking]'",
    "trackio": "pip install trackio",
    "wandb": "pip install 'unlearnbench[wandb]'",
}


class Tracker(Protocol):
    """Shows the values of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name at a step counted from 1; 0 is the start."""

    def close(self) -> None:
        """End the run."""


class Tracking(NamedTuple):
    """A kind of tracker, and the folder or project that it writes to."""

    kind: str
    place: str

    def begun(self, name: str) -> Tracker:
        """Start the tracker of one run. Its failures never stop the run; `name` may have slashes."""
        if self.kind == "trackio":
            return Steady(self.kind, Trackio(self.place, name))
        if self.kind == "wandb":
            return Steady(self.kind, Wandb(self.place, name))
        try:
            return Steady(self.kind, TensorBoard(Path(self.place) / name))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UserError(
                f"cannot write to {self.place} ({why}): name another folder with --tracker {self.kind}:DIR"
            ) from error


def tracking(text: str) -> Tracking:
    """Parse KIND or KIND:PLACE from the command line; the kind must be known and installed."""
    kind, _, place = text.partition(":")
    if kind not in DEFAULT_PLACE:
        raise unknown("tracker", kind, DEFAULT_PLACE)
    if find_spec(kind) is None:
        raise UserError(f"--tracker {kind} is not installed: {EXTRA[kind]}")
    return Tracking(kind, place or DEFAULT_PLACE[kind])


class TensorBoard:
    """Writes event files that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write pending events."""
        self._writer.close()


class Trackio:
    """Logs to a Trackio project."""

    def __init__(self, project: str, name: str):
        import trackio

        self._module: Any = trackio
        trackio.init(project=project, name=name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values of a step at once."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Write pending values."""
        self._module.finish()


class Wandb:
    """Logs to a Weights & Biases project, or below the folder `tracking` where `WANDB_MODE=offline` is set.

    wandb ignores what is logged at an earlier step than its last one, and a run's scores come after all its losses.
    Steps are therefore a value of their own, which every other value is plotted against.
    """

    FOLDER = "tracking"
    STEP = "unlearning step"

    def __init__(self, project: str, name: str):
        import wandb

        Path(self.FOLDER).mkdir(parents=True, exist_ok=True)  # wandb takes a temporary folder for one that is missing
        about = dict(zip(("task", "forget", "method", "seed"), name.split("/"), strict=False))
        try:
            self._run: Any = wandb.init(project=project, name=name, dir=self.FOLDER, config=about)
            self._run.define_metric("*", step_metric=self.STEP)
        except Exception as error:  # a foreign library may raise anything
            raise UserError(
                f"wandb cannot begin ({one_line(error)}): log in by `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values of a step at once."""
        self._run.log({**values, self.STEP: step})

    def close(self) -> None:
        """Write pending values."""
        self._run.finish()


class Steady:
    """Wraps a tracker: its first failure is reported in a line and ends tracking, not the run."""

    def __init__(self, kind: str, tracker: Tracker):
        self.kind, self._tracker = kind, tracker  # type: str, Tracker | None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log as the tracker does, until it fails."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.log(step, values))

    def close(self) -> None:
        """Close as the tracker does."""
        if self._tracker is not None:
            self._tried(self._tracker.close)
        self._tracker = None

    def _tried(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a foreign library may raise anything, and the run must go on
            self._tracker = None
            tell(f"{self.kind} failed ({one_line(error)}): tracking stops here, the run goes on")
