"""What a run leaves behind, made by hand for metrics; and a small network to sample from."""

from dataclasses import replace

import torch
from diffusers import DDPMScheduler
from torch import nn

from unlearnbench import Diffusion, Outcome
from unlearnbench.diffusion import Condition
from unlearnbench.judges import Verdict
from unlearnbench.task import Plan
from unlearnbench.tasks.digits_class import DigitsClass

FORGOTTEN = 3
COST = {
    "prepare_time": 1.5,
    "unlearn_time": 12.25,
    "relative_time": 1.75,
    "peak_memory": 3 * 2**20,
    "peak_memory_kind": "growth of the resident set",
    "trained_parameters": 1234,
    "stored_size": 4096,
}

Answer = tuple[torch.Tensor, bool]


def shows(digit: int) -> Answer:
    """The judge is sure of a digit."""
    return torch.eye(10)[digit], False


def refuses(digit: int) -> Answer:
    """The judge abstains; forced to choose it would be sure of a digit."""
    return torch.eye(10)[digit], True


def leans(*probabilities: float) -> Answer:
    """The first classes have these probabilities, the others share the rest."""
    rest = (1 - sum(probabilities)) / (10 - len(probabilities))
    return torch.tensor([*probabilities, *[rest] * (10 - len(probabilities))]), False


def fails() -> Answer:
    """The judge raised an error."""
    return torch.full((10,), torch.nan), False


def outcome(
    forget: list[Answer] = (),
    retain: list[tuple[int, Answer]] = (),
    features: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    cost: dict | None = None,
    k: int = 3,
) -> Outcome:
    """Answers for forget samples, (digit asked for, answer) for retain samples, features of both sides."""
    task = DigitsClass(str(FORGOTTEN))
    task.protocol = replace(task.protocol, k=k)
    asked = [("forget", FORGOTTEN)] * len(forget) + [("retain", digit) for digit, _ in retain]
    answers = [*forget, *(answer for _, answer in retain)]
    plan = [Plan(group, str(digit), digit, seed) for seed, (group, digit) in enumerate(asked)]
    verdict = Verdict(
        torch.stack([row for row, _ in answers]) if answers else torch.zeros(0, 10),
        torch.tensor([refused for _, refused in answers], dtype=torch.bool),
    )
    samples = torch.zeros(len(plan), 3, 8, 8, dtype=torch.uint8)
    nothing = torch.zeros(0, 0)
    return Outcome(
        task,
        None,
        None,
        plan,
        samples,
        verdict,
        nothing if features is None else features,
        nothing if reference is None else reference,
        nothing,
        {**COST, **(cost or {})},
    )


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
