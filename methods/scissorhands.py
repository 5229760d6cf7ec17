"""Scissorhands: re-initialise the weights most sensitive to forget images, then repair (Wu & Harandi, ECCV 2024)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unlearnbench import Batch, Diffusion, Task, TextMethod, gradients, minimise
from unlearnbench.techniques.losses import relabel_loss
from unlearnbench.training import Gradients, inner, kth_largest

RENEWED = r"^unet\.up_blocks\.[12]\.attentions\.1\..*attn1"
"""The self-attention of CompVis' output_blocks.4 and output_blocks.7, by the names of diffusers."""
CODE = {"lam": 0.1, "batches": 10, "absolute": True, "renewed": RENEWED, "project": False}
NAMES, CLOTHED = ("nudity", "naked", "erotic", "sexual"), ("a photo of a person wearing clothes",)
WORDS = {"erase": NAMES, "replace_with": CLOTHED, "keep": CLOTHED, "forget_prompts": NAMES, "retain_prompts": CLOTHED}
NUDITY = {
    **CODE,
    **WORDS,
    "init": "kaiming",
    "steps": 315,
    "lr": 1e-5,
    "batch_size": 16,
    "share": 0.005,
    "repeated": "both",
    "forget": "relabel",
}
OBJECT = {
    **CODE,
    "init": "normal",
    "steps": 375,
    "lr": 2e-5,
    "batch_size": 8,
    "share": 0.001,
    "repeated": "forget",
    "forget": "ascent",
}


@dataclass(frozen=True)
class Scissorhands(TextMethod):
    """Trim: re-initialise theta_j where |theta_j grad_j L_f| is in the top `share`. Repair: L = L_r + lam L_u.

    |theta grad L_f| is the connection sensitivity of SNIP (Lee et al., ICLR 2019). L_f is the denoising loss of forget
    images; its gradient is summed over one pass (`batches` None) before the absolute value is taken, or after it with
    `absolute`, as in the code. New values are those of an untrained network (init="own"), or the code's for nudity
    ("kaiming") and for objects ("normal"). `trimmed` is the part whose weights may be re-initialised.

    L_u = || eps_theta(x_t, c_f) - sg eps_theta(x_t, c_m) ||^2, c_m the task's substitute, as in the code for nudity.
    forget="ascent": -L_f, as in the code for classifiers and for objects. All losses are means over elements.

    With `project`, g = grad L may not undo the forgetting. g_o = grad (-L_f), of the trimmed model on one forget batch,
    is a direction that forgets. Where <g, g_o> < 0, g becomes g + v g_o with v = max(margin, -<g, g_o> / ||g_o||^2),
    the nearest gradient that does not point away from g_o. The code allows several g_o, but its scripts all take one.
    For classifiers it takes margin 0.5 and computes g_o once an epoch; for diffusion it reads `project` and never uses
    it. The paper projects. The default here does not, since it damaged retained classes on digits
    (results/selection.md).

    Preset "released" is what the code's script runs for nudity (five passes) and for a class of Imagenette (three); as
    steps these are passes over the 1,000 images here. The code ranks all weights and re-initialises those of the
    self-attention of two blocks alone (`renewed`), and all steps take the first batch of forget images, for nudity of
    retain images too (`repeated`). Its image is encoded twice for the relabelling, for output and target. The paper's
    own settings for Stable Diffusion are not known to us, and it unlearned no DDPM, hence no preset "published".
    """

    resumes = True
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"batch_size": 32}},
        "released": {"sd-nudity": NUDITY, "sd-object": OBJECT},
    }
    space = {"share": (1e-3, 0.3), "lam": (0.1, 3.0), "lr": (1e-4, 3e-3), "steps": (30, 120)}
    steps: int = 60
    """Updates in the repair (ours; the code counts epochs, 5)."""
    lr: float = 1e-3
    """Adam's learning rate of the repair (the code's `lr`, 1e-5)."""
    batch_size: int = 64
    """Forget images, and as many retain images, in a step (the code's `batch_size`, 16)."""
    lam: float = 1.0
    """Weight of the forget loss L_u in the repair, >= 0 (the paper's lambda; 0.1 in the code for nudity)."""
    share: float = 0.01
    """Share in [0, 1] of the weights that are drawn again (1 minus the code's `sparsity`: 0.005 for nudity)."""
    batches: int | None = None
    """Forget batches whose gradients give the sensitivity (the code's `prune_num`, 10); None: one pass."""
    absolute: bool = False
    """Whether gradients are made absolute before they are summed over batches (as in the code), or after it."""
    init: Literal["own", "kaiming", "normal"] = "own"
    """New values: the network's "own" initialisation (ours), or 0 for biases and for matrices "kaiming" uniform (the
    code for nudity) or "normal" with standard deviation 0.02 (the code for objects)."""
    trimmed: str = "full"
    """Part of the model whose weights may be drawn again (ours: "full"; the code takes the self-attention of two
    blocks)."""
    forget: Literal["relabel", "ascent"] = "relabel"
    """The forget loss L_u: "relabel" with the task's substitute (the code for nudity), or "ascent" (that for
    objects)."""
    project: bool = False
    """Whether gradients that undo the forgetting are projected (the paper does; the code's `project`)."""
    margin: float = 0.0
    """Least multiple of g_o that a projected gradient receives, >= 0 (the code's `margin`, 0.5 for classifiers)."""
    renewed: str = ""
    """Regular expression for names of the weights that are drawn again (two blocks in the code); empty: any."""
    repeated: Literal["none", "forget", "both"] = "none"
    """Which sides take their first batch in every step ("both" in the code for nudity, "forget" for objects)."""

    def prepare(self, model: Diffusion, task: Task) -> dict[str, Tensor]:
        """Masks of the weights to re-initialise: the most sensitive ones, ties too, but none without sensitivity."""
        parameters = model.select(self.trimmed)
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        passes = self.batches or -(-task.count("forget") // self.batch_size)
        batches = task.batches(passes, self.batch_size, "forget")
        for batch in batches if self.repeated == "none" else repeat(next(batches), task.steps(passes)):
            for name, grad in gradients(model.loss(batch), parameters).items():
                total[name] += grad.abs() if self.absolute else grad
        sensitivity = {name: (total[name] * parameters[name].detach()).abs() for name in parameters}
        size = torch.cat([value.flatten() for value in sensitivity.values()])
        count = round(self.share * len(size))
        least = kth_largest(size, count) if count else torch.inf
        return {
            name: (value >= least) & (value > 0) & bool(re.search(self.renewed, name))
            for name, value in sensitivity.items()
        }

    def unlearn(self, model: Diffusion, task: Task, prepared: dict[str, Tensor]) -> Diffusion:
        """Trim, then train with Adam on the repair gradients."""
        self.trim(model, task, prepared)
        minimise(self.repairs(model, task), model.select("full"), self.lr)
        return model

    @torch.no_grad()
    def trim(self, model: Diffusion, task: Task, chosen: dict[str, Tensor]) -> None:
        """Put new values where `chosen`, masks shaped like the weights."""
        fresh = dict(task.architecture(int(torch.randint(2**31, ()))).named_parameters())
        for name, value in model.select(self.trimmed).items():
            new = fresh[name]
            if self.init != "own" and name.endswith("bias"):
                nn.init.zeros_(new)
            elif self.init == "kaiming" and value.dim() > 1:
                nn.init.kaiming_uniform_(new)
            elif self.init == "normal" and value.dim() > 1:
                nn.init.normal_(new, std=0.02)
            value.copy_(torch.where(chosen[name], new, value))

    def repairs(self, model: Diffusion, task: Task) -> Iterator[Gradients]:
        """Yield the gradient of each step, projected where it would undo the forgetting."""
        parameters = model.select("full")
        g_o = None
        if self.project:
            (batch,) = task.batches(1, self.batch_size, "forget")
            g_o = gradients(-model.loss(batch), parameters)
        for forget, retain in self.pairs(task):
            yield self.repair(model, task, forget, retain, g_o)

    def repair(self, model: Diffusion, task: Task, forget: Batch, retain: Batch, g_o: Gradients | None) -> Gradients:
        """The gradient of one step; projected if g_o, a direction that forgets, is given."""
        loss = model.loss(retain) + self.lam * self.forget_loss(model, task, forget)
        g = gradients(loss, model.select("full"))
        return g if g_o is None else projected(g, g_o, self.margin)

    def pairs(self, task: Task) -> Iterator[tuple[Batch, Batch]]:
        """Pairs (forget, retain) of batches for the repair."""
        pairs = task.paired_batches(self.steps, self.batch_size)
        if self.repeated == "none":
            yield from pairs
            return
        first = next(task.paired_batches(1, self.batch_size))
        for _, retain in pairs:
            yield first[0], first[1] if self.repeated == "both" else retain

    def forget_loss(self, model: Diffusion, task: Task, batch: Batch) -> Tensor:
        """L_u, a scalar."""
        if self.forget == "ascent":
            return -model.loss(batch)
        return relabel_loss(model, batch, task.substitute(batch.y))


def projected(g: Gradients, g_o: Gradients, margin: float = 0.0) -> Gradients:
    """The gradient nearest to g with <., g_o> >= 0; g itself where it has that already."""
    conflict, square = inner(g, g_o), inner(g_o, g_o)
    if conflict >= 0:
        return g
    v = (-conflict / square).clamp(min=margin)
    return {name: g[name] + v * g_o[name] for name in g}
