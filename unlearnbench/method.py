"""The interface of an unlearning method: a frozen dataclass whose fields are its hyper-parameters."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import UserError, one_line, unknown
from unlearnbench.task import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LEAST: Final = {
    r"steps|sampler_steps|epochs|rounds|iterations|outer|k|rank|trajectories": 1,
    r"(.*_)?(batch|batch_size|batches|images|samples|timesteps|tokens)": 1,
    r".*_(steps|epochs|rounds|iterations|count)|warmup|cycles": 0,
}
"""Smallest whole number allowed for fields that count something, by patterns of their names (in any case)."""
ACCESS = ("forget images", "retain images", "concept", "training recipe")
"""Kinds of access that `requires` may name; "concept" is only its name, as text or class label."""


@cache
def settings_table() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Read tables/presets.toml: method -> preset -> task or pattern of tasks -> settings."""
    return tomllib.loads((Path(__file__).parent / "tables" / "presets.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Method(ABC):
    """Subclass as a frozen dataclass in a file of its own; the file's name is the method's name.

    The fields are the method's hyper-parameters; a string below each says what it is (see `field_docs`). `presets` maps
    a name such as "published" to settings by task: the task's name, else the first matching pattern, such as "sd*",
    with "*" for all other tasks last. `requires` names what the method needs (see `ACCESS`, or a part of the model);
    where that is missing, the cell is skipped with the reason. `space` gives tuning ranges for at most six fields.
    """

    name: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    requires: ClassVar[frozenset[str]] = frozenset({"forget images", "retain images"})
    space: ClassVar[dict[str, tuple[Any, ...]]] = {}
    least: ClassVar[dict[str, int]] = {}
    """Fields that count something and may be smaller than their names allow (see `LEAST`), such as 0 further rounds."""
    version: ClassVar[int] = 1
    """Increased, with a line in the changelog, when equal settings no longer give equal numbers."""
    incomplete: ClassVar[bool] = False
    """Whether it runs only with settings from the user; `--method all` leaves it out."""
    experimental: ClassVar[bool] = False
    """Whether its update has not yet been checked against an independent computation of the paper's formula."""
    resumes: ClassVar[bool] = False
    """Whether a run that was stopped goes on at a step of `minimise` and ends in the same weights, bit for bit.

    The stream is brought to that step while the network answers zeros. So nothing that it carries from step to step may
    depend on the network, apart from the parameters and `others` of `minimise`. `unlearnbench check` tests this. A
    subclass with methods of its own says it for itself.
    """
    dropped: ClassVar[dict[str, Any]] = {}
    """Fields of earlier versions, each with the one value that old records of this algorithm have (see `current`)."""
    moved: ClassVar[dict[str, str]] = {}
    """Presets, fields and choices of earlier versions that now belong to another method: name -> that method."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def prepare(self, model: Diffusion, task: Task) -> Any:  # noqa: B027 - most methods prepare nothing
        """Compute masks, Fisher information or generated images. Runs before `unlearn` and is timed separately."""

    @abstractmethod
    def unlearn(self, model: Diffusion, task: Task, prepared: Any) -> Diffusion:
        """Change and return the model. Random numbers come from torch's global generator, which the runner seeds."""

    def wrap(self, model: Diffusion, task: Task) -> Diffusion:
        """Add structure that weights alone do not carry (adapters, gates, guidance).

        Runs before `unlearn` and whenever stored weights are loaded. The task tells the concept.
        """
        return model

    @classmethod
    def current(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a record or tuning, which may be older than this code, without `dropped` fields.

        A dropped field with another value than the expected one is kept, so that `configured` refuses it.
        """
        gone = object()
        return {key: value for key, value in settings.items() if cls.dropped.get(key, gone) != value}

    @classmethod
    def configured(cls, settings: dict[str, Any]) -> Method:
        """Create an instance with these settings; strings are converted to the field's type.

        Raises `UserError` with the name and value of a setting that does not exist or does not fit, for a count that is
        too small (see `LEAST`), and if the method's own check of its settings raises any error.
        """
        known = {field.name for field in fields(cls)}
        hints = get_type_hints(cls, include_extras=True)
        values = {}
        for key, value in settings.items():
            for old in (key, str(value)):
                if old in cls.moved and (old != key or key not in known):
                    raise UserError(f"{cls.name} takes no {key}={value}: use --method {cls.moved[old]}")
            if key not in known:
                raise unknown(f"setting of {cls.name}", key, known or ["(it has none)"])
            try:
                adapter = TypeAdapter(hints[key])
                values[key] = (
                    adapter.validate_strings(value) if isinstance(value, str) else adapter.validate_python(value)
                )
                if isinstance(values[key], float) and not math.isfinite(values[key]):
                    raise UserError(f"{key}={value} does not fit {cls.name}: give a finite number")
            except ValidationError as error:
                reason = error.errors()[0]["msg"].lower()
                raise UserError(f"{key}={value} does not fit {cls.name}: {reason}") from error
        try:
            method = cls(**values)
            found = method.settings()
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{name}={value}" for name, value in settings.items()) or "its defaults"
            raise UserError(f"{cls.name} does not take {given} ({one_line(error)}): change the settings") from error
        for field in fields(cls):
            cls._require_count(field.name, found[field.name], field.default)
        return method

    @classmethod
    def least_of(cls, field: str, default: Any) -> int | None:
        """The least value of a field that counts something; None for others. A default below it lowers it."""
        if field in cls.least:
            return cls.least[field]
        least = next((least for names, least in LEAST.items() if re.fullmatch(names, field, re.IGNORECASE)), None)
        if least is None or isinstance(default, bool) or not isinstance(default, int):
            return least
        return min(least, default)

    @classmethod
    def _require_count(cls, field: str, value: Any, default: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            return
        least = cls.least_of(field, default)
        if least is not None and value < least:
            raise UserError(f"{field}={value} does not fit {cls.name}: give a whole number of at least {least}")

    @classmethod
    def preset(cls, name: str, task: str) -> dict[str, Any]:
        """Return the settings of a preset for a task. "default" always exists; it is empty unless the method defines
        it.
        """
        if name in cls.moved and name not in cls.offered():
            raise UserError(f"{cls.name} has no preset {name}: use --method {cls.moved[name]}")
        if name != "default" and name not in cls.offered():
            raise unknown(f"preset of {cls.name}", name, {*cls.offered(), "default"})
        by_task = cls.offered().get(name, {})
        return dict(next((by_task[key] for key in (task, *by_task) if key in by_task and fnmatchcase(task, key)), {}))

    @classmethod
    def offered(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """Return `presets` plus the settings in tables/presets.toml for further tasks; "*" comes last."""
        table = settings_table().get(cls.name, {})
        merged = {}
        for preset in dict.fromkeys((*cls.presets, *table)):
            own = cls.presets.get(preset, {})
            every = {**own, **{key: values for key, values in table.get(preset, {}).items() if key not in own}}
            merged[preset] = dict(sorted(every.items(), key=lambda item: item[0] == "*"))
        return merged

    @classmethod
    def chosen_for(cls, task: str) -> bool:
        """Whether settings were chosen for this task or its kind, rather than for any task."""
        keys = (key for by_task in cls.offered().values() for key in by_task)
        return any(key != "*" and fnmatchcase(task, key) for key in keys)

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Return a one-line description of each hyper-parameter: the string below the field, "" if there is none.

        A field for which a subclass only changes the default keeps the inherited line.
        """
        docs: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, Method) and base is not Method:
                docs |= _documented(base)
        return {field.name: docs.get(field.name, "") for field in fields(cls)}

    def settings(self) -> dict[str, Any]:
        """Return all hyper-parameters by name."""
        return asdict(self)

    def given(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the settings that the user gave, as records and their folders show them."""
        return {key: self.settings()[key] for key in keys}

    @classmethod
    def own_files(cls) -> list[Path]:
        """Return the files that define the class and the methods that it builds on."""
        return [Path(inspect.getfile(base)) for base in cls.__mro__ if issubclass(base, Method) and base is not Method]


def can_resume(cls: type[Method]) -> bool:
    """Whether runs of the method go on at a step: its `resumes`, which a subclass with functions of its own says anew.

    Such a subclass may carry more from step to step than its parent.
    """
    for base in cls.__mro__:
        own = vars(base)
        if "resumes" in own:
            return bool(own["resumes"])
        if any(callable(getattr(base, name)) for name in own if not name.startswith("__")):
            return False
    return False


def _documented(cls: type) -> dict[str, str]:
    """Return the strings below the fields of a class's own body, by field."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__), [])
    found = {}
    for field, below in itertools.pairwise(body):
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
            found[field.target.id] = " ".join(text.split())
    return found
