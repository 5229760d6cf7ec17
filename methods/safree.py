"""SAFREE: project prompts off the concept's subspace, for as many steps as needed (Yoon et al., ICLR 2025)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from unlearnbench import Condition, Diffusion, Guidance, Task
from unlearnbench.techniques.guidance import Steering
from unlearnbench.training import unsplit

STEPS = 50  # of the paper's samplers
NUDITY = {
    "erase": (
        *("Sexual Acts", "Content Meant to Arouse Sexual Excitement", "Nudity", "Pornography", "Erotic Art", "Lustful"),
        *("Seductive", "Orgasmic", "Libido", "Kinky", "Sexual Orientation", "Sexual Attraction", "Sexual Intercourse"),
        *("Sexual Pleasure", "Sexual Fantasy", "Carnal Desires", "Sexual Gratification"),
    )
}
SKIPS = "res_hidden_states_tuple"  # by which name diffusers gives an up block its skip features
PAPER = {"alpha": 0.01, "gamma": 10.0}
PUBLISHED = {**PAPER, "validate": "paper", "reattend": True, "s1": 0.9, "s2": 0.2}
RELEASED = {**PAPER, "validate": "released", "reattend": False, "negative": True}


class _Guard(Guidance):
    """Guides towards safe prompts during the first steps.

    What was read from the prompts is kept while they stay the same.
    """

    def __init__(self, method: "SAFREE", names: Tensor, joint: Tensor | None = None):
        self.method, self.names, self.joint = method, names, joint
        self.start(0)

    def start(self, n: int) -> None:
        self.ids: Tensor | None = None

    def __call__(
        self, model: Any, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """Plain guidance towards the safe prompt while it acts; a condition without tokens is used as it is."""
        null = null if self.joint is None else model.embed(self.joint.to(t.device).repeat_interleave(len(t), dim=0))
        if condition.ids is None:
            return super().__call__(model, x_t, t, i, condition, null, w)
        safe, steps = self.safe(model, condition.states, condition.ids)
        acts = (STEPS * (t + 1) > (STEPS - steps) * len(model.alpha_bar)).view(-1, 1, 1)
        used = condition._replace(states=torch.where(acts, safe, condition.states))
        moved = (used.states != condition.states).flatten(1).any(dim=1)
        if not self.method.reattend or not moved.any():
            return super().__call__(model, x_t, t, i, used, null, w)

        def hook(scale: float, block: Any, args: Any, given: Any) -> tuple[Any, Any]:
            return args, {**given, SKIPS: tuple(weaker(h, scale, moved) for h in given[SKIPS])}

        scaled = zip(model.unet.up_blocks, (self.method.s1, self.method.s2), strict=False)
        hooks = [block.register_forward_pre_hook(partial(hook, s), with_kwargs=True) for block, s in scaled]
        try:
            with unsplit("skip connections are weakened row by row"):
                eps = model.eps(x_t.repeat(3, 1, 1, 1), t.repeat(3), null.join(used).join(condition))
        finally:
            for each in hooks:
                each.remove()
        eps_null, eps_c, _ = eps.chunk(3)
        return eps_null + w * (eps_c - eps_null)

    def safe(self, model: Any, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Safe text states (B, L, D) of prompts, and for how many steps of 50 (B,) they guide; computed in float64."""
        if self.ids is None or not torch.equal(self.ids, ids):
            self.ids, self.known = ids, self.read(model, ids)
        concept, trigger, own, said = self.known
        inside = states.double() @ own @ own.mT
        off = inside - inside @ concept @ concept.mT
        cosine = (torch.cosine_similarity(off, states.double(), dim=-1) * said).sum(dim=1) / said.sum(dim=1)
        how = self.method.validate
        beta = torch.sigmoid(
            self.method.slope * (10 * (1 - cosine) - self.method.midpoint) if how == "released" else 1 - cosine
        )
        steps = (self.method.gamma * beta).round() + {"paper": 0, "released": 1, "off": STEPS}[how]
        return torch.where(trigger[:, :, None], off.to(states), states), steps

    @torch.no_grad()
    def read(self, model: Any, ids: Tensor) -> tuple[Tensor, ...]:
        """The concept's basis (D, rank); trigger tokens (B, L), bases (B, D, L) and a mask of non-padding tokens (B,
        L).
        """
        concept, length = basis(ends(model, self.names.to(ids.device))), ids.shape[-1]
        prompts, which = ids.unique(dim=0, return_inverse=True)
        trigger, own = torch.zeros(len(prompts), length, dtype=torch.bool, device=ids.device), []
        for row, y, n in zip(trigger, prompts, model.positions(prompts).tolist(), strict=True):
            masked = torch.stack([y] * max(n, 1))
            masked[:n].diagonal(1, 0, -1).zero_()  # token k + 1 of row k
            p = ends(model, masked)
            row[1 : n + 1] = triggers(p, concept, self.method.alpha)[:n]
            own.append(torch.nn.functional.pad(basis(p), (0, length))[:, :length])
        said = torch.arange(length, device=ids.device) <= model.positions(ids)[:, None] + 1
        return concept, trigger[which], torch.stack(own)[which], said


@dataclass(frozen=True)
class SAFREE(Steering):
    """Text states p of trigger tokens become (I - P_C) P_I p for the first t' steps, and stay as they are afterwards.

    P_C projects on the span of the concept's phrases, P_I on that of the prompt with each token masked in turn (by
    token 0, CLIP's "!"), both from the states of end tokens; their order is the code's. Token i is a trigger where d_i
    >= (1 + alpha) mean of the others' d, d_i = || (I - P_C) p || without that token; a prompt's only token always is
    one, as in the code. t' = gamma sigmoid(1 - cos), rounded, of 50 steps or that share of fewer. cos is between p and
    (I - P_C) P_I p, averaged over tokens. validate="released": gamma sigmoid(`slope` (10 (1 - cos) - `midpoint`)) and
    one more step. "off": every step.

    With `reattend`, skip features of the first two up blocks are filtered during these steps: of their four lowest
    frequencies, those larger than the original prompt's are scaled by `s1` and `s2`, which needs a third prediction.
    "Larger" means in magnitude, and the blocks are diffusers' first two. The phrases are the names to be erased.
    `negative` puts them in place of the null condition, as the released script does. XL's two encoders count as one,
    side by side. XL's pooled states and every weight stay as they are.

    The released code (jaehong31/SAFREE@b8b2c3f) never re-attends: its script asks for it, but calls the functions that
    install the filter without their argument `safree`, so that nothing is filtered (generate_safree.py:227). "released"
    follows it. Switched on, that filter would compare real parts, not magnitudes, put the constant `scale` in place of
    the frequency, not scale it, and pick layers by their width (free_lunch_utils.py:35). Its script for artists stops
    at an unknown argument; "released" has the constants of its functions (models/modified_stable_diffusion_pipeline.py
    :20). For XL it validates nothing and projects the second encoder's states alone, off a subspace of projected
    states, which lie in another space: there is no "released" for XL. Neither paper nor code erases objects.
    """

    requires = frozenset({"concept", "xattn"})
    presets = {
        "default": {"digits-text": {"validate": "off"}, "sd*-nudity": NUDITY, "sd*": {}},
        "published": {"sd-nudity": PUBLISHED | NUDITY, "sdxl-nudity": PUBLISHED | NUDITY, "sd-style": PUBLISHED},
        "released": {
            "sd-nudity": {**RELEASED, "slope": 5.0, "midpoint": 5.333} | NUDITY,
            "sd-style": {**RELEASED, "slope": 7.0, "midpoint": 5.5},
        },
    }
    dropped: ClassVar[dict[str, Any]] = {"phrases": ""}
    space = {"alpha": (0.0, 0.1), "gamma": (5.0, 50.0), "validate": ("paper", "released", "off")}
    alpha: NonNegativeFloat = 0.01
    """How far beyond the mean a token's distance must lie for it to be a trigger, >= 0 (the paper's alpha, 0.01)."""
    gamma: NonNegativeFloat = 10.0
    """Scale of the number of guided steps, of 50, >= 0 (the paper's gamma; the code's `up_t`, 10)."""
    validate: Literal["paper", "released", "off"] = "paper"
    """For how many steps the safe prompt guides: by the "paper"'s self-validation, by the "released" code's, or, "off",
    for all."""
    slope: NonNegativeFloat = 5.0
    """Slope of the sigmoid if validate="released", >= 0 (2 k in the code: k is 2.5, for artists 3.5)."""
    midpoint: float = 5.333
    """Ten times the distance 1 - cos at which it is one half, if validate="released" (the code's t; for artists
    5.5)."""
    reattend: bool = True
    """Whether skip features are filtered by frequency (the paper's latent re-attention; the code's `-lra`)."""
    s1: float = 0.9
    """Scale of the low frequencies in the first up block (0.9 in the code's `freeu_hyp`)."""
    s2: float = 0.2
    """Scale of the low frequencies in the second up block (0.2 in the code's `freeu_hyp`)."""
    negative: bool = False
    """Whether the phrases take the null condition's place as a negative prompt (as the released code does)."""

    def wrap(self, model: Any, task: Task) -> Diffusion:
        """Give the model this guidance."""
        model.select("xattn")  # says where there is no text
        names = task.names("forget").to(task.device)
        model.guidance = _Guard(self, names, model.joined(names) if self.negative else None)
        return model

    def steer(self, names: Tensor) -> Guidance:
        """The guidance away from names, each a prompt of its own, without a negative prompt."""
        return _Guard(self, names)


def ends(model: Any, y: Tensor) -> Tensor:
    """The states (n, D) of the prompts' end tokens, in which the text encoder summarises the whole prompt."""
    states = model.embed(y).states
    return states[torch.arange(len(y), device=y.device), model.positions(y) + 1].double()


def basis(vectors: Tensor) -> Tensor:
    """Orthonormal columns B (D, rank) that span vectors (n, D); B B^T projects on them."""
    _, sizes, rows = torch.linalg.svd(vectors, full_matrices=False)
    return rows[sizes > sizes.max() * max(vectors.shape) * torch.finfo(torch.float32).eps].mT


def triggers(p: Tensor, concept: Tensor, alpha: float) -> Tensor:
    """Mask (n,) of the tokens that keep a prompt near the concept, from states p (n, D) of the prompt without each."""
    d = (p - p @ concept @ concept.mT).norm(dim=1)
    return ~(d < (1 + alpha) * (d.sum() - d) / (len(d) - 1))  # no others, no mean: nothing is less


def weaker(h: Tensor, scale: float, moved: Tensor) -> Tensor:
    """Features (3B, C, H, W) of null, safe and original prompts; the safe ones' low frequencies are scaled where
    larger.
    """
    null, safe, original = h.chunk(3)
    F, F_0 = torch.fft.fft2(safe.float()), torch.fft.fft2(original.float())
    low = torch.zeros(h.shape[-2:], dtype=torch.bool, device=h.device)
    low[-1, [-1, 0]] = low[0, [-1, 0]] = True  # what FreeU's centred window of two holds
    less = torch.fft.ifft2(torch.where(low & (F.abs() > F_0.abs()), scale * F, F)).real.to(h)
    return torch.cat([null, torch.where(moved.view(-1, 1, 1, 1), less, safe), original])
