"""The cells that `run` was asked for: names and settings checked, concepts, methods and seeds multiplied out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearnbench import registry
from unlearnbench.compute.precision import DEFAULT, Resources
from unlearnbench.data.concepts import Concept, read_concepts
from unlearnbench.errors import Unsupported, UserError, one_line
from unlearnbench.method import Method
from unlearnbench.names import require_name
from unlearnbench.pipeline.cell import require
from unlearnbench.pipeline.spec import Spec
from unlearnbench.records.tuning import require_apart, tuned_settings, was_tuned
from unlearnbench.task import Task

TUNED = "tuned"
"""The preset that `tune` makes."""
Named = list[tuple[str, type[Method]]]
"""Methods as they were asked for, by name or by file."""


def concepts_of(
    task: type[Task], forget: Sequence[str] | None, file: Path | None
) -> tuple[list[str], tuple[Concept, ...]]:
    """What is to be forgotten, the task's default where nothing is said; how the user's own concepts are described."""
    if file is not None:
        if forget is not None:
            raise UserError("--forget and --concept exclude each other: give one of them")
        forgotten, described = read_concepts(file)
        return [forgotten], described
    return [task.resolve_concept(word) for word in ([task.default_forget] if forget is None else forget)], ()


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
                "call one of the files otherwise, or run them one by one with an --out folder each"
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


@dataclass(frozen=True)
class Asked:
    """What is the same for every cell."""

    task: type[Task]
    results: Path
    device: str
    protocol: str = "default"
    preset: str = "default"
    overrides: dict[str, Any] = field(default_factory=dict)
    described: tuple[Concept, ...] = ()
    resources: Resources = DEFAULT
    include_unsafe: bool = False
    pretrained: Path | None = None
    more: dict[str, Any] = field(default_factory=dict)
    """The task's own settings."""

    def spec(self, name: str, cls: type[Method], forget: str, seed: int, plain: bool = False) -> Spec:
        """One cell; `plain`: with the default settings, as the original's beside others is."""
        preset, overrides = ("default", {}) if plain else (self.preset, self.overrides)
        selection = None
        if preset == TUNED:
            settings, selection = tuned_settings(self.results, self.task.name, cls.name)
            require_apart(cls.name, selection, forget, seed, self.task.protocols[self.protocol].sampling_seed)
        else:
            settings = cls.preset(preset, self.task.name)
        method = cls.configured({**cls.current(settings), **overrides})
        file = None if cls.name in registry.methods() else Path(name).resolve()
        require_name("--preset", preset)
        for key in settings:
            require_name(f"the setting of {cls.name}", key)
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
            precision=self.resources.precision,
            memory=self.resources.memory,
            compile=self.resources.compile,
            include_unsafe=self.include_unsafe,
            pretrained=self.pretrained,
            **self.more,
        )

    def hosted(self, name: str, cls: type[Method], forget: str, told: Callable[[str], None]) -> bool:
        """Whether the task can host a method with these settings; tells why not."""
        if self.preset == TUNED and not was_tuned(self.results, self.task.name, cls.name):
            told(f"left out: {cls.name} has no tuned settings")
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
    ) -> tuple[list[Spec], list[Spec]]:
        """The original's cell for each concept, and those that were asked for.

        What `all` brings and the task cannot host is left out; what is named stays, and its record says why.
        """
        if "all" in given:
            methods = [
                (name, cls)
                for name, cls in methods
                if cls.name in given or (not cls.incomplete and self.hosted(name, cls, forget[0], told))
            ]
        original = registry.load_method("original")
        baseline = [self.spec("original", original, concept, 0, plain=True) for concept in forget]
        asked = [
            self.spec(name, cls, concept, seed)
            for concept in forget
            for name, cls in methods
            for seed in (seeds[:1] if cls.name == "retrain" and self.task.gold_once else seeds)
        ]
        return baseline, asked
