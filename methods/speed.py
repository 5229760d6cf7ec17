"""SPEED: edit cross-attention in closed form, in the null space of what is kept (Li et al., ICLR 2026)."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlearnbench import Diffusion, Task, TextMethod, track
from unlearnbench.errors import UserError
from unlearnbench.techniques.closed_form import aligned, applied, cross_attention
from unlearnbench.techniques.null_space import null_projection, null_space_change

PAPER = {"projections": "values", "augment": 10, "augment_rank": 1, "threshold": 0.1, "ridge": 1.0}
NUDITY = {**PAPER, "tokens": "each", "slack": 0.5}
OURS = {"guide": "null", "filtered": False}  # its README: no filter where few names are kept
WORDS = {"erase": ("nudity",), "replace_with": ("",), "keep": ("",)}
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class SPEED(TextMethod):
    """min || (W + D P) C_1 - W C_* ||^2 + r || D P ||^2, subject to D P C_2 = 0 (eq. 10), for each value projection W.

    Its solution (eq. 11 and 12) is W (C_* C_1^T - C_1 C_1^T) P Q M, with M = (C_1 C_1^T P + r I)^-1 and Q = I - M C_2
    (C_2^T P M C_2 + lambda I)^-1 C_2^T P. C_1 are the text states of forgotten names, C_* those of what takes their
    place (`guide`), each the last subject token's (tokens="last"). tokens="each" takes every token but the first, with
    that at the same position, as the code for nudity. C_2 are invariants: the state of the start, and `centroids` of
    the empty prompt's other states by k-means. r is `ridge`, lambda `slack`.

    P projects on the null space of the kept states C_0 (eq. 2): the eigenvectors of the mean of c_0 c_0^T whose
    eigenvalues are below `threshold`. C_0 are the retained names' last subject tokens, and of an empty prompt all
    tokens but the first. They are refined for each W. `filtered` keeps those that an edit without them would move more
    than the mean, || D_e c_0 ||, D_e = W (C_* C_1^T - C_1 C_1^T) (C_1 C_1^T + I)^-1 (eq. 5 and 6). To these come
    `augment` others for each (eq. 8 and 9), c_0 + noise P_min, P_min the projection on the last `augment_rank` right
    singular vectors of W (eq. 7), of which the same filter again leaves about half.

    The paper edits values alone; the code has keys too, or both. The code (Ouxiang-Li/SPEED@6d3df0c) averages C_1 C_1^T
    over names where the paper sums: for n names give n times its `retain_scale`, and 1 / n of its `lamb`. It filters
    what it adds by means over 128 kept names; here the mean is of all. For nudity r is 1 in the paper's formula and 0.7
    in the code's script.
    There is no "published" or "released" for objects and styles, whose runs keep lists of 1,352 characters and 1,734
    artists: give such names with `keep`.
    """

    requires = frozenset({"concept", "xattn"})
    least: ClassVar[dict[str, int]] = {"augment": 0, "centroids": 0}
    presets = {
        "default": {
            "sd*-nudity": {**NUDITY, **OURS},
            "sd*": {**PAPER, **OURS},
            "digits-text": {"threshold": 0.01, "filtered": False},
        },
        "published": {"sd-nudity": {**NUDITY, **WORDS}},
        "released": {"sd-nudity": {**NUDITY, "ridge": 0.7, **WORDS}},
    }
    space = {
        "ridge": (0.01, 10.0),
        "threshold": (1e-4, 10.0),
        "augment": (0, 20),
        "projections": ("values", "both"),
        "tokens": ("last", "each"),
    }
    projections: Literal["values", "keys", "both"] = "values"
    """Which projections of cross-attention are edited (the code's `params`): the "values" (the paper), "keys" or
    "both"."""
    tokens: Literal["last", "each"] = "last"
    """Which text states of a forgotten name count: its "last" subject token, or "each" token but the first (the code
    for nudity)."""
    guide: Literal["substitute", "null"] = "substitute"
    """Whose text states take the concept's place: the "substitute" (`replace_with`, or the task's: ours), or the empty
    prompt, "null", unless `replace_with` is given."""
    threshold: Positive = 0.1
    """Eigenvalue of the mean kept state's square below which a direction is free, > 0 (the code's `threshold`, 0.1)."""
    ridge: Positive = 1.0
    """Weight r of the squared change, > 0 (the code's `retain_scale`, 1; 0.7 for nudity)."""
    slack: Annotated[float, Field(ge=0)] = 0.0
    """How much invariants may move, >= 0 (the paper's lambda; the code's `lamb`, 0; 0.5 for nudity)."""
    filtered: bool = True
    """Whether of the kept states those alone count that erasing would move most (the code's `disable_filter`)."""
    augment: Annotated[int, Field(ge=0)] = 10
    """States that are added for each kept one (the paper's N_A; the code's `aug_num`, 10)."""
    augment_rank: Annotated[int, Field(ge=1)] = 1
    """Directions in which these differ from it, at least 1 (the paper's r of eq. 7; the code's 1)."""
    centroids: Annotated[int, Field(ge=0)] = 3
    """Centroids of the empty prompt's states among the invariants (the code's `num_clusters`, 3)."""

    @torch.no_grad()
    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Edit the projections in place."""
        c_1, c_star, kept, fixed = self.states(cross_attention(model), task)
        own, pull = c_1.T @ c_1, (c_star - c_1).T @ c_1
        erase = torch.linalg.solve(own + torch.eye(len(own)).to(own), pull, left=False)
        which = {"keys": (0,), "values": (1,), "both": (0, 1)}[self.projections]
        layers = [pair[k] for pair in cross_attention(model).kv() for k in which]
        for layer in track(layers, len(layers), "layers"):
            W = layer.weight.double()
            known = self.refined(W, kept, W @ erase)
            P = null_projection(known.T @ known / max(1, len(known)), self.threshold)
            layer.weight.copy_(applied(layer.weight, null_space_change(pull, own, P, self.ridge, fixed, self.slack)))
        return model

    def states(self, model: Any, task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """C_1, C_*, C_0 and C_2 as rows, in float64."""
        forget, keep, null = (
            task.names("forget").to(task.device),
            task.names("retain").to(task.device),
            model.tokens([""]),
        )
        replaced = self.guide == "substitute" or self.replace_with is not None
        guide = task.substitute(forget) if replaced else null.expand_as(forget)
        if self.tokens == "last":
            c_1, c_star = aligned(model, forget, guide, "last")
        else:
            c_1, c_star = (model.embed(y).states[:, 1:].flatten(0, 1) for y in (forget, guide))
        empty = model.embed(null).states[0].double()
        kept = [empty[:0].to(empty)]
        for names in keep.split(64) if len(keep) else ():
            found = zip(model.embed(names).states.double(), model.positions(names).tolist(), strict=True)
            kept += [row[i : i + 1] if i else row[1:] for row, i in found]
        return (
            c_1.double(),
            c_star.double(),
            torch.cat(kept),
            torch.cat([empty[:1], centroids(empty[1:], self.centroids)]),
        )

    def refined(self, W: Tensor, kept: Tensor, erase: Tensor) -> Tensor:
        """Kept states (N, D) for a projection W (out, D), which an edit without them, `erase` (out, D), would move."""
        if self.filtered:
            kept = moved(kept, erase)
        if not self.augment:
            return kept
        least = torch.linalg.svd(W, full_matrices=False).Vh[-self.augment_rank :]
        near = kept.repeat(self.augment, 1)
        return torch.cat([kept, moved(near + torch.randn_like(near) @ least.T @ least, erase)])


def moved(kept: Tensor, change: Tensor) -> Tensor:
    """Of states (N, D) those that a change (out, D) of the projection moves at least as far as the mean."""
    shift = torch.linalg.vector_norm(kept @ change.T, dim=1)
    return kept[shift >= shift.mean()]


def centroids(states: Tensor, count: int) -> Tensor:
    """`count` centroids (count, D) of states (N, D), by k-means."""
    if not count:
        return states[:0]
    if count > len(states):
        raise UserError(f"centroids={count} are more than the empty prompt's {len(states)} states: give fewer")
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31, ()))
    found = KMeans(count, n_init=10, random_state=seed).fit(states.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(states)
