"""Tasks on Stable Diffusion whose concepts are told apart by one judge: objects and styles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.hashing import seed_of
from unlearnbench.judges import Judge
from unlearnbench.task import Plan
from unlearnbench.tasks._sd.base import StableDiffusionTask

SAMPLER = Scheduled(50, guidance=7.5)


class Pictured(StableDiffusionTask):
    """Concepts that a judge tells apart, each requested by the same texts."""

    texts: ClassVar[tuple[str, ...]]
    held_out: ClassVar[tuple[str, ...]]
    without = frozenset({"fid", "fid_train", "kid", "precision", "recall"})
    """There are no photographs to compare with: the papers' FIDs on Imagenette are not comparable with one another,
    since their script turned images into three grey levels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the protocol's judge tells apart, in the order of its labels."""
        return self.concepts

    def labels(self) -> dict[str, int]:
        """Class -> the judge's label."""
        return {name: index for index, name in enumerate(self.classes)}

    @property
    def words(self) -> tuple[str, ...]:
        """All classes."""
        return self.classes

    def training_prompts(self, which: Literal["forget", "retain"]) -> list[str]:
        """The first texts, for the erased concepts or for all others."""
        erased = {concept.label for concept in self.erased}
        named: Sequence[str] = [name for name in self.words if (name in erased) == (which == "forget")]
        if which == "forget" and self.wording.erase:
            named = self.wording.erase
        return [text.format(name) for text in self.texts[:2] for name in named]

    def plan(self) -> list[Plan]:
        """Erased concepts by their names, by other words and in texts hidden from methods; neighbours; all others."""
        p, plan = self.protocol, list[Plan]()
        for concept in self.erased:
            groups = (
                ("forget", concept.names[:1], self.texts, p.forget_images),
                ("synonyms", concept.synonyms, self.texts, p.synonym_images),
                ("held_out", concept.names[:1], self.held_out, p.held_out_images),
            )
            for group, words, texts, count in groups:
                prompts = [text.format(word) for text in texts for word in words]
                plan += self._items(group, concept.label, prompts, count if prompts else 0)
        erased = {concept.label for concept in self.erased}
        near = [w for w in dict.fromkeys(n for c in self.erased for n in c.neighbours) if w not in erased]
        for group, names, count in (
            ("neighbours", near, p.neighbour_images),
            ("retain", [name for name in self.classes if name not in erased], p.retain_images),
        ):
            for number, name in enumerate(names):
                share = count * (number + 1) // len(names) - count * number // len(names)
                plan += self._items(group, name, [text.format(name) for text in self.texts], share)
        return plan

    def _items(self, group: str, label: str, prompts: list[str], count: int) -> list[Plan]:
        known, seed = self.labels()[label], self.protocol.sampling_seed
        return [
            Plan(group, label, known, seed_of("sampling", seed, group, label, i), prompts[i % len(prompts)])
            for i in range(count)
        ]

    def judge(self) -> Judge:
        """The protocol's judge."""
        return self._judge

    @cached_property
    def _judge(self) -> Judge:
        return self.made_judge()

    @abstractmethod
    def made_judge(self) -> Judge:
        """Load the protocol's judge."""

    def reference(self) -> Iterator[Tensor]:
        """There are no reference images."""
        return iter(())

    def floor(self) -> Iterator[Tensor]:
        """There are no reference images."""
        return iter(())
