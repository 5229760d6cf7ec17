"""GLoCE: gates behind cross-attention replace what looks like the concept, without training (Lee et al., CVPR 2025)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from unlearnbench import Diffusion, Task, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.adapters import Adapted, adapters, attach
from unlearnbench.techniques.gates import (
    ConceptGate,
    OutputMoments,
    Use,
    act_late,
    pooled,
    principal_directions,
    share_in_span,
    watch_sampling,
)
from unlearnbench.techniques.prompts import filled, spelt

CODE = {"sampler_steps": 50, "start_guidance": 7.5, "gate_rank": 1, "images": 3}
FACES = {**CODE, "rank": 2, "remove_rank": 16, "deviations": 2.5, "anchors": 3, "start": 0.2, "end": 0.4, "eta": 1.0}
STYLE = {**FACES, "rank": 1, "remove_rank": 1, "start": 0.0, "end": 1.0, "template": "An image in the style of {}"}
NUDITY = {**FACES, "images": 8, "deviations": 1.5, "anchors": 2, "eta": 5.0}
WORDS = {
    "erase": tuple(
        f"{what} {who}" for who in ("woman", "man") for what in ("nudity of", "naked", "erotic depictions of a")
    ),
    "replace_with": ("a person in modest clothing",),
    "keep": ("a man in modest clothing", "a woman in modest clothing"),
}
LEVELS, TOKENS, LOGIT, WIDTH = 4, 8, math.log(99), 1e-3
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class GLoCE(Adapted):
    """x becomes (1 - s) x + s eta (m_s + V_s^T V_s (I - V_t^T V_t) (x - m_t)), x the output of each cross-attention.

    s = sigmoid(k (|| V_g u ||^2 - c)), u = (x - m_n) / || x - m_n ||, is a gate for each position of the image, so that
    all others stay as they are. All this is read off x, without training, while the original draws a few images. m_t
    and V_t are mean and `remove_rank` principal directions for a forgotten name; m_s and V_s those for its surrogate,
    `rank` of them; m_n is the mean for a neutral concept. V_g are the `gate_rank` first eigenvectors of the name's
    covariance plus (m_t - m_n) (m_t - m_n)^T. c is the mean, over images and steps of anchors, of the largest
    || V_g u ||^2 of an image, plus `deviations` of its standard deviations; k = log(99) / (0.001 `deviations`). Each
    forgotten name has all of these for itself, and at each position that one counts whose s is the largest.

    Surrogate and neutral concept are both the substitute (`replace_with`, or the task's), as in the code for styles and
    nudity; anchors are those `anchors` of the retained names whose text states, of tokens 1 to 8, are likest. Every
    prompt is drawn with the same noise. x is looked at in the steps after the share `start`, up to `end`: for the
    moments at its own size and averaged over squares of 2, 4 and 8 positions. Gates act after `start`; at inference
    that is where t is below (1 - start) T, of any sampler.

    The paper's text was not at hand; this is the code (Hyun1A/GLoCE@95e48ef), and there is no "published". It draws
    with LMS, here the model's own sampler does. For celebrities it takes the unlikest names as surrogates. Neither its
    50 celebrities nor its 100 artists are a task here: "released" is for nudity.
    """

    requires = frozenset({"concept", "xattn"})
    presets = {
        "default": {"digits-text": {"start": 0.0, "end": 1.0}, "sd*-nudity": NUDITY, "sd-style": STYLE, "sd*": FACES},
        "released": {"sd-nudity": {**NUDITY, "template": "{}", **WORDS}},
    }
    space = {
        "deviations": (0.5, 5.0),
        "eta": (0.5, 5.0),
        "rank": (1, 4),
        "remove_rank": (1, 16),
        "start": (0.0, 0.3),
        "anchors": (1, 5),
    }
    images: PositiveInt = 8
    """Images of each prompt that are looked at (the code's `n_generation_per_concept`, 3; 8 for nudity)."""
    sampler_steps: PositiveInt = 20
    """Steps of the sampler that draws them (the code's 50)."""
    start_guidance: float = 3.0
    """Guidance scale w with which they are drawn (the code's 7.5)."""
    start: Share = 0.2
    """Share of the steps after which outputs are looked at, and gates act (the code's `st_timestep`, 10 of 50; 0 for
    styles)."""
    end: Share = 0.4
    """Share of the steps up to which outputs are looked at (the code's `end_timestep`, 20 of 50; 50 for styles)."""
    rank: PositiveInt = 2
    """Principal directions of the surrogate that are kept (the code's `degen_rank`, 2; 1 for styles)."""
    remove_rank: PositiveInt = 4
    """Principal directions of the concept that are taken out (the code's `update_rank`, 16; 1 for styles)."""
    gate_rank: PositiveInt = 1
    """Directions by which a gate tells the concept (the code's `gate_rank`, 1)."""
    deviations: Annotated[float, Field(gt=0)] = 2.5
    """Standard deviations above the anchors' mean at which a gate opens, > 0 (the code's `thresh`, 2.5; 1.5 for
    nudity)."""
    anchors: PositiveInt = 3
    """Retained names, the likest, that must not open a gate (the code's `n_anchor_concepts`, 3; 2 for nudity)."""
    eta: float = 1.0
    """Factor of what takes the concept's place (the code's `eta`, 1; 5 for nudity)."""
    template: str = "{}"
    """Prompt around each name, which stands for {} (the code's for styles: "An image in the style of {}")."""

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise UserError(f"start={self.start} leaves no step up to end={self.end}: give a smaller start")
        if "{}" not in self.template:
            raise UserError(f"template={self.template!r} has no place for a name: write {{}} where it goes")

    def wrap(self, model: Any, task: Task) -> Diffusion:
        """Add the gates, which are closed at first."""
        model.select("xattn")
        for layer in layers(model).values():
            D = layer.out_features
            gate = ConceptGate(D, len(task.names("forget")), min(self.gate_rank, D), min(self.rank, D), self.eta)
            attach(layer, gate, after=True)
        act_late(model, self.start)
        return model

    @torch.no_grad()
    def prepare(self, model: Any, task: Task) -> dict[str, list[dict[str, Tensor]]]:
        """For each layer the tensors of each name's gate, read off images that the original draws."""
        names, kept = (task.names(side).to(task.device) for side in ("forget", "retain"))
        if not len(kept):
            raise UserError(f"{self.name} needs a name to keep, which must not open its gates: give keep")
        seeds, found = torch.randint(2**62, (self.images,)).tolist(), defaultdict(list)
        for name, other in track(
            zip(names.split(1), task.substitute(names).split(1), strict=True), len(names), "names"
        ):
            concept, neutral = (self.moments(model, self.prompts(model, y), seeds) for y in (name, other))
            bases = {}
            for layer, own in concept.items():
                offset = own.mean - neutral[layer].mean
                bases[layer] = principal_directions(own.covariance + torch.outer(offset, offset), self.gate_rank)
            origins = {layer: one.mean for layer, one in neutral.items()}
            c = self.gate_threshold(model, self.prompts(model, self.likest(model, name, kept)), seeds, bases, origins)
            for layer, own in concept.items():
                V_t = principal_directions(own.covariance, self.remove_rank)
                V_s = principal_directions(neutral[layer].covariance, self.rank)
                found[layer].append(
                    {
                        **{"basis": bases[layer], "origin": origins[layer]},
                        **{"up": V_s, "down": V_s - V_s @ V_t.mT @ V_t, "source": own.mean, "target": origins[layer]},
                        "threshold": c[layer],
                        "slope": torch.as_tensor(LOGIT / (WIDTH * self.deviations)),
                    }
                )
        return dict(found)

    def unlearn(self, model: Diffusion, task: Task, prepared: dict[str, list[dict[str, Tensor]]]) -> Diffusion:
        """Set the gates."""
        for layer, gate in adapters(model).items():
            for k, tensors in enumerate(prepared[layer]):
                for name, value in tensors.items():
                    getattr(gate, name)[k].copy_(value)
        return model

    def prompts(self, model: Any, names: Tensor) -> Tensor:
        """The template's prompts with these names, given as prompts."""
        if self.template == "{}":
            return names
        prompts: Tensor = model.tokens(filled(spelt(model, names), [self.template]))
        return prompts

    def likest(self, model: Any, name: Tensor, kept: Tensor) -> Tensor:
        """The anchors of a name, from retained names (N, L)."""
        own, others = (normalize(model.embed(y).states[:, 1 : TOKENS + 1], dim=-1) for y in (name, kept))
        return kept[(own * others).sum(dim=-1).mean(dim=-1).topk(min(self.anchors, len(kept))).indices]

    def look(self, model: Any, prompts: Tensor, seeds: list[int], use: Use) -> None:
        """Draw prompts (N, L) with each of these seeds; give `use` each layer's name and output (B, positions, D)."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        every = range(self.sampler_steps)
        steps = [i for i in every if self.start * len(every) < i <= self.end * len(every)] or every[-1:]
        for y in prompts.split(1):
            watch_sampling(model, y, seeds, sampler, steps, layers(model), use)

    def moments(self, model: Any, prompts: Tensor, seeds: list[int]) -> dict[str, OutputMoments]:
        """Each layer's outputs for prompts."""
        found: dict[str, OutputMoments] = defaultdict(OutputMoments)

        def use(layer: str, x: Tensor) -> None:
            for level in pooled(x, model.shape, LEVELS):
                found[layer].add(level)

        self.look(model, prompts, seeds, use)
        return found

    def gate_threshold(
        self, model: Any, prompts: Tensor, seeds: list[int], bases: dict[str, Tensor], origins: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """c of each layer, from prompts of anchors."""
        found = defaultdict(list)

        def use(layer: str, x: Tensor) -> None:
            found[layer].append(share_in_span(x.double(), origins[layer], bases[layer]).amax(dim=1))

        self.look(model, prompts, seeds, use)
        peaks = {layer: torch.cat(values) for layer, values in found.items()}
        return {
            layer: one.mean() + self.deviations * (one.std() if len(one) > 1 else 0) for layer, one in peaks.items()
        }


def layers(model: Any) -> dict[str, Any]:
    """The output layer of each cross-attention, by its name."""
    return {name: layer for name, layer in model.named_modules() if name.endswith("attn2.to_out.0")}
