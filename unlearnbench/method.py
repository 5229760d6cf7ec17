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
from dataclasses import MISSING, asdict, dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from unlearnbench.data.wording import Replacements, Wording, Words
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Unsupported, UserError, one_line, unknown
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
OF_PAPERS = ("published", "released")
"""Presets that say what a paper or its code ran: they exist for the tasks that it ran, never for any task."""


@cache
def settings_table() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Read presets.toml: method -> preset -> task or pattern of tasks -> settings."""
    return tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Method(ABC):
    """Subclass as a frozen dataclass in a file of its own; the file's name is the method's name.

    The fields are the method's hyper-parameters; a string below each says what it is (see `field_docs`). `presets` maps
    a name such as "default" to settings by task: the task's name, else the first matching pattern, such as "sd*", with
    "*" for all other tasks last. "published" (what the paper says it ran) and "released" (what its code runs) name the
    tasks that were run: there "*" counts for none. `requires` names what the method needs (see `ACCESS`, or a part of
    the model); where that is missing, the cell is skipped with the reason. `space` gives tuning ranges for at most six
    fields.
    """

    name: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    requires: ClassVar[frozenset[str]] = frozenset({"forget images", "retain images"})
    space: ClassVar[dict[str, tuple[Any, ...]]] = {}
    least: ClassVar[dict[str, int]] = {}
    """Fields that count something and may be smaller than their names allow (see `LEAST`), such as 0 further rounds."""
    version: ClassVar[int] = 1
    """Increased, with a line in the changelog, when equal settings no longer give equal numbers."""
    trains: ClassVar[bool] = True
    """Whether it trains the weights that it gets, which may be others than the original's (see `Task.starting`);
    methods that do not train get the original."""
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
        """Compute masks, Fisher information or generated images. Runs before `unlearn` and is timed separately.

        The model is in evaluation mode, without dropout. A network that is trained here needs its own `train()`.
        """

    @abstractmethod
    def unlearn(self, model: Diffusion, task: Task, prepared: Any) -> Diffusion:
        """Change and return the model. Random numbers come from torch's global generator, which the runner seeds.

        The model is in training mode, so that networks with dropout train with it. `Diffusion.sample` turns it off.
        """

    def require_fit(self, task: Task) -> str:
        """Raise `UserError` if the settings do not fit the task; return a line that users should read, or "".

        Runs before anything is drawn, on a task of the same kind on the CPU. Most methods have nothing to check.
        """
        return ""

    def wrap(self, model: Diffusion, task: Task) -> Diffusion:
        """Add structure that weights alone do not carry (adapters, gates, guidance).

        Runs before `unlearn` and whenever stored weights are loaded. The task tells the concept.
        """
        return model

    def worded(self, task: Task) -> Task:
        """The task as this method sees it: with words of the method's own, if it has any (see `TextMethod`)."""
        return task

    @classmethod
    def current(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a record or tuning, which may be older than this code, as this code has them.

        Fields that came later have their defaults, which mean "as before" (see `version`). `dropped` fields are left
        out; one with another value than the expected one is kept, so that `configured` refuses it.
        """
        gone = object()
        later = {field.name: field.default for field in fields(cls) if field.name not in settings}
        kept = {key: value for key, value in settings.items() if cls.dropped.get(key, gone) != value}
        return {**{key: value for key, value in later.items() if value is not MISSING}, **kept}

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

        Raises `UserError` for a preset that the method does not have, and `Unsupported` for one that it has for other
        tasks only.
        """
        if name in cls.moved and name not in cls.offered():
            raise UserError(f"{cls.name} has no preset {name}: use --method {cls.moved[name]}")
        if name != "default" and name not in cls.offered():
            raise unknown(f"preset of {cls.name}", name, {*cls.offered(), "default"})
        by_task = cls.offered().get(name, {})
        if name in OF_PAPERS:
            by_task = {key: values for key, values in by_task.items() if key != "*"}
        found = next((by_task[key] for key in (task, *by_task) if key in by_task and fnmatchcase(task, key)), None)
        if found is None and name != "default":
            of = {"published": f"the paper of {cls.name} published", "released": f"the released code of {cls.name} has"}
            there = (
                f"it has them for {', '.join(by_task)}" if by_task else 'its "*" names none of the tasks that were run'
            )
            raise Unsupported(
                f"{of.get(name, f'preset {name} of {cls.name} has')} no settings for {task}; {there}: use --preset "
                "default, or give settings with --set"
            )
        return dict(found or {})

    @classmethod
    def has_preset(cls, name: str, task: str) -> bool:
        """Whether `preset` returns settings for this task."""
        try:
            cls.preset(name, task)
        except UserError:
            return False
        return True

    @classmethod
    def offered(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """Return `presets` plus the settings in presets.toml for further tasks; "*" comes last."""
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
        own = [base for base in cls.__mro__ if issubclass(base, Method) and base not in (Method, TextMethod)]
        return [Path(inspect.getfile(base)) for base in own]


@dataclass(frozen=True, kw_only=True)
class TextMethod(Method):
    """A method that can be given words of its own in place of the task's, by a preset or by `--set`.

    They change what the task tells the method: `names`, `captions`, `substitute`, and the prompts for which training
    images are drawn. What is measured never changes: the plan, its prompts and their labels are the task's. On tasks
    with class labels, giving words is an error. On the command line several words are separated by semicolons, or given
    as a JSON list: `--set 'erase=nudity; violence'`, `--set 'keep=["a dog", "a car"]'`.
    """

    erase: Words | None = None
    """Names of what is to be erased, instead of the task's; None: the task's."""
    replace_with: Replacements | None = None
    """What takes their place: one for all names, or one for each; "" is the empty prompt; None: the task's
    substitute."""
    keep: Words | None = None
    """Names of what is to be kept; empty keeps nothing, [""] the empty prompt; None: the task's."""
    forget_prompts: Words | None = None
    """Prompts of the training images of what is to be erased, which are drawn for them where the task draws images;
    None: the task's."""
    retain_prompts: Words | None = None
    """Prompts of the training images of what is to be kept; None: the task's."""

    @property
    def wording(self) -> Wording:
        """The five fields above, as tasks take them."""
        return Wording(*(getattr(self, name) for name in Wording._fields))

    def worded(self, task: Task) -> Task:
        """The task with these words; itself if there are none."""
        return task.with_words(self.wording) if self.wording.given else task

    @classmethod
    def configured(cls, settings: dict[str, Any]) -> Method:
        """Create an instance with these settings; raises `UserError` for words that contradict one another too."""
        method = super().configured(settings)
        assert isinstance(method, TextMethod)
        method.wording.check(cls.name)
        return method

    def settings(self) -> dict[str, Any]:
        """Return all hyper-parameters by name, words last."""
        own = super().settings()
        return {**{name: own[name] for name in own if name not in Wording._fields}, **self.wording._asdict()}


def run_prepare(method: Method, model: Diffusion, task: Task) -> Any:
    """Return what `method.prepare` makes of the model in evaluation mode, as the papers' code computes masks."""
    model.eval()
    return method.prepare(model, task)


def run_unlearn(method: Method, model: Diffusion, task: Task, prepared: Any) -> Diffusion:
    """Return the model that `method.unlearn` makes, with the model in training mode."""
    model.train()
    return method.unlearn(model, task, prepared)


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
