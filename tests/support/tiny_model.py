"""A linear model of 36 weights, its losses and gradients in NumPy, and a task over it."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from unlearnbench import Batch, Diffusion, Protocol, Sampler, Task
from unlearnbench.diffusion.model import Condition
from unlearnbench.diffusion.noise import START, gaussian_noise

T, NULL = 10, 3
ALPHA_BAR = np.linspace(0.95, 0.05, T)

Weights = dict[str, np.ndarray]


class Linear(Diffusion):
    """eps = W x + E[y] + t/T b on four pixels; the last of the four classes is the null condition."""

    def __init__(self, seed: int = 0):
        super().__init__(torch.tensor(ALPHA_BAR), (1, 2, 2))
        generator = torch.Generator().manual_seed(seed)
        self.W = nn.Parameter(0.4 * torch.randn(4, 4, generator=generator))
        self.E = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.b = nn.Parameter(torch.randn(4, generator=generator))
        self.forwards = 0

    def embed(self, y):
        return Condition(self.E[y], ids=y)

    def null(self, n):
        return self.embed(torch.full((n,), NULL))

    def predict(self, x_t, t, condition):
        self.forwards += 1
        return (x_t.flatten(1) @ self.W.T + condition.states + (t / T)[:, None] * self.b).view_as(x_t)

    def parts(self):
        return {"full": [self.W, self.E, self.b], "matrix": [self.W], "embedding": [self.E]}


class TinyTask(Task):
    """Forget class 1 of three: 6 images of it, 10 of the others."""

    name = "tiny"
    concepts = ("0", "1", "2")
    protocols: ClassVar[dict[str, Protocol]] = {"default": Protocol("default", Sampler(steps=5), judge="none")}
    provides = frozenset({"forget images", "retain images", "concept", "training recipe"})
    default_forget = "1"
    scale = 1.0

    def __init__(self, **settings):
        super().__init__("1", **settings)

    def architecture(self, seed):
        return Linear(seed)

    def pretrained(self):
        return Linear(0)

    def data(self, which):
        generator = torch.Generator().manual_seed(1)
        x0 = self.scale * (2 * torch.rand(16, 1, 2, 2, generator=generator) - 1)
        y = torch.tensor([1] * 6 + [0, 2] * 5)
        keep = {"forget": y == 1, "retain": y != 1, "both": y >= 0}[which]
        return Batch(x0[keep], y[keep])

    def substitute(self, y):
        return (y + 1) % 3

    def train(self, seed, which="both"):
        raise NotImplementedError

    model_identity = reference = floor = judge = to_uint8 = pretrain = train


def weights(model: Diffusion) -> Weights:
    return {name: value.detach().double().numpy().copy() for name, value in model.named_parameters()}


def eps(w: Weights, x, t, y):
    return x @ w["W"].T + w["E"][y] + t[:, None] / T * w["b"]


def squared(w: Weights, x, t, y, target) -> tuple[float, Weights]:
    """The mean squared distance of eps from a constant target, and its gradient by hand."""
    r = eps(w, x, t, y) - target
    g = 2 * r / r.size
    E = np.zeros_like(w["E"])
    np.add.at(E, y, g)
    return (r**2).mean(), {"W": g.T @ x, "E": E, "b": t / T @ g}


def flat(x):
    return x.flatten(1).double().numpy()


def add_noise(x0, noise, t):
    return np.sqrt(ALPHA_BAR[t])[:, None] * x0 + np.sqrt(1 - ALPHA_BAR[t])[:, None] * noise


def draw(x0, paired=False):
    """Timesteps and noise from torch's global generator, in the order in which the engine draws them."""
    n = len(x0)
    t = torch.randint(T, (n // 2 + 1 if paired else n,)).numpy()
    t = np.concatenate([t, T - 1 - t])[:n] if paired else t
    noise = flat(torch.randn(x0.shape))
    return t, noise, add_noise(flat(x0), noise, t)


def dropped(y, share):
    """Labels, a share of them replaced by the null one, drawn as the engine does."""
    y = np.asarray(y)
    return np.where(torch.rand(len(y)).numpy() >= share, y, NULL) if share else y


def denoising(w: Weights, batch: Batch, drop: float = 0.0, paired: bool = False) -> tuple[float, Weights]:
    t, noise, x_t = draw(batch.x0, paired)
    return squared(w, x_t, t, dropped(batch.y, drop), noise)


def combine(a: Weights, b: Weights, scale: float) -> Weights:
    return {name: a[name] + scale * b[name] for name in a}


def dot(a: Weights, b: Weights) -> float:
    return sum((a[name] * b[name]).sum() for name in a)


DDIM = [9, 7, 5, 3, 1]
"""Five steps of the schedule of ten."""


def eps_of_states(w: Weights, x, t, states):
    return x @ w["W"].T + states + t[:, None] / T * w["b"]


def partway(w: Weights, states, seeds, done, guidance):
    """x_t (B, 4) after done[b] guided steps of DDIM for these states, and the noise that they started from."""
    start = x = gaussian_noise(seeds, START, (4,)).double().numpy()
    for i in range(max(done)):
        t = np.full(len(states), DDIM[i])
        null = eps_of_states(w, x, t, w["E"][NULL])
        e = null + guidance * (eps_of_states(w, x, t, states) - null)
        now, then = ALPHA_BAR[DDIM[i]], ALPHA_BAR[DDIM[i + 1]] if i + 1 < len(DDIM) else 1.0
        step = np.sqrt(then) * (x - np.sqrt(1 - now) * e) / np.sqrt(now) + np.sqrt(1 - then) * e
        x = np.where((np.asarray(done) > i)[:, None], step, x)
    return x, start


def drawn_ways(n: int):
    """For n images the steps done of those five, their timesteps, and seeds, as `draw_way` draws them."""
    done = torch.randint(5, (n,)).numpy()
    return done, np.array(DDIM)[done], torch.randint(2**62, (n,)).tolist()


def through_prediction(w: Weights, x, t, g, label: int = 1) -> Weights:
    """The gradient in all weights of a loss whose gradient in eps(x, t, label) is g (B, 4)."""
    E = np.zeros_like(w["E"])
    E[label] = g.sum(axis=0)
    return {"W": g.T @ x, "E": E, "b": t / T @ g}


class Adam:
    """Kingma & Ba, ICLR 2015, algorithm 1."""

    def __init__(self, lr: float):
        self.lr, self.n, self.m, self.v = lr, 0, {}, {}

    def step(self, w: Weights, g: Weights) -> Weights:
        self.n += 1
        self.m = {name: 0.9 * self.m.get(name, 0) + 0.1 * g[name] for name in g}
        self.v = {name: 0.999 * self.v.get(name, 0) + 0.001 * g[name] ** 2 for name in g}
        m, v = 1 - 0.9**self.n, 1 - 0.999**self.n
        return {
            name: w[name] - self.lr * (self.m[name] / m) / (np.sqrt(self.v[name] / v) + 1e-8) if name in g else w[name]
            for name in w
        }


def assert_weights(model: Diffusion, expected: Weights, tolerance: float = 1e-5) -> None:
    for name, value in weights(model).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


def moved(model: Diffusion, start: Weights) -> float:
    """The largest change of any weight, to show that a comparison is not one of standstill."""
    return max(np.abs(value - start[name]).max() for name, value in weights(model).items())


def unlearned_by(method, task, seed=7, model=None):
    """What a method makes of the task's model, or of `model`, from this seed."""
    torch.manual_seed(seed)
    model = model or task.pretrained()
    return method.unlearn(model, task, method.prepare(model, task))


def scaled(g, factor):
    """Gradients times a number."""
    return {name: factor * value for name, value in g.items()}


def length(g):
    """The norm of all gradients together."""
    return np.sqrt(dot(g, g))


def clipped(g, clip):
    """Gradients of at most this norm; None or 0: as they are."""
    return scaled(g, min(1, clip / length(g))) if clip else g
