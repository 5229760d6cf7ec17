"""A request for runs, checked, and its cells: every method on every concept with every seed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from unlearnbench import registry
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.compute.precision import DEFAULT, Resources
from unlearnbench.data.concepts import Concept, read_concepts
from unlearnbench.data.prompt_sets import PromptFile, prompt_files
from unlearnbench.data.wording import Wording
from unlearnbench.errors import Unsupported, UserError, one_line, unknown
from unlearnbench.method import Method
from unlearnbench.names import Seed, require_name
from unlearnbench.pipeline.attacks import parse_attacks, require_attack_settings
from unlearnbench.pipeline.cell import require
from unlearnbench.pipeline.memory import default_savings, require_splittable, with_defaults
from unlearnbench.pipeline.prompt_sets import require_drawable
from unlearnbench.pipeline.spec import Spec
from unlearnbench.pipeline.trackers import Tracking, tracking
from unlearnbench.records.tuning import require_apart, tuned_settings, was_tuned
from unlearnbench.registry import words
from unlearnbench.task import Task, accepted

TUNED = "tuned"
FEW_RETRAINS = 3
"""Runs of `retrain` where training is costly: as many as likeness to retrain needs."""
"""The preset that `tune` makes."""
Named = list[tuple[str, type[Method]]]
"""Methods as they were asked for, by name or by file."""


def requested_concepts(
    task: type[Task], forget: Sequence[str] | None, file: Path | None
) -> tuple[list[str], tuple[Concept, ...]]:
    """What is to be forgotten, the task's default where nothing is said; how the user's own concepts are described.

    `all` stands for every concept of the task, and the name of one of its groups for those in it; see `expanded`.
    """
    if file is not None:
        if forget is not None:
            raise UserError("--forget and --concept exclude each other: give one of them")
        forgotten, described = read_concepts(file)
        return [forgotten], described
    named = [task.default_forget] if forget is None else expanded(task, forget)
    return list(dict.fromkeys(task.resolve_concept(word) for word in named)), ()


def expanded(task: type[Task], forget: Sequence[str]) -> list[str]:
    """Names of concepts, with all of them for `all`, and those of a group, such as `styles`, for its name."""
    groups: dict[str, Sequence[str]] = {"all": task.concepts, **getattr(task, "concept_groups", {})}
    return [name for word in forget for name in groups.get(word, (word,))]


def methods_of(given: Sequence[str], overrides: dict[str, Any]) -> Named:
    """The methods of these words, of which `all` stands for every one; refuses what cannot be set up."""
    names = list(dict.fromkeys([*(registry.methods() if "all" in given else []), *given]))
    found = [(name, registry.load_method(name)) for name in names if name != "all"]
    found = _once(found)
    for _, cls in found:
        registry.require_fields(cls)
        if cls.incomplete and cls.name in given and not overrides:
            first = next(iter(cls.configured({}).settings()))
            raise UserError(f"{cls.name} runs only with settings that you give: --set {first}=…")
    return found


def _once(found: Named) -> Named:
    """Each method once; refuses two of one name, whose records would replace each other."""
    kept: dict[str, tuple[str, type[Method]]] = {}
    for name, cls in found:
        before = kept.setdefault(cls.name, (name, cls))[0]
        if before != name and _place(before) != _place(name):
            raise UserError(
                f"--method names two methods {cls.name}, {before} and {name}, and both would write the same records: "
                "call one of the files otherwise, or run them one by one with a --results folder each"
            )
    return list(kept.values())


def _place(name: str) -> Path | str:
    """The file that a method was named by; methods of the registry by their name, even where their file was given."""
    return name if (stem := Path(name).stem) == name or stem in registry.methods() else Path(name).resolve()


def source_of(file: Path) -> str:
    """What a method's file says, for machines that do not have it."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 ({one_line(error)}): save it as UTF-8") from error


def preset_of(cls: type[Method], preset: str, task: str) -> dict[str, Any]:
    """The settings of a preset for a task; where the method has none, the error names a relative that does."""
    try:
        return cls.preset(preset, task)
    except UserError as error:
        raise type(error)(f"{error}{pointer(cls, preset, task)}") from error


def pointer(cls: type[Method], preset: str, task: str) -> str:
    """What an error says of the built-in methods of the same family that have a preset for a task."""
    if preset == "default" or preset in cls.moved or not (found := relatives(cls, preset, task)):
        return ""
    have = "has" if len(found) == 1 else "have"
    return f"; {' and '.join(found)} {have} the preset for {task}: --method {','.join(found)}"


def relatives(cls: type[Method], preset: str, task: str) -> list[str]:
    """Built-in methods that have a preset for a task and build on a method, are built on by it, or took over from it
    (or it from them) presets and settings of earlier versions."""
    known = {name: registry.load_method(name) for name, entry in registry.methods().items() if entry.point is None}
    return [
        name
        for name, other in known.items()
        if name != cls.name
        and (issubclass(other, cls) or issubclass(cls, other) or _moved(cls, other) or _moved(other, cls))
        and other.has_preset(preset, task)
    ]


def require_tuned_network(task: type[Task], protocol: str) -> None:
    """Refuse tuned settings where a protocol is on another network than that which `tune` took."""
    same = getattr(task, "ships", frozenset({protocol}))
    if protocol not in same:
        raise UserError(
            f"--preset {TUNED}: settings of {task.name} are tuned on the network of {', '.join(sorted(same))}, and "
            f"protocol {protocol} is on another: give --preset published, or settings with --set"
        )


def _moved(cls: type[Method], other: type[Method]) -> bool:
    return other.name in cls.moved.values()


class Cells(NamedTuple):
    """The cells that a request comes to."""

    baseline: list[Spec]
    """The original's, one for each concept: what the others are compared with."""
    asked: list[Spec]


@dataclass(frozen=True)
class SpecBuilder:
    """What is the same for every cell."""

    task: type[Task]
    results: Path
    device: str
    protocol: str = "default"
    preset: str = "default"
    overrides: dict[str, Any] = field(default_factory=dict)
    described: tuple[Concept, ...] = ()
    resources: Resources = DEFAULT
    own_memory: bool = True
    """Whether the memory savings are the user's; otherwise a method that needs some takes them by itself."""
    include_unsafe: bool = False
    pretrained: Path | None = None
    more: dict[str, Any] = field(default_factory=dict)
    """The task's own settings."""
    prompts: tuple[PromptFile, ...] = ()
    """Files of the user's own prompts; the original is paired with every method, so its own cell takes none."""

    def spec(self, name: str, cls: type[Method], forget: str, seed: int, plain: bool = False) -> Spec:
        """One cell; `plain`: with the default settings, as the original's beside others is."""
        preset, overrides = ("default", {}) if plain else (self.preset, self.overrides)
        selection = None
        if preset == TUNED:
            require_tuned_network(self.task, self.protocol)
            settings, selection = tuned_settings(self.results, self.task.name, cls.name)
            require_apart(cls.name, selection, forget, seed, self.task.protocols[self.protocol].sampling_seed)
        else:
            settings = preset_of(cls, preset, self.task.name)
        method = cls.configured({**cls.current(settings), **overrides})
        built_in = cls.name in registry.methods() or registry.is_offered(cls.name)
        file = None if built_in else Path(name).resolve()
        require_name("--preset", preset)
        for key in settings:
            require_name(f"the setting of {cls.name}", key)
        given = self.pretrained or self.more.get("checkpoint")
        resources = self.resources
        if not self.own_memory:
            needed = default_savings(self.task, method, self.protocol, resources.precision, given)
            resources = with_defaults(resources, needed)
        require_splittable(method, resources)
        return Spec(
            method=str(file or cls.name),
            source=source_of(file) if file else None,
            task=self.task.name,
            forget=forget,
            seed=seed,
            protocol=self.protocol,
            preset=preset,
            settings=method.settings(),
            overrides=method.given(overrides),
            selection=selection,
            concepts=tuple(asdict(concept) for concept in self.described),
            device=self.device,
            precision=resources.precision,
            memory=resources.memory,
            compile=resources.compile,
            include_unsafe=self.include_unsafe,
            pretrained=self.pretrained,
            prompts=() if plain else self.prompts,
            **self.more,
        )

    def has_settings(self, cls: type[Method], told: Callable[[str], None]) -> bool:
        """Whether a method has the preset for the task; tells why not."""
        if self.preset == TUNED:
            if was_tuned(self.results, self.task.name, cls.name):
                return True
            reason = f"{cls.name} has no tuned settings"
        else:
            try:
                preset_of(cls, self.preset, self.task.name)
            except UserError as error:
                reason = str(error)
            else:
                return True
            if self.preset not in ("default", *cls.offered(), *cls.moved):
                reason = f"{cls.name} has no preset {self.preset}{pointer(cls, self.preset, self.task.name)}"
        told(f"left out: {reason}")
        return False

    def hosted(self, name: str, cls: type[Method], forget: str, told: Callable[[str], None]) -> bool:
        """Whether the task can host a method with these settings; tells why not."""
        if not self.has_settings(cls, told):
            return False
        try:
            # on the CPU: whoever drives jobs elsewhere may have no card
            require(self.spec(name, cls, forget, 0).model_copy(update={"device": "cpu"}).cell())
        except Unsupported as reason:
            told(f"left out: {reason}")
            return False
        return True

    def cells(
        self,
        methods: Named,
        given: Sequence[str],
        forget: Sequence[str],
        seeds: Sequence[int],
        told: Callable[[str], None],
    ) -> Cells:
        """The original's cell for each concept, and those that were asked for.

        What `all` brings and the task cannot host is left out; what is named stays, and its record says why. Of
        several methods, those without the preset for the task are left out, however they were named.
        """
        if len(methods) > 1:
            known = {preset for _, cls in methods for preset in (*cls.offered(), *cls.moved)} | {"default", TUNED}
            if self.preset not in known:
                raise unknown("preset", self.preset, known)
            methods = [
                (name, cls)
                for name, cls in methods
                if (
                    self.has_settings(cls, told)
                    if cls.name in given or "all" not in given
                    else not cls.incomplete and self.hosted(name, cls, forget[0], told)
                )
            ]
            if not methods:
                whose = "that {} can host" if "all" in given else "that was named, for {}"
                instead = "run `unlearnbench tune` first" if self.preset == TUNED else "give --preset default"
                raise UserError(f"--preset {self.preset} is of no method {whose.format(self.task.name)}: {instead}")
        original = registry.load_method("original")
        baseline = [self.spec("original", original, concept, 0, plain=True) for concept in forget]
        asked = [
            self.spec(name, cls, concept, seed)
            for concept in forget
            for name, cls in methods
            for seed in (seeds[:FEW_RETRAINS] if cls.name == "retrain" and self.task.few_retrains else seeds)
        ]
        return Cells(baseline, asked)


Request = TypeVar("Request", bound="LaunchRequest")


class LaunchRequest(BaseModel):
    """Where to compute, and as which jobs. Without `launcher` and `jobs`, cells run one by one in this process."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    launcher: str | None = None
    """local, ray or slurm."""
    jobs: int | None = None
    """Jobs at a time."""
    threads: int | None = None
    """CPU threads of a job, or of this process."""
    gpus: int | None = None
    """GPUs of a job, by ray and slurm."""
    partition: str | None = None
    """Slurm's partition."""
    time: str | None = None
    """Slurm's limit for a job: 90 (minutes), 1:30 (hours:minutes) or 1-12:00 (days before them)."""
    slurm: dict[str, str] = {}
    """Further options of sbatch."""

    @classmethod
    def of(cls: type[Request], **values: Any) -> Request:
        """A request from these values; `UserError` names the first one that does not fit, and what would."""
        if "out" in values and "results" in cls.model_fields:
            warnings.warn("out is deprecated: use results", DeprecationWarning, stacklevel=4)
            values.setdefault("results", values.pop("out"))
        for name in values:
            if name not in cls.model_fields:
                raise unknown("option of run", name, cls.model_fields)
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else "the request"
            if first["type"] == "missing":
                raise UserError(f"{name} is missing: give it a value") from error
            reason = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
            raise UserError(f"{name}={values.get(name)!r} does not fit: {reason}") from error


class RunRequest(LaunchRequest):
    """What `unlearnbench run` and `unlearnbench.run` are asked for; each field is an option of the command.

    Everything is checked that can be checked without loading a model; see `cells` for the rest.
    """

    method: tuple[str, ...]
    """Names, paths of .py files, `all`, or `Method` classes, which become names."""
    task: str = "digits-class"
    forget: tuple[str, ...] | None = None
    """Concepts; None: the task's default."""
    concept: Path | None = None
    """A .toml file with concepts of the user's own, in place of `forget`."""
    protocol: str = "default"
    seeds: tuple[Seed, ...] = (0,)
    """Of unlearning."""
    preset: str = "default"
    settings: dict[str, Any] = {}
    """Hyper-parameters that differ from the preset's."""
    precision: str = "fp32"
    compile: bool = False
    memory: tuple[str, ...] | None = None
    """Ways to save memory: checkpointing, microbatches, slices, adam8bit; `none` for none of them. None: what the
    method needs on this task for a common card (see `default_savings`)."""
    results: Path = Path("results")
    """Folder of records."""
    pretrained: Path | None = None
    data: Path | None = None
    checkpoint: Path | None = None
    coco: str | None = None
    prompts: tuple[str, ...] = ()
    """Files of the user's own prompts, each as SET=FILE, where SET is forget, retain or attack."""
    include_unsafe: bool = False
    force: bool = False
    attacks: tuple[str, ...] = ()
    """Labels, or `standard`."""
    budget: int | None = None
    """What each attack may spend on a target; None: its own schedule."""
    eval_every: int | None = None
    """Steps from one scored point of a trajectory to the next."""
    tracker: str | None = None
    shards: int = 1
    """Jobs that a cell's images are drawn by."""

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> list[str]:
        every = value if isinstance(value, list | tuple) else [value]
        return words([registry.offer_method(one) if _is_method(one) else _text("method", one) for one in every])

    @field_validator("forget", "memory", "attacks", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: Any) -> Any:
        if value is None:
            return None if info.field_name in ("forget", "memory") else ()
        every = value if isinstance(value, list | tuple) else [value]
        found = words([_text(info.field_name, one) for one in every])
        if info.field_name == "memory":
            if "none" in found and len(found) > 1:
                raise UserError(f"--memory {','.join(found)}: none goes with no other: leave it or the others out")
            return () if list(found) == ["none"] else found
        if info.field_name == "attacks" and not found and every:
            parse_attacks("")
        return found

    @field_validator("prompts", mode="before")
    @classmethod
    def _files(cls, value: Any) -> Any:
        if isinstance(value, dict):  # from Python: {"forget": "mine.csv"}
            pairs = [(side, file) for side, files in value.items() for file in _every(files)]
            return tuple(f"{side}={_text('prompts', file)}" for side, file in pairs)
        return () if value is None else tuple(_text("prompts", one) for one in _every(value))

    @field_validator("seeds", mode="before")
    @classmethod
    def _numbered(cls, value: Any) -> Any:
        if isinstance(value, str):
            return parse_seeds(value)
        seeds = list(value) if isinstance(value, Iterable) else [value]
        for seed in seeds:
            if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= int(seed) < 2**63:
                raise UserError(
                    f"seeds={value!r}: {seed!r} is no seed: give whole numbers from 0 on, such as [0, 1, 2]"
                )
        if not seeds:
            raise UserError("seeds is empty: give at least one, such as [0]")
        return list(dict.fromkeys(map(int, seeds)))

    @model_validator(mode="after")
    def _possible(self) -> RunRequest:
        if self.budget is not None and not self.attacks:
            raise UserError("--budget is for attacks: add --attacks standard, or leave it out")
        if self.tracker is not None:
            tracking(self.tracker)
        task = registry.load_task(self.task)
        task.resolve_protocol(self.protocol)
        self.own_settings(task)
        self.prompt_files(task)
        require_attack_settings(self.attack_specs(), task)
        if self.eval_every is not None and self.eval_every < 1:
            raise UserError(
                f"--eval-every {self.eval_every} is below 1: give the steps from one evaluation to the next, such as 10"
            )
        return self

    def own_settings(self, task: type[Task]) -> dict[str, Any]:
        """Those of the task's own settings that were given; refuses what the task does not take."""
        return accepted(task, data=self.data, checkpoint=self.checkpoint, coco=self.coco)

    def prompt_files(self, task: type[Task]) -> tuple[PromptFile, ...]:
        """The files of the user's own prompts, read and checked; refuses what the task cannot draw."""
        return prompt_files(self.prompts, takes_prompts=hasattr(task, "asked_in"), task=task.name)

    def attack_specs(self) -> list[AttackSpec]:
        """The attacks to try."""
        return parse_attacks(",".join(self.attacks), self.budget) if self.attacks else []

    def tracking(self) -> Tracking | None:
        """What shows losses and scores as they come."""
        return None if self.tracker is None else tracking(self.tracker)

    def cells(self, device: str, told: Callable[[str], None] = lambda line: None, for_card: bool = False) -> Cells:
        """The cells on a device, `cpu` or `cuda`; `told` hears what `method="all"` leaves out.

        With `for_card` precision and memory options may be those of a card that this machine lacks, for planning.

        Raises `UserError` where a method, concept, preset or setting does not exist, or the device cannot do it.
        """
        task = registry.load_task(self.task)
        methods = methods_of(self.method, self.settings)
        forgotten, described = requested_concepts(task, self.forget, self.concept)
        if not methods or not forgotten:
            raise UserError(f"--{'forget' if methods else 'method'} is empty: name at least one")
        builder = SpecBuilder(
            task=task,
            results=self.results,
            device=device,
            protocol=self.protocol,
            preset=self.preset,
            overrides=self.settings,
            described=described,
            resources=Resources.checked(
                self.precision, self.memory or (), "cuda" if for_card else device, self.compile
            ),
            own_memory=self.memory is not None,
            include_unsafe=self.include_unsafe,
            pretrained=self.pretrained,
            more=self.own_settings(task),
            prompts=self.prompt_files(task),
        )
        cells = builder.cells(methods, self.method, forgotten, self.seeds, told)
        for name, word in self.settings.items():
            if name in Wording._fields and isinstance(word, str) and (note := one_name_note(name, word)):
                told(note)
        for spec in {(spec.method, spec.forget): spec for spec in cells.asked if has_words(spec)}.values():
            spec.model_copy(update={"device": "cpu"}).cell().worded  # noqa: B018 - refuses words that do not fit the task
        for spec in {spec.forget: spec for spec in cells.asked if spec.prompts}.values():
            require_drawable(spec.model_copy(update={"device": "cpu"}).cell())  # before hours of work
        return cells


def one_name_note(setting: str, text: str) -> str:
    """What to say of names that were given as one text with commas, which do not separate; "" where nothing is.

    Prompts have commas of their own, and whoever writes a list knows where each word ends.
    """
    if setting.endswith("_prompts") or "," not in text or ";" in text or text.strip().startswith("["):
        return ""
    apart = "; ".join(part.strip() for part in text.split(",") if part.strip())
    what = "text" if setting == "replace_with" else "name"
    return f"note: {setting}={text} is one {what}: semicolons separate {what}s, as in --set '{setting}={apart}'"


def has_words(spec: Spec) -> bool:
    """Whether a cell's method has words of its own."""
    return any(spec.settings.get(name) is not None for name in Wording._fields)


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


def _is_method(value: Any) -> bool:
    return registry.is_class_of(value, Method)


def _every(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _text(option: str, value: Any) -> str:
    """A word of an option that takes several."""
    if isinstance(value, str | PathLike):
        return str(value)
    what = "names, paths or Method classes" if option == "method" else f"text, such as {str(value)!r}"
    raise UserError(f"{option}={value!r} does not fit: give {what}, or a list of them")
