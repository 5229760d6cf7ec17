"""MACE: refine related words, suppress attention to the concept, fuse in closed form (Lu et al., CVPR 2024)."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.linalg import pinv, vector_norm
from torch.nn.functional import interpolate

from unlearnbench import Diffusion, Task, minimise, track
from unlearnbench.techniques.adapters import Adapted, LowRank

COCO = 616_767
"""COCO's captions of 2014, training and validation, over which the code sums what is to be kept."""
RUN = {"lr": 1e-5, "batch_size": 1, "images": 8, "projections": "both", "prompts": "templates"}
NUDITY = {**RUN, "steps": 120, "train_prior": 7e-7 * COCO, "fuse_prior": 7e-7 * COCO, "lamb": 0.0, "focal": False}
OBJECT = {**RUN, "steps": 50, "train_prior": 0.0, "fuse_prior": 0.0, "lamb": 100.0, "focal": True}
STYLE = {
    **{**RUN, "lr": 1e-4, "prompts": "captions"},
    **{"steps": 50, "train_prior": 61.6767, "fuse_prior": 61.6767, "lamb": 0.0, "focal": True},  # 1e-4 a caption
}
NAMES = ("nudity", "naked", "erotic", "sexual")
EXPLICIT = {
    "erase": NAMES,
    "replace_with": ("a person wearing clothes",),
    "forget_prompts": tuple(f"a photo of the {name}" for name in NAMES),
}
SKY = {"replace_with": ("sky",)}
PAPER = {"norm": "squared", "ends": False}
RELEASED = {"norm": "plain", "ends": True}
T1, T2, GAMMA, MASK_T, CHUNK = 200, 400, 0.05, 300, 64
Weight = Annotated[float, Field(ge=0)]
TEMPLATES = (
    "{} in a photo",
    "{} in a snapshot",
    "A snapshot of {}",
    "A photograph showcasing {}",
    "An illustration of {}",
    "A digital rendering of {}",
    "A visual representation of {}",
    "A graphic of {}",
    "A shot of {}",
    "A photo of {}",
    "A black and white image of {}",
    "A depiction in portrait form of {}",
    "A scene depicting {} during a public gathering",
    "{} captured in an image",
    "A depiction created with oil paints capturing {}",
    "An image of {}",
    "A drawing capturing the essence of {}",
    "An official photograph featuring {}",
    "A detailed sketch of {}",
    "{} during sunset/sunrise",
    "{} in a detailed portrait",
    "An official photo of {}",
    "Historic photo of {}",
    "Detailed portrait of {}",
    "A painting of {}",
    "HD picture of {}",
    "Magazine cover capturing {}",
    "Painting-like image of {}",
    "Hand-drawn art of {}",
    "An oil portrait of {}",
)
"""The prompts around an object's name that the code fits: the first 30 of Shilin-LU/MACE@057e7a6, src/cfr_utils.py:263.
It draws 30 of them by number (`prompt_len` is 30), so that its 31st is never used."""


@dataclass(frozen=True)
class MACE(Adapted):
    """Three steps on key and value projections W of cross-attention; the first on keys alone with projections="keys".

    1. W' = argmin sum || W' e^f - W e^g ||^2 + lambda_1 sum || W' e^p - W e^p ||^2 (eq. 1). e^f are the states of the
      tokens around the concept in forget captions, end and padding tokens included; e^g are those of the same captions
      with the substitute.
    2. A LoRA dW_i of rank 1 on W' for each forgotten name: min sum over layers || A (*) M ||_F^2 (eq. 3). A is the
      attention of all heads to the tokens that spell the name, at x_t of forget images. t is drawn by sigma(GAMMA (t -
      T1)) - sigma(GAMMA (t - T2)) (eq. 5; `focal`), or uniformly, as in the code for nudity.
    3. W* = argmin sum_i sum || W* e^f - (W' + dW_i) e^f ||^2 + lambda_2 sum || W* e^p - W e^p ||^2 (eq. 7). e^f are now
      all tokens of the name's captions, as in the code. The words around the name, as in the paper, would lose what the
      LoRA learned.

    The captions are the task's, or (`prompts`) the code's templates around each name: a name alone has no words around
    it. In step 2 an image then has each of them in turn.

    M is Grounded-SAM's mask in the paper. Here it is where the original's attention to these tokens, summed over heads
    and layers at t = MASK_T, reaches `mask_threshold` of its maximum, or everywhere (mask="all"). e^p are COCO's
    captions in the paper, here all tokens of retained captions; `train_prior` and `fuse_prior` are lambda_1 and
    lambda_2 times their number (0.43: 7e-7 for 616,767). AdamW, clipping, the LoRA's initialisation and, in both
    solutions, `lamb` times the squared change follow the code. So do step 1 on values (eq. 1 has keys; the appendix
    both), norm="plain", and end tokens counted as the concept's (`ends`).

    The released code (Shilin-LU/MACE@057e7a6) multiplies COCO's sums by `train_preserve_scale` twice before step 1
    (src/cfr_lora_training.py:311 and :322): "released" has 7e-7 squared times 616,767 in `train_prior`, which is 1.4
    million times weaker than meant, and keeps the right weight in step 3. For objects `lamb` is 10, 100 or 1,000 (bird,
    automobile, ship), and "street", "sky" or "ground" takes their place; the presets are automobile's. "published" has
    the code's numbers in the paper's formulas. There are no such presets for styles: the code keeps other artists there
    with 80,000 times the weight of a caption of COCO.
    """

    resumes = True
    requires = frozenset({"concept", "xattn", "forget images"})
    least: ClassVar[dict[str, int]] = {"steps": 0}
    presets = {
        "default": {"sd*-nudity": NUDITY, "sd-object": OBJECT, "sd-style": STYLE, "digits-text": {}},
        "published": {"sd-nudity": {**NUDITY, **PAPER, **EXPLICIT}, "sd-object": {**OBJECT, **PAPER, **SKY}},
        "released": {
            "sd-nudity": {**NUDITY, **RELEASED, "train_prior": 7e-7**2 * COCO, **EXPLICIT},
            "sd-object": {**OBJECT, **RELEASED, **SKY},
        },
    }
    space = {"lr": (1e-5, 1e-2), "steps": (30, 120), "lamb": (1e-3, 1e3), "train_prior": (1.0, 1e3)}
    steps: int = 60
    """Updates of each name's LoRA (the code's `max_train_steps`, 120 for nudity)."""
    lr: float = 3e-4
    """AdamW's learning rate of the LoRAs (the code's `learning_rate`, 1e-5)."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Forget images in a step (the code's `train_batch_size`, 1)."""
    images: Annotated[int, Field(ge=1)] = 64
    """Forget images of each name that its LoRA is trained on (the code's 8)."""
    train_prior: Weight = 100.0
    """Weight of the kept captions in step 1, >= 0 (the paper's lambda_1 times their number; the code's
    `train_preserve_scale`)."""
    fuse_prior: Weight = 100.0
    """Weight of the kept captions in step 3, >= 0 (the paper's lambda_2 times their number; the code's
    `fuse_preserve_scale`)."""
    lamb: Weight = 0.1
    """Weight of the squared change of the projections in both solutions, >= 0 (the code's `lamb`)."""
    prompts: Literal["captions", "templates"] = "captions"
    """What is fitted and trained on of a name: the task's forget "captions", or the 30 "templates" of the code."""
    projections: Literal["keys", "both"] = "both"
    """What step 1 edits: "keys" alone (the paper's eq. 1), or keys and values, "both" (its appendix and the code)."""
    mask: Literal["attention", "all"] = "attention"
    """The region M of eq. 3: where the original's "attention" is high (ours; the paper segments images), or "all"."""
    mask_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share in [0, 1] of the attention's maximum from which on a place is in M (ours)."""
    focal: bool = True
    """Whether timesteps follow the paper's focal density (eq. 5; the code's `importance_sampling`), not a uniform
    one."""
    norm: Literal["squared", "plain"] = "squared"
    """The loss of a layer: the "squared" Frobenius norm (the paper's eq. 3) or the "plain" one (the code)."""
    ends: bool = False
    """Whether the end tokens count as the concept's (the code's `use_pooler`)."""

    @torch.no_grad()
    def prepare(self, model: Any, task: Task) -> list[list[Tensor]]:
        """For each name its captions, then images, their captions, which tokens name it (N, L) and M (N, 1, H, W)."""
        model.select("xattn")
        names, captions = (y.to(task.device) for y in (task.names("forget"), task.captions("forget")))
        batches = task.batches(len(names) * -(-self.images // self.batch_size), self.batch_size, "forget")
        every, asked = (torch.cat(parts) for parts in zip(*batches, strict=True))
        shown = []
        for name in names.split(1):
            own, said = (model.mentioned(y, name).any(dim=1) for y in (captions, asked))
            prompts = captions[own] if own.any() else name
            x0, y = every, prompts[torch.randint(len(prompts), said.shape)]  # where no image's caption says it
            x0, y = (part[: self.images] for part in ((every[said], asked[said]) if said.any() else (x0, y)))
            where = self.naming(model, y, name)
            chunks = zip(*(part.split(self.batch_size) for part in (x0, y, where)), strict=True)
            M = torch.cat([self.region(model, *chunk) for chunk in chunks])
            if self.prompts == "templates":  # every image with each of them
                prompts = templated(model, name)
                y = prompts.repeat(len(x0), *[1] * (y.dim() - 1))
                x0, M = (part.repeat_interleave(len(prompts), dim=0) for part in (x0, M))
                where = self.naming(model, y, name)
            shown.append([prompts, x0, y, where, M])
        return shown

    def naming(self, model: Any, y: Tensor, name: Tensor) -> Tensor:
        """Mask (B, L) of the tokens of prompts y that count as the name's."""
        where: Tensor = model.mentioned(y, name)
        return where | (y.flatten(1)[:, : y.shape[-1]] == model.tokenizers[0].eos_token_id) if self.ends else where

    def region(self, model: Diffusion, x0: Tensor, y: Tensor, where: Tensor) -> Tensor:
        """M (B, 1, H, W) for images x0 (B, C, H, W) whose captions name the concept at the tokens `where` (B, L)."""
        total, t = torch.zeros_like(x0[:, :1]), torch.full((len(x0),), MASK_T, device=x0.device)
        for A in attention(model, x0, t, y) if self.mask == "attention" else ():
            seen = (A.mean(dim=1) * where[:, None]).sum(dim=2).unflatten(1, (1, math.isqrt(A.shape[2]), -1))
            total += interpolate(seen, size=x0.shape[2:], mode="bilinear")
        return total >= self.mask_threshold * total.amax(dim=(2, 3), keepdim=True)

    def unlearn(self, model: Any, task: Task, prepared: list[list[Tensor]]) -> Diffusion:
        """Run the three steps; the projections end as W*."""
        layers, kept = [linear for pair in model.kv() for linear in pair], task.captions("retain").to(task.device)
        with torch.no_grad():
            original = [layer.weight.to(torch.float64, copy=True) for layer in layers]
            prior = moments(model, kept)[1] / max(1, len(kept))
            ridge = self.lamb * torch.eye(len(prior)).to(prior)
            pull, own = moments(model, torch.cat([captions for captions, *_ in prepared]), task)
            change = pull @ pinv(own + self.train_prior * prior + ridge, rtol=1e-12, hermitian=True)
            for layer in layers[:: 1 if self.projections == "both" else 2]:
                layer.weight.add_(layer.weight.double() @ change)
        added = [self.trained(model, layers, shown, task) for _, *shown in prepared]
        with torch.no_grad():
            grams = torch.stack([moments(model, captions)[1] for captions, *_ in prepared])
            inverse = pinv(grams.sum(dim=0) + self.fuse_prior * prior + ridge, rtol=1e-12, hermitian=True)
            for layer, W, *updates in zip(layers, original, *added, strict=True):
                pull = (torch.stack(updates).double() @ grams).sum(dim=0)
                layer.weight.add_((pull + self.fuse_prior * (W - layer.weight.double()) @ prior) @ inverse)
        return model

    def trained(self, model: Any, layers: list[Any], shown: list[Tensor], task: Task) -> list[Tensor]:
        """Train a LoRA and return dW_i (out, D) of every layer; the layers themselves do not change."""
        loras: Any = nn.ModuleList(LowRank(layer, 1) for layer in layers).to(layers[0].weight)
        with ExitStack() as hooks:
            for layer, lora in zip(layers, loras, strict=True):
                nn.init.normal_(lora.down.weight)
                hooks.enter_context(layer.register_forward_hook(lambda _, x, out, lora=lora: out + lora(*x)))
            weights = dict(loras.named_parameters())
            minimise(self.losses(model, shown, task), weights, self.lr, optimiser="adamw", clip=1.0)
        return [(lora.up.weight @ lora.down.weight).detach() for lora in loras]

    def losses(self, model: Diffusion, shown: list[Tensor], task: Task) -> Iterator[Tensor]:
        """Yield the loss of each step, on a random batch of the images."""
        t = torch.arange(len(model.alpha_bar), device=model.alpha_bar.device)
        density = (GAMMA * (t - T1)).sigmoid() - (GAMMA * (t - T2)).sigmoid() if self.focal else torch.ones_like(t)
        for _ in track(range(steps := task.steps(self.steps)), steps, "steps"):
            index = torch.randint(len(shown[0]), (self.batch_size,), device=t.device)
            x0, y, where, M = (part[index] for part in shown)
            drawn = torch.multinomial(density.float(), self.batch_size, replacement=True)
            yield self.loss(attention(model, x0, drawn, y), where, M)

    def loss(self, maps: list[Tensor], where: Tensor, M: Tensor) -> Tensor:
        """The loss of attention maps (B, heads, places, L) at tokens `where` (B, L) in M, a mean over the batch."""
        norms = []
        for A in maps:
            inside = interpolate(M.float(), size=[math.isqrt(A.shape[2])] * 2).flatten(2)[..., None]
            norms.append(vector_norm((A * inside * where[:, None, None]).flatten(1), dim=1))
        return torch.stack(norms).pow(2 if self.norm == "squared" else 1).sum(dim=0).mean()


def templated(model: Any, name: Tensor) -> Tensor:
    """The templates around a name, given as a prompt (1, L) or (1, 2, L), as 30 prompts."""
    ids = name.flatten()[1 : int(model.positions(name)) + 1]
    word = model.tokenizers[0].decode(ids).replace("</w>", " ").strip()  # a copied tokenizer leaves the ends of words
    prompts: Tensor = model.tokens([template.format(word) for template in TEMPLATES])
    return prompts


def attention(model: Any, x0: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
    """Every layer's cross-attention maps (B, heads, places, L) at an x_t of x0 (B, C, H, W)."""
    with torch.no_grad():
        condition = model.embed(y)
    with model.attention() as maps:
        model(model.add_noise(x0, torch.randn_like(x0), t), t, condition)
    return [layer[0].float() for layer in maps.values()]


def moments(model: Any, y: Tensor, task: Task | None = None) -> tuple[Tensor, Tensor]:
    """Sums of (g - e) e^T and e e^T, each (D, D), over the tokens of prompts y.

    e are text states of y. Without `task`, g are the same states; with it, those of the prompts with the task's
    substitute, of the tokens that both prompts share.
    """
    D = model.kv()[0][0].in_features
    pull, total = torch.zeros(2, D, D, dtype=torch.float64, device=y.device)
    for rows in y.split(CHUNK) if len(y) else ():
        sides = (rows, task.substitute(rows) if task else rows)
        ids = (side.flatten(1)[:, : side.shape[-1]].tolist() for side in sides)
        for a, b, e, g in zip(*ids, *(model.embed(side).states.double() for side in sides), strict=True):
            whole = [Match(0, 0, len(a))]
            same = whole if a == b else SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
            e, g = (torch.cat([x[m[k] : m[k] + m.size] for m in same]) for k, x in enumerate((e, g)))
            pull += (g - e).T @ e
            total += e.T @ e
    return pull, total
