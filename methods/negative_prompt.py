"""Negative prompt: guidance starts from the forgotten concept, not from the empty prompt (a practice, no paper)."""

from dataclasses import dataclass

from torch import Tensor

from unlearnbench import Condition, Diffusion, Guidance
from unlearnbench.steering import Steering, eps_of


class _Negative(Guidance):
    """Steps away from the concept where plain guidance steps away from the null condition."""

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

    Classifier-free guidance (Ho & Salimans, 2022) with S in the place of the null condition, as diffusers'
    `negative_prompt` does it. S is all names in one prompt; class labels have no such prompt, so their predictions are
    averaged. At w = 1 nothing is subtracted and the method does nothing; where c is S itself the two terms cancel and
    the concept is drawn without guidance. Every weight stays: what samples without guidance finds the concept.
    """

    def steer(self, names: Tensor) -> Guidance:
        """The concept stands where the null condition stood."""
        return _Negative(names)
