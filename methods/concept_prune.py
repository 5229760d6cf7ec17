"""ConceptPrune: zero the feed-forward weights that the concept's prompts use most (Chavhan et al., ICLR 2025)."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from unlearnbench import Diffusion, Task, TextMethod, Words, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.neurons import Responses, feed_forward, skilled
from unlearnbench.techniques.prompts import filled, spelt

PEOPLE = (
    *("man", "woman", "girl", "boy", "child", "couple", "guy", "doctor", "nurse", "teacher", "lawyer", "mother"),
    *("father", "kid", "professor", "student", "group of friends", "celebrity"),
)
THINGS = (
    *("cat", "dog", "mouse", "bear", "car", "chair", "bag", "door", "rabbit", "ball", "bat", "horse", "bird"),
    *("flower", "bowl", "bottle", "wall", "building", "chicken", "duck"),
)
SCENES = ("road", "garden", "beach", "room", "park", "street", "shelter", "chair", "table", "bag", "tree", "forest")
NUDITY = {
    "erase": ("naked",),
    "replace_with": ("",),
    "forget_prompts": tuple(f"a photo of a naked {one}" for one in PEOPLE),
}
STYLE = {"pairs": tuple(f"a photo of a {one} -> a {one} in the style of {{}}" for one in THINGS)}
OBJECT = {"pairs": tuple(f"a {one} -> a {{}} in a {one}" for one in SCENES)}
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class ConceptPrune(TextMethod):
    """W2 = 0 where, in one of the first `first_steps` steps, S_c is in the top `share` of its row and S_c > S_0.

    W2 is the second linear layer of each feed-forward network in the U-Net. S = |W2| * ||X||_2 is Wanda's score: X are
    the layer's inputs at all positions of all images, each scaled to length 1, and the norm is over positions, for each
    input (a neuron). S_c is for prompts with the concept, S_0 for the same prompts without. With `overlap`, a weight
    must be found in more than that share of the steps. Each step of the sampler has a mask of its own, and their union
    is cut out for all of them. Nothing is trained, and no image is needed.

    Prompts are the task's forget captions, beside them the same with the substitute, or `pairs`. All are drawn from the
    same noise with the task's sampler and guidance, whose null condition is counted too, as in the code. Norms are
    float32; the code (ruchikachavhan/concept-prune@72927d9) adds up half precision on the CPU.

    "released" has the code's prompts and the settings of the checkpoints that it evaluates. Those are of SD v1.5, drawn
    with PNDM, whose first ten calls of the network are nine steps. For church and garbage truck it has other scenes
    (utils/prompts.py:21-25), which `pairs` can name. There is no "published": the paper's text was not available to
    check its numbers; the README says that its table 7 has them.
    """

    requires = frozenset({"concept", "xattn"})
    presets = {
        "default": {
            "digits-text": {"first_steps": 4, "share": 0.02},
            "sd*-nudity": {"first_steps": 9, **NUDITY},
            "sd-object": {"share": 0.02, **OBJECT},
            "sd-style": STYLE,
        },
        "released": {
            "sd-nudity": {"share": 0.01, "first_steps": 9, "overlap": 0.0, **NUDITY},
            "sd-object": {"share": 0.02, "first_steps": 10, "overlap": 0.0, **OBJECT},
            "sd-style": {"share": 0.01, "first_steps": 10, "overlap": 0.0, **STYLE},
        },
    }
    space = {"share": (0.003, 0.1), "first_steps": (1, 20), "overlap": (0.0, 0.9)}
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share in (0, 1] of a row's weights that may be cut in one step (the code's `skill_ratio`, 0.01; 0.02 for
    objects)."""
    first_steps: PositiveInt = 10
    """First steps of the sampler that are looked at (the code's `timesteps` of the union, 10; 9 for nudity)."""
    overlap: Share = 0.0
    """Share in [0, 1) of these steps in more than which a weight must be found (the code's `select_ratio`, 0: any)."""
    pairs: Words | None = None
    """Pairs of prompts "without -> with", where {} stands for each name, such as "a road -> a {} in a road" (the
    code's prompts); None: the forget captions, and the same with the substitute (ours)."""
    batch_size: PositiveInt = 8
    """Images drawn at once (the code's 1); all the same for the result."""

    def __post_init__(self) -> None:
        if self.pairs is not None and not self.pairs:
            raise UserError(
                "pairs of concept_prune is empty: leave it out, or give pairs such as a road -> a {} in a road"
            )
        if wrong := [pair for pair in self.pairs or () if pair.count("->") != 1]:
            raise UserError(f"pairs of concept_prune: {wrong[0]!r} is no pair: write it as a road -> a {{}} in a road")

    @torch.no_grad()
    def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
        """Find the weights and set them to zero."""
        layers = feed_forward(model)
        base, target = self.prompts(model, task)
        steps = task.steps(min(self.first_steps, model.sampler.steps))
        seed = int(torch.randint(2**62, (1,)))
        S_0, S_c = (self.responses(model, y, steps, seed).norms() for y in (base, target))
        for name, layer in layers.items():
            masks = [skilled(layer.weight, S_c[name][i], S_0[name][i], self.share) for i in range(steps)]
            found = torch.stack(masks).sum(dim=0) > self.overlap * steps
            layer.weight.masked_fill_(found, 0.0)
        return model

    def responses(self, model: Diffusion, y: Tensor, steps: int, seed: int) -> Responses:
        """What the neurons do in the first steps of images for prompts y, all from one noise."""
        counted = Responses(feed_forward(model), steps)
        chunks = y.split(self.batch_size)
        with counted.recording():
            for k in track(range(len(chunks)), len(chunks), "batches of prompts"):
                seeds = [seed] * len(chunks[k])
                model.sample(chunks[k], seeds, until=model.sampler.steps - steps, hook=counted.at)
        return counted

    def prompts(self, model: Any, task: Task) -> tuple[Tensor, Tensor]:
        """Prompts without and with the concept, in pairs, on the task's device."""
        if self.pairs is None:
            target = task.captions("forget").to(task.device)
            return task.substitute(target), target
        halves = [[half.strip() for half in pair.split("->")] for pair in self.pairs]
        names = spelt(model, task.names("forget"))
        base, target = (model.tokens(filled(names, [pair[k] for pair in halves])) for k in (0, 1))
        return base, target
