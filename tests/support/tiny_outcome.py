"""The toy outcomes with features or verdicts of a test's own; and a small network to sample from."""

from dataclasses import replace

import torch
from diffusers import DDPMScheduler
from torch import nn

from unlearnbench import Diffusion, Outcome
from unlearnbench.diffusion.model import Condition
from unlearnbench.judges import Verdict
from unlearnbench.testing import toy


def outcome(
    *sides,
    features: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    real: torch.Tensor | None = None,
    verdict: Verdict | None = None,
    **made,
) -> Outcome:
    """`toy.outcome`, with these in place of what the toy judge reads off the pixels."""
    given = {"features": features, "reference": reference, "real": real, "verdict": verdict}
    return replace(toy.outcome(*sides, **made), **{name: value for name, value in given.items() if value is not None})


class Smooth(Diffusion):
    """f = tanh(W x + E[y] + t / T) / 2 is the output; for epsilon it is a f + b x, so that samples stay of order one.

    The last of the four classes is the null condition. `rows` collects how many rows each call of the network had.
    """

    def __init__(self, schedule: str = "linear", prediction: str = "epsilon", clip: bool = False, T: int = 1000):
        self.scheduler = DDPMScheduler(T, beta_schedule=schedule)
        super().__init__(self.scheduler.alphas_cumprod, (1, 4, 4), prediction, clip)
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(0.3 * torch.randn(16, 16, generator=generator))
        self.E = nn.Parameter(torch.randn(4, 16, generator=generator))
        self.rows: list[int] = []

    def embed(self, y):
        return Condition(self.E[y], ids=y)

    def null(self, n):
        return self.embed(torch.full((n,), 3))

    def predict(self, x_t, t, condition):
        self.rows.append(len(x_t))
        inner = x_t.flatten(1) @ self.W.T + condition.states + t[:, None] / len(self.alpha_bar)
        f = inner.tanh().view_as(x_t) / 2
        a, b = self.signal(t)
        return a * f + b * x_t if self.prediction == "epsilon" else f

    def parts(self):
        return {"full": [self.W, self.E]}
