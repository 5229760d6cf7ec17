"""UCE: edit cross-attention in closed form to replace the concept's keys and values (Gandikota et al., WACV 2024)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from unlearnbench import Diffusion, Task
from unlearnbench.techniques.closed_form import ClosedForm, Term, aligned, cross_attention, states

MODERATION = {"erase": ("violence", "nudity", "harm"), "replace_with": ("",)}
"""The names that both releases' READMEs erase, and what takes their place: the older code's " " is the empty prompt."""


@dataclass(frozen=True)
class UCE(ClosedForm):
    """W = W0 (sum s_e c_g c_e^T + sum s_p c_p c_p^T + lambda I) (sum s_e c_e c_e^T + sum s_p c_p c_p^T + lambda I)^-1.

    W0 is every key and value projection of cross-attention (eq. 7 and, for the terms with lambda, the code). c_e are
    the forgotten concept's text states, c_g those of its `guide`: what takes its place (`replace_with`, or the task's
    substitute), or the empty prompt ("null"), which both releases use but for styles. c_p are those of the retained
    concepts' names. In the letters above: s_e is `erase_scale`, s_p `preserve_scale`, lambda `lamb`. The paper weighs
    all alike (s_e = s_p = 1).

    The paper does not say which tokens of a prompt c stands for. tokens="last": its last subject token alone (the newer
    release, here the preset "released"). "all": that token and all after it, aligned with the guide's, and of retained
    names every token (the release of 2023, the paper's own: "published"). That one also keeps the empty prompt
    (`preserve_null`) and sets s_p, where it is None, to max(0.1, 1 / number of kept prompts).

    Both releases moderate content by the names "violence", "nudity" and "harm" together and keep nothing else. Their
    runs on styles and objects erase several at a time, which no task here does: those have no published or released
    preset. The newer README's commands stop as they stand: `--concept_type unsafe` is no choice of its script, and
    `--guided_concept` no option.
    """

    presets = {
        "default": {"digits-text": {"tokens": "all"}},
        "published": {"sd-nudity": {**MODERATION, "tokens": "all", "preserve_scale": None, "keep": ("",)}},
        "released": {"sd-nudity": {**MODERATION, "tokens": "last", "keep": ()}},
    }
    space = {"erase_scale": (0.3, 30.0), "preserve_scale": (0.1, 3.0), "lamb": (0.01, 3.0), "tokens": ("last", "all")}
    erase_scale: float = 1.0
    """Weight of the erased terms, >= 0 (the paper weighs all alike; the code's `erase_scale`, s_e)."""
    preserve_scale: float | None = 1.0
    """Weight of the kept terms, >= 0 (the code's `preserve_scale`, s_p); None: max(0.1, 1 / number of kept prompts)."""
    tokens: Literal["last", "all"] = "last"
    """Which text states of a prompt count: the "last" subject token (the newer code), or that and "all" after it (that
    of 2023)."""
    guide: Literal["substitute", "null"] = "substitute"
    """Whose text states take the concept's place: the "substitute" (`replace_with`, or the task's: ours), or the empty
    prompt, "null" (the code), unless `replace_with` is given."""
    preserve_null: bool = False
    """Whether the empty prompt is kept too (as in the code of 2023)."""

    def terms(self, model: Diffusion, task: Task) -> list[Term]:
        """The terms: erased names give what their guides give, kept ones stay."""
        text: Any = cross_attention(model)
        forget, kept = (task.names(side).to(task.device) for side in ("forget", "retain"))
        null = text.tokens([""])
        replaced = self.guide == "substitute" or self.replace_with is not None
        guide = task.substitute(forget) if replaced else null.expand_as(forget)
        kept = torch.cat([kept, null]) if self.preserve_null else kept
        terms = [Term(*aligned(model, forget, guide, self.tokens), self.erase_scale)]
        if len(kept):
            scale = max(0.1, 1 / len(kept)) if self.preserve_scale is None else self.preserve_scale
            c_p = states(model, kept, self.tokens)
            terms.append(Term(c_p, c_p, scale))
        return terms
