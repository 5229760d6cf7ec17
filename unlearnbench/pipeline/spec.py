"""A cell as data, from which any process builds the same cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearnbench import registry
from unlearnbench.compute.precision import Resources
from unlearnbench.data.concepts import build_concepts
from unlearnbench.data.prompt_sets import PromptFile
from unlearnbench.names import Name, Seed
from unlearnbench.pipeline.cell import Cell
from unlearnbench.records.schema import Selection, record_path, record_place
from unlearnbench.records.schema import label as labelled
from unlearnbench.records.sealed_json import FrozenPart

OWN = ("data", "checkpoint", "coco")
"""Settings that only some tasks take."""


class Spec(FrozenPart):
    """Everything that `run` was told about one cell, already checked."""

    method: str
    """Name of the method, or path of its file."""
    source: str | None = None
    """Content of that file, for machines that do not have it."""
    task: Name
    forget: Name
    seed: Seed
    protocol: Name
    preset: Name = "default"
    settings: dict[Name, Any]
    overrides: dict[Name, Any] = {}
    selection: Selection | None = None
    concepts: tuple[dict[str, Any], ...] = ()
    device: str
    precision: str = "fp32"
    memory: tuple[str, ...] = ()
    compile: bool = False
    include_unsafe: bool = False
    pretrained: Path | None = None
    data: Path | None = None
    checkpoint: Path | None = None
    coco: str | None = None
    prompts: tuple[PromptFile, ...] = ()

    def cell(self) -> Cell:
        """Build the cell. The method's file and those of the original and the data must exist."""
        method = registry.load_method(self.method).configured(self.settings)
        task = registry.load_task(self.task)(
            self.forget,
            protocol=self.protocol,
            seed=self.seed,
            device=self.device,
            weights=self.pretrained,
            concepts=build_concepts(list(self.concepts), "the concepts") if self.concepts else (),
            **{name: value for name in OWN if (value := getattr(self, name)) is not None},
        )
        resources = Resources(self.precision, self.memory, self.compile)  # type: ignore[arg-type]
        given = method.given(self.overrides)
        about = (self.preset, given, self.selection, resources, self.include_unsafe)
        return Cell(method, task, *about, prompts=self.prompts)

    def anywhere(self) -> Spec:
        """The same with absolute paths, for a process with another working folder."""
        paths = {name: getattr(self, name) for name in ("pretrained", "data", "checkpoint")}
        absolute: dict[str, Any] = {name: path.absolute() for name, path in paths.items() if path is not None}
        absolute["prompts"] = tuple(file._replace(path=file.path.absolute()) for file in self.prompts)
        return self.model_copy(update=absolute)

    @property
    def label(self) -> str:
        """The method as folders and tables name it."""
        name = Path(self.method).stem if self.method.endswith(".py") else self.method
        return labelled(name, self.preset, self.overrides)

    @property
    def title(self) -> str:
        """Title for users."""
        return f"{self.label} · forget {self.forget} · seed {self.seed}"

    def place(self) -> Path:
        """Path of the record relative to a folder of records."""
        return record_place(self.task, self.protocol, self.forget, self.label, self.seed)

    def path(self, results: Path) -> Path:
        """Path of the record below a folder of records."""
        return record_path(results, self.task, self.protocol, self.forget, self.label, self.seed)
