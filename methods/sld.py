"""SLD: turns guidance away from the concept wherever sampling heads for it (Schramowski et al., CVPR 2023)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench import Condition, Diffusion, Guidance
from unlearnbench.techniques.guidance import Steering, eps_of


class Strength(NamedTuple):
    """The five numbers of a level, in the order of the paper's table."""

    warmup: int
    scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float


LEVELS = {
    "weak": Strength(15, 200.0, 0.0, 0.0, 0.0),
    "medium": Strength(10, 1000.0, 0.01, 0.3, 0.4),
    "strong": Strength(7, 2000.0, 0.025, 0.5, 0.7),
    "max": Strength(0, 5000.0, 1.0, 0.5, 0.7),
}
STEPS = 50
"""Number of steps of the samplers for which the paper states its warm-up."""
INAPPROPRIATE = (
    "hate",
    "harassment",
    "violence",
    "suffering",
    "humiliation",
    "harm",
    "suicide",
    "sexual",
    "nudity",
    "bodily fluids",
    "blood",
    "obscene gestures",
    "illegal activity",
    "drug use",
    "theft",
    "vandalism",
    "weapons",
    "child abuse",
    "brutality",
    "cruelty",
)
"""The paper's concept S, one prompt of twenty names: ml-research/safe-latent-diffusion@a42923c,
src/sld/sld_pipeline.py:70. diffusers' pipeline puts "an image showing" before them."""
PAPERS = {"level": "medium", "erase": INAPPROPRIATE}


class _Safe(Guidance):
    """Keeps the momentum nu between the steps of one sampling run."""

    def __init__(self, names: Tensor, strength: Strength):
        self.names, self.strength = names, strength
        self.momentum: Tensor | None = None

    def start(self, n: int) -> None:
        """Reset the momentum."""
        self.momentum = None

    def __call__(
        self, model: Diffusion, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """eps_null + w (eps_c - eps_null - gamma); during the warm-up gamma only feeds the momentum."""
        s = self.strength
        eps_null, eps_c, eps_S = eps_of(model, x_t, t, self.names, null, condition)
        size = ((eps_c - eps_S).abs() * s.scale).clamp(max=1)
        mu = torch.where(eps_c - eps_S < s.threshold, size, 0.0)
        nu = torch.zeros_like(x_t) if self.momentum is None else self.momentum
        gamma = mu * (eps_S - eps_null) + s.momentum_scale * nu
        self.momentum = s.momentum_beta * nu + (1 - s.momentum_beta) * gamma
        acts = warm(t, len(model.alpha_bar), s.warmup).view(-1, 1, 1, 1)
        return eps_null + w * (eps_c - eps_null - torch.where(acts, gamma, 0.0))


def warm(t: Tensor, T: int, warmup: int) -> Tensor:
    """Whether timesteps t (B,) of T lie after the first warmup/50 of them, i.e. from step `warmup` of 50 on."""
    return STEPS * (t + 1) <= (STEPS - warmup) * T


@dataclass(frozen=True)
class SLD(Steering):
    """eps = eps_null + w (eps_c - eps_null - gamma) (eq. 3), w the sampler's guidance.

    gamma = mu (eps_S - eps_null) + s_m nu, mu = min(1, |s_S (eps_c - eps_S)|) where eps_c - eps_S < lambda, else 0, and
    nu <- beta_m nu + (1 - beta_m) gamma from nu = 0, during the warm-up too (eq. 4 to 8). In the paper's letters: s_S
    is `scale`, lambda `threshold`, delta `warmup`, s_m `momentum_scale`, beta_m `momentum_beta`. `level` sets the
    fields that are None; "medium" is also the default of the released code. Level "weak" has s_S = 200 here, as in
    UnlearnDiffAtk's code; the released code has no levels, and diffusers' `SafetyConfig.WEAK` has 20, which is `--set
    level=weak --set scale=20`.

    `warmup` counts steps of the paper's 50-step samplers and means that share of the timesteps: 10 are the first 10 of
    50 steps, or 4 of 20. The released code counts 10 steps of any sampler. All names of the concept form one prompt, as
    in the paper; presets "published" and "released" have the paper's twenty, from "hate" to "cruelty", whatever the
    task erases. Class labels have no such prompt, so eps_S is the mean of their predictions. gamma also acts without
    guidance (w = 1). Where c is S itself, the bare name or the class label, mu is 0 and nothing is turned away: by this
    limit of the formula class-conditional models still draw the concept. Every weight stays as it is.
    """

    presets: ClassVar[dict] = {"published": {"sd-nudity": PAPERS}, "released": {"sd-nudity": PAPERS}}
    space = {"level": ("weak", "medium", "strong", "max")}
    level: Literal["weak", "medium", "strong", "max"] = "medium"
    """The paper's configurations "weak", "medium", "strong" and "max", which set the five numbers below."""
    scale: float | None = None
    """Strength of the safety guidance, >= 0 (the paper's s_S); None: the level's."""
    threshold: float | None = None
    """Distance eps_c - eps_S below which guidance acts on an element (the paper's lambda); None: the level's."""
    warmup: int | None = None
    """First steps, of 50, without guidance (the paper's delta); None: the level's."""
    momentum_scale: float | None = None
    """Share of the momentum nu in the guidance, in [0, 1] (the paper's s_m); None: the level's."""
    momentum_beta: float | None = None
    """Decay of the momentum, in [0, 1) (the paper's beta_m); None: the level's."""

    def steer(self, names: Tensor) -> Guidance:
        """The guidance of this strength."""
        return _Safe(names, self.strength())

    def strength(self) -> Strength:
        """The numbers of the level, replaced by the method's own where given."""
        given = {name: getattr(self, name) for name in Strength._fields}
        return LEVELS[self.level]._replace(**{name: value for name, value in given.items() if value is not None})
