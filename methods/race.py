"""RACE: ESD on text states searched near the concept's, within a small radius (Kim et al., ECCV 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from unlearnbench import Diffusion, Task, TextMethod, minimise
from unlearnbench.techniques.concept_search import near_states
from unlearnbench.techniques.losses import esd_target, prediction_loss
from unlearnbench.techniques.partway import draw_way

CODE = {"start_steps": 1000, "steps": 1000, "lr": 1e-5, "batch_size": 1, "sampler_steps": 50, "attack_steps": 10}


@dataclass(frozen=True)
class RACE(TextMethod):
    """L = || eps_theta(x_t, c + delta) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2.

    delta = argmin || eps_theta(x_t, c + delta) - eps ||^2 over all delta with no number above `radius` (the paper's and
    the code's epsilon), where eps is the noise that the sampling of x_t started from. c are the text states of the
    concept's prompt, or a class embedding. delta is searched for each x_t at its one timestep, by projected gradient
    descent: a uniform start, then `attack_steps` steps of radius / 4 along the gradient's sign; c + delta stays between
    the least and the greatest number of c. theta starts from a model that ESD trained for `start_steps` steps, the same
    loss without delta. x_t is sampled by the model being trained, with `start_guidance`, down to a random step of its
    sampler. eps_0 is the original. `part` is ESD-x (xattn) or ESD-u (noxattn).

    "released" is the authors' script (chkimmmmm/R.A.C.E.@424b9c0, train-scripts/train-esd.py) with its own defaults,
    after ESD with the same: the repository names no run, and says to adjust the defaults. Its `train_method`
    has no default: the preset has ESD-u and the one word "nudity", as ESD erases nudity. It draws t 39 to 58 above the
    level of x_t (`t_above`; see `compvis_steps`). Its `pgd_num_step` is read nowhere: ten steps are written in. Left
    out is its option `lasso`, which adds 0.1 times the mean absolute change of every weight tensor. There is no
    "published": the paper's settings are not checked.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {
            "digits-text": {"part": "xattn", "lr": 5e-4, "batch_size": 16, "sampler_steps": 5},
            "sd*-nudity": {**CODE, "part": "noxattn"},
            "sd-object": {**CODE, "part": "noxattn"},
            "sd*": {**CODE, "part": "xattn"},
        },
        "released": {"sd-nudity": {**CODE, "radius": 0.1, "part": "noxattn", "t_above": True, "erase": ("nudity",)}},
    }
    space = {"lr": (1e-4, 1e-3), "eta": (0.5, 3.0), "radius": (0.03, 1.0), "steps": (30, 120)}
    start_steps: NonNegativeInt = 60
    """Updates of ESD before the first search (the code's `iterations` without `adv_train`, 1,000)."""
    steps: int = 60
    """Updates with a search (the code's `iterations`, 1,000)."""
    lr: PositiveFloat = 3e-4
    """Adam's learning rate (the code's `lr`, 1e-5)."""
    batch_size: int = 32
    """Samples x_t in a step (ours; the code takes 1)."""
    eta: NonNegativeFloat = 1.0
    """Strength of the negative guidance (ESD's eta; the code's `negative_guidance`, 1), >= 0."""
    radius: NonNegativeFloat = 0.1
    """Largest change of a number of the text states, >= 0 (the paper's epsilon; the code's `epsilon`, 0.1)."""
    attack_steps: NonNegativeInt = 4
    """Steps of the search for each x_t (the code's `num_iter`, 10)."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `start_guidance`, 3)."""
    sampler_steps: PositiveInt = 20
    """Steps of the sampler that makes x_t (the code's `ddim_steps`, 50)."""
    part: str = "full"
    """Part of the model to train (the code's `train_method`)."""
    t_above: bool = False
    """Whether the networks are asked at the code's t, which lies above the level of x_t, one for the whole batch."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on ESD's loss, then anew on the loss above."""
        part, teacher = model.select(self.part), model.frozen(self.part)
        if self.start_steps:
            minimise(self.losses(model, teacher, task, self.start_steps, 0), part, self.lr)
        minimise(self.losses(model, teacher, task, self.steps, self.attack_steps), part, self.lr)
        return model

    def losses(
        self, model: Diffusion, teacher: Diffusion, task: Task, steps: int, attack_steps: int
    ) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar; without attack steps, ESD's."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        for y in task.conditions("forget", steps, self.batch_size):
            way = draw_way(model, sampler, len(y), self.t_above)
            x_t, t, c = way.x_t(model, y), way.t, model.embed(y)
            found = near_states(model, x_t, t, c, way.start(model, y), self.radius, attack_steps)
            yield prediction_loss(model, x_t, t, found, esd_target(teacher, x_t, t, y, self.eta))
