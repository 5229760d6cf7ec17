"""Erase a style or an object of UnlearnCanvas; its classifiers judge (never run on its real weights here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from unlearnbench.data.concepts import Concept, mentions
from unlearnbench.data.sources import Source
from unlearnbench.diffusion.schedulers import Repeating
from unlearnbench.errors import UserError
from unlearnbench.judges import Judge
from unlearnbench.judges.lpips import ALEXNET
from unlearnbench.judges.unlearncanvas import UnlearnCanvasViTs
from unlearnbench.models.model_index import require_folder
from unlearnbench.task import Plan
from unlearnbench.tasks._sd.base import CLIP_FILES, PictureProtocol, smoke
from unlearnbench.tasks._sd.canvas import OBJECTS, PHOTO, PHOTO_PLACE, PROMPT, SEEDS, STYLES
from unlearnbench.tasks._sd.classes import Pictured
from unlearnbench.tasks._text import Asked, other_counts

STYLE_CLASSIFIER, OBJECT_CLASSIFIER = "cls_model/style50.pth", "cls_model/style50_cls.pth"
"""Places in the release's folder of checkpoints, as cywinski/SAeUron@1a4302a reads them:
Diffusion-MU-Attack/configs/style/text_grad_esd_style_classifier.json:19-20."""
DIFFUSERS = "diffusion/diffuser/style50"
"""Place of the fine-tuned model there: OPTML-Group/UnlearnCanvas@920cfd1, diffusion_model_finetuning/README.md:98."""
COMPVIS = "diffusion/compvis/style50/compvis.ckpt"
"""The same weights in one file: the same README.md:34."""


@dataclass(frozen=True)
class CanvasProtocol(PictureProtocol):
    """A protocol on UnlearnCanvas's grid of prompts, an object in a style. Its counts of images follow from it."""

    seeds: tuple[int, ...] = SEEDS
    """One image for each prompt and seed."""
    others: int = 0
    """Number of kept styles, and of kept objects, in the grid; 0: all."""


def _concepts() -> dict[str, Concept]:
    """Every style and object by its name. A style's phrase contains no other's."""
    found = {}
    for style in STYLES:
        alone = not any(other != style and other.endswith(f" {style}") for other in STYLES)
        phrase = "{} style" if alone else "in {} style"
        found[style] = Concept((phrase.format(style),), (), phrase.format(PHOTO), judge=style)
    for number, thing in enumerate(OBJECTS):
        found[thing] = Concept((thing,), (), OBJECTS[(number + 1) % len(OBJECTS)])
    return found


DEFAULT = CanvasProtocol(
    "default",
    Repeating(100, guidance=9.0),
    "unlearncanvas-vit",
    features="pixels",
    **{**other_counts(0), "forget_images": 0, "retain_images": 0},
    chunk=10,
)
"""Steps and guidance: OPTML-Group/UnlearnCanvas@920cfd1,
machine_unlearning/evaluation/sampling_unlearned_models/esd.py:52,55."""


class SDUnlearnCanvas(Pictured):
    """Erase one of 50 styles, replaced by photographs, or one of 20 objects, replaced by the next.

    Weights and classifiers are where the release has them; `--data` is the folder of its checkpoints.
    """

    name = "sd-unlearncanvas"
    concepts = (*STYLES, *OBJECTS)
    concept_groups: ClassVar[dict[str, tuple[str, ...]]] = {"styles": STYLES, "objects": OBJECTS}
    texts, held_out = (), ()
    catalogue: ClassVar[dict[str, Concept]] = _concepts()
    protocols: ClassVar[dict[str, Any]] = {
        "default": DEFAULT,
        "one-seed": replace(DEFAULT, name="one-seed", seeds=SEEDS[:1]),
        "smoke": CanvasProtocol(
            "smoke",
            judge="unlearncanvas-vit",
            **{**smoke(sampler=Repeating(3, guidance=3.0)), "forget_images": 0, "retain_images": 0},
            **other_counts(0),
            seeds=SEEDS[:1],
            others=2,
        ),
    }
    protocol: CanvasProtocol
    default_forget = "Van Gogh"
    data_name = "unlearncanvas"
    sources: ClassVar[tuple[Source, ...]] = (*CLIP_FILES, ALEXNET)
    licence, origin = "creativeml-openrail-m", "OPTML-Group/UnlearnCanvas"
    without = Pictured.without | {"ua_closed", "coherence", "nothing"}
    """Its classifiers never abstain, so that UA closed is UA."""

    @property
    def layout(self) -> Path:
        """The diffusers folder that describes the model: that of --checkpoint, or the release's."""
        given = self.checkpoint is not None and self.checkpoint.is_dir()
        folder: Any = self.checkpoint if given else self.folder / DIFFUSERS
        if not folder.is_dir():
            raise UserError(
                f"no model of UnlearnCanvas at {folder}: download `diffusion` from the folder of checkpoints that the "
                "README.md of https://github.com/OPTML-Group/UnlearnCanvas names, and give the folder that has it with "
                f"--data, or a diffusers folder with --checkpoint; {COMPVIS} needs that folder beside it"
            )
        require_folder(folder)
        return folder

    @classmethod
    def resolve_concept(cls, forget: str) -> str:
        """Resolve names as in the prompts, or with underscores as in the release: Van Gogh or Van_Gogh."""
        return super().resolve_concept(forget.replace("_", " "))

    @property
    def words(self) -> tuple[str, ...]:
        """What prompts call every style and object."""
        return tuple(concept.name for concept in self.catalogue.values())

    def labels(self) -> dict[str, int]:
        """Styles, then objects; the judge's label of photographs lies between them."""
        return {name: index + (index >= len(STYLES)) for index, name in enumerate(self.concepts)}

    def grid(self) -> list[tuple[str, str]]:
        """The pairs (object, style) that prompts ask for: style by style, as in the release."""
        erased, most = {concept.label for concept in self.erased}, self.protocol.others
        shown = []
        for domain in (OBJECTS, STYLES):
            kept = [word for word in domain if word not in erased][: most or None]
            shown.append([word for word in domain if word in erased or word in kept])
        return [(thing, style) for style in shown[1] for thing in shown[0]]

    def training_prompts(self, which: Literal["forget", "retain"]) -> list[str]:
        """The grid's prompts with an erased concept, by the names that a method is told; or all without one."""
        prompts = list(dict.fromkeys(item.prompt for item in self.plan() if item.group == which))
        if which == "forget" and self.wording.erase:
            said = mentions(concept.name for concept in self.erased)
            prompts = [told.join(said.split(prompt)) for prompt in prompts for told in self.wording.erase]
        return prompts

    def plan(self) -> list[Plan]:
        """An image for each prompt and seed: those with an erased concept, then all others.

        The label is the style's if a style is erased, else the object's; `other` is the other one's, unless it is
        erased too.
        """
        known, erased = self.labels(), {concept.label for concept in self.erased}
        styles_first = any(style in erased for style in STYLES)
        items = []
        for seed in self.protocol.seeds:
            for thing, style in self.grid():
                own, other = (style, thing) if styles_first else (thing, style)
                if own not in erased and other in erased:
                    own, other = other, own
                group = "forget" if own in erased else "retain"
                besides = -1 if other in erased else known[other]
                items.append(Plan(group, own, known[own], seed, PROMPT.format(thing, style), besides))
        return sorted(items, key=lambda item: item.group != "forget")

    def asked_in(self, prompt: str, side: Literal["forget", "retain"], concept: str = "") -> Asked:
        """The concept, and what the prompt names in the other domain."""
        own = STYLES if self.erased[0].label in STYLES else OBJECTS
        if side == "retain" and not concept and (said := _named(own, prompt)) not in {c.label for c in self.erased}:
            concept = said
        asked = super().asked_in(prompt, side, concept)
        other = _named(OBJECTS if asked.concept in STYLES else STYLES, prompt) if asked.label >= 0 else ""
        return asked._replace(other=self.labels()[other] if other else -1)

    def made_judge(self) -> Judge:
        """Both classifiers, from the release's folder of checkpoints."""
        files = (self.folder / STYLE_CLASSIFIER, self.folder / OBJECT_CLASSIFIER)
        counts = (len(STYLES), len(OBJECTS))
        return UnlearnCanvasViTs(*files, counts, PHOTO_PLACE, self.extractor, self.device)


def _named(domain: tuple[str, ...], prompt: str) -> str:
    """The first word of a domain that a prompt has, as the domain spells it; empty if there is none."""
    spelt: Mapping[str, str] = {word.lower(): word for word in domain}
    found = mentions(domain).search(prompt)
    return spelt[found[0].lower()] if found else ""
