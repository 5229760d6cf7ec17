"""BlindSpot: follow, on forget images, a model that only glimpsed the retain set (Tarun et al., ICML 2023)."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unlearnbench import Batch, Diffusion, Method, Task, minimise
from unlearnbench.techniques.activations import recorded_outputs


@dataclass(frozen=True)
class BlindSpot(Method):
    """L = L_r + || eps_theta(x_t, c_f) - sg eps_B(x_t, c_f) ||^2 + lam sum_j || act_j(theta) - sg act_j(B) ||^2.

    The blind model B starts from fresh weights and is trained for `blind_steps` steps on the retain set. It shares with
    the original whatever is outside "full" (a text encoder, a VAE). act_j are the outputs of `k` modules that own
    trained weights, evenly spaced in the order of the network. Every term is a mean over elements, one for each
    activation.

    The method was made for regression, where every image of the training set counts as a forget or a retain image. With
    `mixed`, batches are drawn from all images and the terms are weighted by their share; otherwise batches come in
    pairs and both terms count once. The authors' code compares outputs by absolute values, which is not offered, and
    attention maps of all blocks (compare="maps": squares, their mean over channels, scaled to length 1). They ran it on
    no diffusion model, hence no preset "published"; their notebook for ages in photos takes lr 1e-3, blind_lr 1e-2,
    batch_size 256, lam 50, compare="maps" and mixed batches.

    EraseDiff's code for CIFAR-10 has a baseline of this name, which is a different method: B starts from the original
    and is never used, because the target is the trained model's own prediction (target="self"), and activations do not
    count. Only L_r has an effect, and that 10 % of the conditions are dropped on both sides. Its numbers of steps are
    in no configuration, without which the code stops, hence no preset "released". What is known of it: target="self",
    start="original", lam 0, mixed, drop 0.1, clip 1, paired timesteps, both rates 1e-4 and batch_size 128.
    """

    resumes = True
    presets: ClassVar[dict] = {"default": {"digits-text": {"batch_size": 32}}}
    space = {"lam": (0.0, 10.0), "lr": (1e-4, 3e-3), "steps": (30, 120), "blind_steps": (20, 400), "k": (1, 8)}
    steps: int = 60
    """Updates of the unlearned model (ours; the authors' code counts epochs, 1)."""
    lr: float = 1e-3
    """Adam's learning rate of the unlearning (the authors' code takes 1e-3)."""
    batch_size: int = 64
    """Images in a batch, of each side unless `mixed` (the authors' code takes 256)."""
    lam: float = 0.1
    """Weight of the activation distance, >= 0 (the paper's lambda; the code's 50)."""
    k: int = 4
    """Modules whose activations are compared, spread evenly over the network (the paper's k)."""
    compare: Literal["values", "maps"] = "values"
    """How activations are compared: by their "values" (the paper), or as attention "maps" (the authors' code)."""
    blind_steps: int = 200
    """Updates of the blind model on the retain set (ours; the authors' code counts epochs, 2)."""
    blind_lr: float = 1e-3
    """Adam's learning rate of the blind model (the authors' code takes 1e-2)."""
    start: Literal["fresh", "original"] = "fresh"
    """The blind model's first weights: "fresh" (the paper), or the "original"'s (EraseDiff's code)."""
    target: Literal["blind", "self"] = "blind"
    """Whose prediction forget images follow: the "blind" model's (the paper), or the model's own, "self" (EraseDiff's
    code)."""
    mixed: bool = False
    """Whether batches mix all images and weigh the terms by their share (the paper), or come in pairs (ours)."""
    drop: float = 0.0
    """Share in [0, 1] of conditions replaced by the null condition (`cond_drop_prob` in EraseDiff's code)."""
    clip: float | None = None
    """Largest norm of the gradient (1 in EraseDiff's code); None: not clipped."""
    paired_timesteps: bool = False
    """Whether timesteps come in pairs t, T - 1 - t (as in EraseDiff's code)."""

    def prepare(self, model: Diffusion, task: Task) -> Diffusion:
        """Train the blind model on the retain set and freeze it."""
        if self.start == "original":
            blind = copy.deepcopy(model)
        else:
            blind = task.architecture(int(torch.randint(2**31, ())))
            state, trained = model.state_dict(), blind.select("full")
            blind.load_state_dict({name: state[name] for name in state if name not in trained}, strict=False)
        blind.train()  # a copy of the original is in evaluation mode here
        batches = task.batches(self.blind_steps, self.batch_size, "retain")
        losses = (blind.loss(batch, drop=self.drop, paired=self.paired_timesteps) for batch in batches)
        minimise(losses, blind.select("full"), self.blind_lr, clip=self.clip)
        return blind.requires_grad_(False).eval()

    def unlearn(self, model: Diffusion, task: Task, prepared: Diffusion) -> Diffusion:
        """Train with Adam on the loss above."""
        minimise(self.losses(model, task, prepared), model.select("full"), self.lr, clip=self.clip)
        return model

    def losses(self, model: Diffusion, task: Task, blind: Diffusion) -> Iterator[Tensor]:
        """Yield the loss of each step; a mixed batch may lack forget or retain images."""
        for forget, retain, (a, b) in self.pairs(task):
            terms = [a * self.follow(model, blind, forget)] if a else []
            terms += [b * model.loss(retain, drop=self.drop, paired=self.paired_timesteps)] if b else []
            yield torch.stack(terms).sum()

    def pairs(self, task: Task) -> Iterator[tuple[Batch, Batch, tuple[float, float]]]:
        """Yield forget images, retain images and the weights of their terms for each step."""
        if not self.mixed:
            for forget, retain in task.paired_batches(self.steps, self.batch_size):
                yield forget, retain, (1, 1)
            return
        for batch in task.batches(self.steps, self.batch_size, "all"):
            gone = task.forgotten(batch.y)
            forget, retain = (Batch(batch.x0[some], batch.y[some]) for some in (gone, ~gone))
            share = len(forget.x0) / len(gone)
            yield forget, retain, (share, 1 - share)

    def follow(self, model: Diffusion, blind: Diffusion, batch: Batch) -> Tensor:
        """Distance of the model's predictions and activations on a batch from the blind model's, a scalar."""
        t, _, x_t = model.noised(batch.x0, paired=self.paired_timesteps)
        names = evenly(owners(model), self.k) if self.lam else []
        guide = model if self.target == "self" else blind
        with torch.no_grad(), recorded_outputs({name: guide.get_submodule(name) for name in names}) as theirs:
            wanted = guide.eps(x_t, t, guide.condition(batch.y, self.drop))
        with recorded_outputs({name: model.get_submodule(name) for name in names}) as ours:
            found = model.eps(x_t, t, model.condition(batch.y, self.drop))
        loss = (found - wanted).square().mean()
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a, b = (attention(a), attention(b)) if self.compare == "maps" else (a, b)
            loss = loss + self.lam * (a - b).square().mean()
        return loss


def owners(model: Diffusion) -> list[str]:
    """Names of the modules that own trained weights, in the order of the network."""
    parents = {name.rpartition(".")[0] for name in model.select("full")}
    return [name for name, _ in model.named_modules() if name in parents]


def evenly(names: list[str], k: int) -> list[str]:
    """The middle names of k equal slices; all names where there are no more than k."""
    n, k = len(names), min(k, len(names))
    return [names[(2 * i + 1) * n // (2 * k)] for i in range(k)]


def attention(x: Tensor) -> Tensor:
    """Spatial attention of an activation: mean square over channels (last in sequences), flattened to (B, ...), length
    1.
    """
    return nn.functional.normalize(x.square().mean(1 if x.dim() == 4 else -1).view(len(x), -1))
