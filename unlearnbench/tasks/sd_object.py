"""Erase an object from Stable Diffusion v1.4; ResNet-50 or CLIP judges (never run on its real weights here)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from unlearnbench.data.concepts import Concept, check_apart
from unlearnbench.data.prompt_files import PromptRow
from unlearnbench.data.sources import Source, check_source, is_published
from unlearnbench.diffusion.schedulers import Repeating
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.judges import Judge
from unlearnbench.judges.clip import ClipObjects
from unlearnbench.judges.imagenet import ResNet50
from unlearnbench.reporting import tell
from unlearnbench.task import Plan
from unlearnbench.tasks._sd.base import CLIP_FILES, CLIPS, SD14, PictureProtocol, smoke
from unlearnbench.tasks._sd.classes import SAMPLER, Pictured
from unlearnbench.tasks._sd.object_files import IMAGENETTE_PROMPTS, SYNONYMS, read_class_prompts, read_synonyms
from unlearnbench.tasks._sd.prompts import prompt_file
from unlearnbench.tasks._sd.words import CIFAR10_OBJECTS, CIFAR10_TEXT, OBJECT_HELD_OUT, OBJECT_TEXTS, OBJECTS
from unlearnbench.tasks._text import other_counts

RESNET = Source(
    name="resnet50-11ad3fa6.pth",
    url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    licence="bsd-3-clause",
    login=False,
    use="judge, ImageNet weights",
)
SYNONYMS_EACH = 3
"""Other words that MACE's file has for each class."""
FILE_ROWS = 10
"""Prompts of each class in ESD's file."""


@dataclass(frozen=True)
class MaceObjectsProtocol(PictureProtocol):
    """CIFAR-10's classes, each word asked for equally often: erased ones, their synonyms, and all others."""

    word_images: int = 200
    """Images of each word; the counts of groups are those where one class is erased.

    MACE's code wants more than 100 in a folder (Shilin-LU/MACE@057e7a6, metrics/evaluate_clip_accuracy.py:77); it has
    neither their number nor their seeds."""


@dataclass(frozen=True)
class ObjectFileProtocol(PictureProtocol):
    """Imagenette's classes, with prompts and seeds of ESD's file."""

    file_images: int = FILE_ROWS
    """Rows of each class that are drawn, from the first."""


class SDObject(Pictured):
    """Erase one class or several. Imagenette's have the next one as their substitute, as in SalUn."""

    name = "sd-object"
    concepts = (*OBJECTS, *CIFAR10_OBJECTS)
    texts, held_out = OBJECT_TEXTS, OBJECT_HELD_OUT
    catalogue: ClassVar[dict[str, Concept]] = {
        **{
            name: Concept((name,), (other,) if other else (), substitute)
            for name, (other, substitute) in OBJECTS.items()
        },
        **{name: Concept((name,), (), substitute) for name, substitute in CIFAR10_OBJECTS.items()},
    }
    protocols: ClassVar[dict[str, Any]] = {
        "default": PictureProtocol(
            "default",
            SAMPLER,
            "imagenet-resnet50",
            features="pixels",
            forget_images=250,
            retain_images=450,
            **{**other_counts(50), "direct_images": 0, "neighbour_images": 0},
            chunk=8,
        ),
        "mace-cvpr24": MaceObjectsProtocol(
            "mace-cvpr24",
            SAMPLER,
            "clip-objects",
            features="pixels",
            forget_images=200,
            retain_images=1800,
            **{**other_counts(0), "synonym_images": 600},
            chunk=8,
        ),
        "esd-iccv23": ObjectFileProtocol(
            "esd-iccv23",
            Repeating(50, guidance=7.5),
            "imagenet-resnet50",
            features="pixels",
            forget_images=FILE_ROWS,
            retain_images=FILE_ROWS * (len(OBJECTS) - 1),
            **other_counts(0),
            chunk=8,
        ),
        "smoke": PictureProtocol(
            "smoke",
            judge="imagenet-resnet50",
            **{**smoke(), "retain_images": 9},
            **{**other_counts(3), "direct_images": 0},
        ),
        "mace-smoke": MaceObjectsProtocol(
            "mace-smoke",
            judge="clip-objects",
            **{**smoke(), "forget_images": 2, "retain_images": 18},
            **{**other_counts(0), "synonym_images": 6},
            word_images=2,
        ),
        "esd-smoke": ObjectFileProtocol(
            "esd-smoke",
            judge="imagenet-resnet50",
            **{**smoke(sampler=Repeating(3, guidance=3.0)), "forget_images": 2, "retain_images": 18},
            **other_counts(0),
            file_images=2,
        ),
    }
    default_forget = "church"
    sources: ClassVar[tuple[Source, ...]] = (*SD14, *CLIP_FILES, RESNET, SYNONYMS, IMAGENETTE_PROMPTS)

    def __init__(self, forget: str, **settings: Any):
        super().__init__(forget, **settings)
        strange = [concept.label for concept in self.erased if concept.label not in self.classes]
        if strange:
            raise UserError(
                f"protocol {self.protocol.name} of {self.name} has no class {strange[0]}: give --forget one or several "
                f"(airplane+bird) of {', '.join(self.classes)}, or another --protocol"
                if self._is_cifar10
                else f"protocol {self.protocol.name} of {self.name} has no class {strange[0]}: give --forget one or "
                f"several of {', '.join(self.classes)}, or --protocol mace-cvpr24, which has CIFAR-10's classes"
            )
        if self._is_cifar10 and (self.folder / SYNONYMS.name).is_file():
            words = self._synonyms
            self.erased = tuple(replace(concept, synonyms=words[concept.label]) for concept in self.erased)
            check_apart(self.erased, f"{self.folder / SYNONYMS.name}")

    @property
    def _is_cifar10(self) -> bool:
        return isinstance(self.protocol, MaceObjectsProtocol)

    @property
    def classes(self) -> tuple[str, ...]:
        """Imagenette's classes, or CIFAR-10's."""
        return tuple(CIFAR10_OBJECTS if self._is_cifar10 else OBJECTS)

    @property
    def words(self) -> tuple[str, ...]:
        """All classes; where all are erased, others stand for what must be kept."""
        erased = {concept.label for concept in self.erased}
        return self.classes if erased < {*self.classes} else (*self.classes, *OBJECTS)

    def made_judge(self) -> Judge:
        """CLIP for CIFAR-10's classes, ResNet-50 for Imagenette's."""
        if self._is_cifar10:
            return ClipObjects(self.clip(CLIPS["clip_b32"]), self.classes, self.extractor)
        return ResNet50(check_source(self.folder, RESNET, self.name), self.extractor, self.device)

    # ---- what is measured ------------------------------------------------------------------------------------------

    @property
    def prompt_files(self) -> dict[str, Path]:
        """The paper's file that the protocol reads, by its role; none by default."""
        if self._is_cifar10:
            return {"synonyms": self._published(SYNONYMS)}
        return {"prompts": self._published(IMAGENETTE_PROMPTS)} if self._reads_prompts else {}

    @property
    def _reads_prompts(self) -> bool:
        return isinstance(self.protocol, ObjectFileProtocol)

    def _published(self, source: Source) -> Path:
        path = prompt_file(self.folder, self.name, source)
        if self.protocol.size and not is_published(path, source):
            tell(
                f"{path} is not the published file: protocol {self.protocol.name} means that of {source.url}, and "
                "records tell the two apart by their data hash"
            )
        return path

    @cached_property
    def _synonyms(self) -> dict[str, tuple[str, ...]]:
        return read_synonyms(self._published(SYNONYMS), self.classes)

    @cached_property
    def _file_rows(self) -> dict[str, list[PromptRow]]:
        path, count = self._published(IMAGENETTE_PROMPTS), int(getattr(self.protocol, "file_images", 0))
        found = read_class_prompts(path, self.classes)
        for name, rows in found.items():
            if len(rows) < count:
                raise UserError(
                    f"{path} has {len(rows)} prompts of {name}, protocol {self.protocol.name} means {count}: give the "
                    f"whole file, which `unlearnbench fetch --task {self.name}` brings"
                )
        return {name: rows[:count] for name, rows in found.items()}

    def data_identity(self) -> str | None:
        """Hash of every prompt and seed, where they come from a file."""
        if not self.prompt_files:
            return super().data_identity()
        return digest([[item.prompt, item.seed] for item in self.plan()])

    def plan(self) -> list[Plan]:
        """By default as in `Pictured`; by MACE's protocol each word equally often; by ESD's the rows of its file."""
        if self._is_cifar10:
            return self._words_plan(int(getattr(self.protocol, "word_images", 0)))
        return self._file_plan() if self._reads_prompts else super().plan()

    def _words_plan(self, count: int) -> list[Plan]:
        erased, plan = {concept.label for concept in self.erased}, list[Plan]()
        for name in self._in_order(erased):
            plan += self._items("forget", name, [CIFAR10_TEXT.format(name)], count)
            prompts = [CIFAR10_TEXT.format(word) for word in self._synonyms[name]]
            plan += self._items("synonyms", name, prompts, count * len(prompts))
        for name in self.classes:
            if name not in erased:
                plan += self._items("retain", name, [CIFAR10_TEXT.format(name)], count)
        return plan

    def _file_plan(self) -> list[Plan]:
        erased, known = {concept.label for concept in self.erased}, self.labels()
        kept = [name for name in self.classes if name not in erased]
        return [
            Plan("forget" if name in erased else "retain", name, known[name], row.seed, row.prompt)
            for name in (*self._in_order(erased), *kept)
            for row in self._file_rows[name]
        ]

    def _in_order(self, names: set[str]) -> list[str]:
        return [name for name in self.classes if name in names]

    def image_count(self) -> int:
        """Number of images, which can be counted before the files are there."""
        if self._is_cifar10:
            words = len(self.classes) + SYNONYMS_EACH * len(self.erased)
            return words * int(getattr(self.protocol, "word_images", 0))
        if self._reads_prompts:
            return len(self.classes) * int(getattr(self.protocol, "file_images", 0))
        return super().image_count()
