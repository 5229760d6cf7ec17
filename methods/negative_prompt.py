"""Negative prompt: guidance away from the forgotten concept instead of the empty prompt (a practice, no paper)."""

from dataclasses import dataclass

from torch import Tensor

from unlearnbench import Condition, Diffusion, Guidance
from unlearnbench.techniques.guidance import Steering, eps_of


class _Negative(Guidance):
    """Guidance away from the concept, where plain guidance leads away from the null condition."""

    def __init__(self, names: Tensor):
        self.names = names

    def __call__(
        self, model: Diffusion, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """eps_S + w (eps_c - eps_S)."""
        if w == 1:
            return model.eps(x_t, t, condition)
        eps_c, eps_S = eps_of(model, x_t, t, self.names, condition)
        return eps_S + w * (eps_c - eps_S)


@dataclass(frozen=True)
class NegativePrompt(Steering):
    """eps = eps(x_t, S) + w (eps(x_t, c) - eps(x_t, S)), S the forgotten concept, w the sampler's guidance.

    Classifier-free guidance (Ho & Salimans, 2022) with S in place of the null condition, as in diffusers'
    `negative_prompt`. S is one prompt with all names. Class labels have no such prompt, so their predictions are
    averaged. At w = 1 nothing is subtracted and the method has no effect. Where c is S itself, the two terms cancel and
    the concept is drawn without guidance. No weight changes: sampling without guidance still draws the concept.
    """

    def steer(self, names: Tensor) -> Guidance:
        """The guidance with the concept in place of the null condition."""
        return _Negative(names)
