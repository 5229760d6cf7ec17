"""AdvUnlearn: ESD of the text encoder against prompts with a searched prefix (Zhang et al., NeurIPS 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from unlearnbench import Condition, Diffusion, Method, Task, gradients, minimise, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.losses import esd_target, prediction_loss

ROWS = 16  # trajectories sampled at a time
PUBLISHED = {"steps": 1000, "lr": 1e-5, "batch_size": 1, "retain_batch": 5, "sampler_steps": 50, "trajectories": 256}
ATTACK = {"warmup": 200, "attack": "adam", "attack_steps": 30, "attack_lr": 1e-3, "retain_weight": 0.3}


class Paths(NamedTuple):
    """Noised latents that the original passed through while it sampled images of some prompts; on the CPU."""

    x_t: Tensor
    """(N, steps, C, H, W)."""
    t: Tensor
    """(steps,) timesteps of the sampler."""
    y: Tensor
    """(n, L) prompts; trajectory k belongs to prompt k mod n."""


@dataclass(frozen=True)
class AdvUnlearn(Method):
    """L = || eps_theta(x_t, c*) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 + gamma L_r.

    L_r = || eps_theta(x_t, c_r) - eps_0(x_t, c_r) ||^2. c* is the concept's prompt c with an adversarial prefix, arg
    min || eps_theta(x_t, [prefix, c]) - eps_0(x_t, c) ||^2. theta is the text encoder: its layers and final norm.

    The prefix consists of `adv_tokens` free word embeddings. They start at random words of the vocabulary, or where the
    last attack ended (init="latest"), and take `attack_steps` steps of Adam at `attack_lr`, or along the sign of the
    gradient (attack="sign"; the paper's fast variant takes one step). The attack is repeated in every step except the
    first `warmup`, which train on c itself. c_r are `retain_batch` captions of retained concepts, in the paper "a photo
    of" COCO's objects. gamma is `retain_weight`, 0.3 for nudity.

    x_t comes from the original's sampling of an image for c, or for c_r, at a random step. The paper and the code
    sample x_t for every loss, including the attack's. Here it is taken from trajectories made in advance,
    `trajectories` for c and as many for c_r, because neither x_t's denoiser nor its prompt is trained. The code never
    clears the gradient of the attack, so each step adds up all earlier ones, and its Adam steps along the sign. This
    implementation does neither.
    """

    resumes = True
    requires = frozenset({"concept", "text_encoder"})
    presets = {
        "default": {"digits-text": {"lr": 1e-3, "retain_weight": 3.0}, "sd*": {**PUBLISHED, **ATTACK}},
        "published": {"*": {**PUBLISHED, **ATTACK}},
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

    def prepare(self, model: Diffusion, task: Task) -> dict[str, Paths]:
        """Sample the original's trajectories for the concept's names and for retained captions."""
        captions = task.captions("retain")
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
        for step in track(range(steps), steps, "steps"):
            which = torch.randint(len(forget.y), (self.batch_size,))
            c = model.embed(forget.y[which].to(task.device))
            if step >= self.warmup:
                prefix = self.attacked(model, teacher, forget, which, latest if step > self.warmup else None)
                for value, new in zip(latest, prefix, strict=True):
                    value.copy_(new)
                c = behind(model, prefix, forget.y[which].to(task.device))
            x_t, t, y = drawn(forget, which, task.device)
            loss = prediction_loss(model, x_t, t, c, esd_target(teacher, x_t, t, y, self.eta))
            if self.retain_weight:
                x_t, t, y = drawn(retain, torch.randint(len(retain.y), (self.retain_batch,)), task.device)
                with torch.no_grad():
                    kept = teacher.eps(x_t, t, y)
                loss = loss + self.retain_weight * prediction_loss(model, x_t, t, y, kept)
            yield loss

    def attacked(
        self, model: Any, teacher: Diffusion, paths: Paths, which: Tensor, last: list[Tensor] | None
    ) -> list[Tensor]:
        """Search prefixes (B, adv_tokens, D), for each text encoder, that bring the concept back."""
        tables = [encoder.get_input_embeddings().weight for encoder in model.text_encoders]
        start = last if self.init == "latest" and last is not None else None
        if start is None:
            chosen = [torch.randint(len(table), (len(which), self.adv_tokens)) for table in tables]
            start = [table[rows.to(table.device)] for table, rows in zip(tables, chosen, strict=True)]
        prefix = [value.detach().clone().requires_grad_() for value in start]
        adam = self.attack == "adam"
        engine = (torch.optim.Adam if adam else torch.optim.SGD)(prefix, lr=self.attack_lr)
        for _ in range(self.attack_steps):
            x_t, t, y = drawn(paths, which, prefix[0].device)
            with torch.no_grad():
                eps_c = teacher.eps(x_t, t, y)
            loss = prediction_loss(model, x_t, t, behind(model, prefix, y), eps_c)
            for value, grad in zip(prefix, gradients(loss, named(prefix)).values(), strict=True):
                value.grad = grad if adam else grad.sign()
            engine.step()
        return [value.detach() for value in prefix]


def named(prefix: list[Tensor]) -> dict[str, Tensor]:
    """Prefixes by the number of their text encoder."""
    return {f"prefix {k}": value for k, value in enumerate(prefix)}


def drawn(paths: Paths, which: Tensor, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x_t (B, C, H, W), t (B,) and y (B, L) at random steps of trajectories for the prompts `which` (B,)."""
    k = which + len(paths.y) * torch.randint(len(paths.x_t) // len(paths.y), which.shape)
    step = torch.randint(len(paths.t), which.shape)
    return paths.x_t[k, step].to(device), paths.t[step].to(device), paths.y[which].to(device)


def behind(model: Any, prefix: list[Tensor], y: Tensor) -> Condition:
    """Embed prompts y (B, L) with these words after the start token; prompts that get too long are cut."""
    k = prefix[0].shape[1]
    if k > y.shape[-1] - 2:
        raise UserError(f"adv_tokens={k} do not fit a prompt: give {y.shape[-1] - 2} at most")
    ids = torch.cat([y[..., :1], torch.zeros_like(y[..., :k]), y[..., 1 : -1 - k], y[..., -1:]], dim=-1)
    words = [
        torch.cat([row[:, :1], new.to(row), row[:, 1 + k :]], dim=1)
        for row, new in zip(model.words(ids), prefix, strict=True)
    ]
    return model.embed(ids, words=words)
