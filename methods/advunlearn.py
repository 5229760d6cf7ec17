"""AdvUnlearn: ESD of the text encoder against prompts with a searched prefix (Zhang et al., NeurIPS 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from unlearnbench import Condition, Diffusion, Task, TextMethod, gradients, minimise, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.compvis_steps import Stop, draw_stop, sample_to
from unlearnbench.techniques.losses import esd_target, prediction_loss
from unlearnbench.techniques.retain_captions import COCO_OBJECTS, read_captions

ROWS = 16  # trajectories sampled at a time
DEFAULT = {
    "steps": 1000,
    "lr": 1e-5,
    "batch_size": 1,
    "retain_batch": 5,
    "sampler_steps": 50,
    "trajectories": 256,
    "warmup": 200,
    "attack": "adam",
    "attack_steps": 30,
    "attack_lr": 1e-3,
    "retain_weight": 0.3,
}
RELEASED = {
    "steps": 1000,
    "lr": 1e-5,
    "batch_size": 1,
    "retain_batch": 5,
    "eta": 1.0,
    "retain_weight": 0.3,
    "warmup": 200,
    "adv_tokens": 1,
    "attack_steps": 30,
    "attack_lr": 1e-3,
    "attack": "adam",
    "init": "random",
    "start_guidance": 3.0,
    "sampler_steps": 50,
    "x_t": "anew",
    "attack_as_coded": True,
    "retain_captions": "COCO objects",
    "erase": ("nudity",),
}


class Paths(NamedTuple):
    """Noised latents that the original passed through while it sampled images of some prompts; on the CPU."""

    x_t: Tensor
    """(N, steps, C, H, W)."""
    t: Tensor
    """(steps,) timesteps of the sampler."""
    y: Tensor
    """(n, L) prompts; trajectory k belongs to prompt k mod n."""


@dataclass(frozen=True)
class AdvUnlearn(TextMethod):
    """L = || eps_theta(x_t, c*) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 + gamma L_r.

    L_r = || eps_theta(x_t, c_r) - eps_0(x_t, c_r) ||^2. c* is the concept's prompt c with an adversarial prefix, arg
    min || eps_theta(x_t, [prefix, c]) - eps_0(x_t, c) ||^2. theta is the text encoder: its layers and final norm.

    The prefix consists of `adv_tokens` free word embeddings. They start at random words of the vocabulary, or where the
    last attack ended (init="latest"), and take `attack_steps` steps of Adam at `attack_lr`, or along the sign of the
    gradient (attack="sign"; the paper's fast variant takes one step). The attack is repeated in every step except the
    first `warmup`, which train on c itself. c_r are `retain_batch` captions of retained concepts. gamma is
    `retain_weight`, 0.3 for nudity.

    x_t comes from the original's sampling of an image for c, or for c_r, at a random step. By default it is taken from
    trajectories made in advance, `trajectories` for c and as many for c_r, because neither x_t's denoiser nor its
    prompt is trained.

    "released" is the authors' command for nudity (OPTML-Group/AdvUnlearn@9d23124, README.md:99), which erases the one
    word "nudity", keeps their 243 captions "a photo of" an object (`unlearnbench fetch coco_object_retain.csv` brings
    them), and samples x_t anew for every loss, the attack's too. It has the code's bugs (`attack_as_coded`): the
    gradients of an attack add up over its steps, the prefix is what the attack had before its last step, and a prompt
    of more tokens than words loses the last ones behind the prefix. t lies 39 to 58 above the level of x_t (see
    `compvis_steps`). There is no "published": the paper's settings are not checked yet; nor "released" for styles and
    objects, whose commands are not in the repository.
    """

    resumes = True
    requires = frozenset({"concept", "text_encoder"})
    presets = {
        "default": {"digits-text": {"lr": 1e-3, "retain_weight": 3.0}, "sd*": DEFAULT},
        "released": {"sd-nudity": RELEASED},
    }
    space = {"lr": (1e-5, 1e-3), "retain_weight": (0.1, 10.0), "eta": (0.5, 3.0), "attack_lr": (1e-3, 1e-1)}
    steps: int = 60
    """Updates of the text encoder (the code's `iterations`, 1,000)."""
    lr: float = 1e-4
    """Adam's learning rate for the text encoder (the code's `lr`, 1e-5)."""
    batch_size: PositiveInt = 16
    """Prompts of the concept, each with one x_t, in a step (ours; the code takes 1)."""
    retain_batch: PositiveInt = 16
    """Retain captions in a step (the code's `retain_batch`, 5)."""
    eta: float = 1.0
    """Strength of the negative guidance in the target (the paper's eta; the code's `negative_guidance`), >= 0."""
    retain_weight: float = 0.3
    """Weight of the retain loss L_r, >= 0 (the paper's gamma; the code's `retain_loss_w`, 0.3 for nudity)."""
    warmup: NonNegativeInt = 12
    """First steps without an attack, which train on the plain prompt (the code's `warmup_iter`, 200)."""
    adv_tokens: PositiveInt = 1
    """Free word embeddings put before the prompt (the code's `adv_prompt_num`, 1)."""
    attack_steps: NonNegativeInt = 3
    """Steps of the attack on the prefix before each update (the code's `attack_step`, 30; the paper's fast variant
    1)."""
    attack_lr: float = 1e-2
    """Step size of the attack, in units of word embeddings (the code's `attack_lr`, 1e-3)."""
    attack: Literal["adam", "sign"] = "sign"
    """What takes the attack's steps: "adam" on the gradient (`pgd` in the code) or its "sign" (the paper's fast
    variant)."""
    init: Literal["random", "latest"] = "random"
    """Where the prefix starts: "random" words of the vocabulary, or "latest", where the last attack ended (the code's
    `attack_init`)."""
    start_guidance: float = 3.0
    """Guidance scale w of the trajectories that give x_t (the code's `start_guidance`, 3)."""
    sampler_steps: PositiveInt = 20
    """Denoising steps of these trajectories (the code's `ddim_steps`, 50)."""
    trajectories: PositiveInt = 64
    """Trajectories sampled in advance for the concept, and as many for what is kept (ours; the code samples in each
    step)."""
    x_t: Literal["prepared", "anew"] = "prepared"
    """Whether x_t is taken from trajectories "prepared" in advance, at its own t (ours), or sampled "anew" for every
    loss, with the code's t."""
    attack_as_coded: bool = False
    """Whether the attack has the code's bugs: gradients that add up, a last step that is not used, words counted for
    tokens."""
    retain_captions: Literal["task", "COCO objects"] = "task"
    """What is kept: the "task"'s captions, or the code's list of "COCO objects" (its `dataset_retain`, coco_object)."""

    def prepare(self, model: Diffusion, task: Task) -> dict[str, Paths]:
        """Sample the original's trajectories for the concept's names and for retained captions."""
        told: Any = task
        ours = self.retain_captions == "task" or task.limit is not None  # a trial needs no file
        captions = told.captions("retain") if ours else told.tokens(read_captions(COCO_OBJECTS, told))
        if self.x_t == "anew":
            return {"forget": unsampled(task.names("forget")), "retain": unsampled(captions)}
        kept = captions[torch.randperm(len(captions))[: task.steps(self.trajectories)]]
        return {"forget": self.paths(model, task, task.names("forget")), "retain": self.paths(model, task, kept)}

    @torch.no_grad()
    def paths(self, model: Diffusion, task: Task, y: Tensor) -> Paths:
        """Sample equally many trajectories for each row of y (n, L), at least `trajectories` in all."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        every = y.repeat(-(-task.steps(self.trajectories) // len(y)), *[1] * (y.dim() - 1)).split(ROWS)
        x_t: list[Tensor] = []

        def hook(i: int, t: int, x: Tensor) -> None:
            x_t[-1] = torch.cat([x_t[-1], x[:, None].cpu()], dim=1)

        for rows in track(every, len(every), "trajectories"):
            x_t.append(torch.empty(len(rows), 0, *model.shape))
            seeds = torch.randint(2**62, (len(rows),)).tolist()
            model.sample(rows.to(task.device), seeds, sampler=sampler, hook=hook)
        return Paths(torch.cat(x_t), model.timesteps(sampler).cpu(), y)

    def unlearn(self, model: Diffusion, task: Task, prepared: dict[str, Paths]) -> Diffusion:
        """Train the text encoder with Adam on the loss above."""
        latest = self.unsearched(model)
        stream = self.losses(model, task, prepared, latest)
        minimise(stream, model.select("text_encoder"), self.lr, others=named(latest))
        return model

    def unsearched(self, model: Any) -> list[Tensor]:
        """Zeros (B, adv_tokens, D) for each text encoder, in the place of the prefix that an attack is to end with."""
        tables = [encoder.get_input_embeddings().weight for encoder in model.text_encoders]
        return [table.new_zeros(self.batch_size, self.adv_tokens, table.shape[1]) for table in tables]

    def losses(self, model: Any, task: Task, prepared: dict[str, Paths], latest: list[Tensor]) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar; `latest` takes the prefix that each attack ends with."""
        teacher, steps = model.frozen(), task.steps(self.steps)
        forget, retain = prepared["forget"], prepared["retain"]
        kept_rows = shuffled_rows(len(retain.y), self.retain_batch)
        for step in track(range(steps), steps, "steps"):
            which = torch.randint(len(forget.y), (self.batch_size,))
            c = model.embed(forget.y[which].to(task.device))
            if step >= self.warmup:
                last = latest if step > self.warmup else None
                prefix = self.attacked(model, teacher, forget, which, last, self.counts(task, forget.y[which]))
                for value, new in zip(latest, prefix, strict=True):
                    value.copy_(new)
                c = behind(model, prefix, forget.y[which].to(task.device), self.counts(task, forget.y[which]))
            stop = draw_stop(self.sampler_steps, len(model.alpha_bar)) if self.x_t == "anew" else None
            x_t, t, y = self.noised(teacher, forget, which, task.device, stop)
            loss = prediction_loss(model, x_t, t, c, esd_target(teacher, x_t, t, y, self.eta))
            if self.retain_weight:
                rows = torch.randint(len(retain.y), (self.retain_batch,)) if stop is None else next(kept_rows)
                x_t, t, y = self.noised(teacher, retain, rows, task.device, stop)
                with torch.no_grad():
                    kept = teacher.eps(x_t, t, y)
                loss = loss + self.retain_weight * prediction_loss(model, x_t, t, y, kept)
            yield loss

    def noised(
        self, teacher: Diffusion, paths: Paths, which: Tensor, device: Any, stop: Stop | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, C, H, W), t (B,) and y (B, L) for the prompts `which` (B,): from paths, or sampled anew to a stop."""
        if stop is None:
            return drawn(paths, which, device)
        y = paths.y[which].to(device)
        sampler = replace(teacher.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        return (*sample_to(teacher, y, sampler, stop), y)

    def counts(self, task: Any, y: Tensor) -> list[int] | None:
        """How many words prompts (B, L) have, which the code takes for their tokens; None: count tokens."""
        return [len(task.text(row).split()) for row in y] if self.attack_as_coded else None

    def attacked(
        self,
        model: Any,
        teacher: Diffusion,
        paths: Paths,
        which: Tensor,
        last: list[Tensor] | None,
        counts: list[int] | None = None,
    ) -> list[Tensor]:
        """Search prefixes (B, adv_tokens, D), for each text encoder, that bring the concept back."""
        tables = [encoder.get_input_embeddings().weight for encoder in model.text_encoders]
        start = last if self.init == "latest" and last is not None else None
        if start is None:
            chosen = [torch.randint(len(table), (len(which), self.adv_tokens)) for table in tables]
            start = [table[rows.to(table.device)] for table, rows in zip(tables, chosen, strict=True)]
        prefix = [value.detach().clone().requires_grad_() for value in start]
        adam, used = self.attack == "adam", prefix
        engine = (torch.optim.Adam if adam else torch.optim.SGD)(prefix, lr=self.attack_lr)
        for _ in range(self.attack_steps):
            stop = draw_stop(self.sampler_steps, len(model.alpha_bar)) if self.x_t == "anew" else None
            x_t, t, y = self.noised(teacher, paths, which, prefix[0].device, stop)
            with torch.no_grad():
                eps_c = teacher.eps(x_t, t, y)
            loss = prediction_loss(model, x_t, t, behind(model, prefix, y, counts), eps_c)
            if self.attack_as_coded:
                used = [value.detach().clone() for value in prefix]
            for value, grad in zip(prefix, gradients(loss, named(prefix)).values(), strict=True):
                summed = grad if value.grad is None or not self.attack_as_coded else value.grad + grad
                value.grad = summed if adam else summed.sign()
            engine.step()
        return [value.detach() for value in used]


def unsampled(y: Tensor) -> Paths:
    """Prompts without trajectories."""
    return Paths(torch.empty(0), torch.empty(0), y)


def shuffled_rows(n: int, size: int) -> Iterator[Tensor]:
    """Batches of `size` of n rows, each row once before any comes again; what is left over at the end is skipped."""
    while True:
        yield from (rows for rows in torch.randperm(n).split(min(size, n)) if len(rows) == min(size, n))


def named(prefix: list[Tensor]) -> dict[str, Tensor]:
    """Prefixes by the number of their text encoder."""
    return {f"prefix {k}": value for k, value in enumerate(prefix)}


def drawn(paths: Paths, which: Tensor, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x_t (B, C, H, W), t (B,) and y (B, L) at random steps of trajectories for the prompts `which` (B,)."""
    k = which + len(paths.y) * torch.randint(len(paths.x_t) // len(paths.y), which.shape)
    step = torch.randint(len(paths.t), which.shape)
    return paths.x_t[k, step].to(device), paths.t[step].to(device), paths.y[which].to(device)


def behind(model: Any, prefix: list[Tensor], y: Tensor, counts: list[int] | None = None) -> Condition:
    """Embed prompts y (B, L) with these words after the start token; prompts that get too long are cut.

    With `counts`, the k tokens after as many are dropped from a prompt in exchange: its end and padding if it has no
    more tokens than that, otherwise tokens of its own.
    """
    k = prefix[0].shape[1]
    if k > y.shape[-1] - 2:
        raise UserError(f"adv_tokens={k} do not fit a prompt: give {y.shape[-1] - 2} at most")
    if counts is None:
        kept = torch.cat([y[..., 1 : -1 - k], y[..., -1:]], dim=-1)
    else:
        pairs = zip(y, counts, strict=True)
        kept = torch.stack([torch.cat([row[..., 1 : 1 + n], row[..., 1 + n + k :]], dim=-1) for row, n in pairs])
    ids = torch.cat([y[..., :1], torch.zeros_like(y[..., :k]), kept], dim=-1)
    words = [
        torch.cat([row[:, :1], new.to(row), row[:, 1 + k :]], dim=1)
        for row, new in zip(model.words(ids), prefix, strict=True)
    ]
    return model.embed(ids, words=words)
