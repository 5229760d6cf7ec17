"""AdaVD: at inference, project values of cross-attention off those of the concept (Wang et al., CVPR 2025)."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from unlearnbench import Condition, Diffusion, Task, TextMethod
from unlearnbench.techniques.closed_form import cross_attention, states
from unlearnbench.techniques.value_projection import PairedGuidance, change_values, span_coefficients

NOTEBOOK = {"shift": True, "steepness": 100.0, "midpoint": 0.93, "strength": 2.0, "with_null": True}


@dataclass(frozen=True)
class AdaVD(TextMethod):
    """v becomes v - sum_k delta_k a_k t_k, for the values v of every token but the first, in every cross-attention.

    t_k = W_v c_k are the concept's values: c_k is the text state of a forgotten name's last subject token, put in the
    place of each token. The a_k are those for which sum_k a_k t_k is v's orthogonal projection on the span of all t_k
    (for one name a = t^T v / t^T t): with delta = 1, what is left is in the orthogonal complement. The shift delta_k =
    s / (1 + exp(-p (cos(v, t_k) - epsilon))) spares tokens unlike the concept; without `shift` delta is 1. In these
    letters: s is `strength`, p `steepness`, epsilon `midpoint`.

    `with_null` is how the code computes it: v and t_k stand below the values n of the null condition at the same token,
    as one vector (n, v) or (n, t_k). So cos and a count what the null condition has in common with itself, and it
    loses sum_k delta_k a_k n at each prompt beside it. Otherwise the null condition stays as it is in guidance.

    The paper's text was not at hand: there is no "published". "released" is the authors' notebook (WYuan1001/AdaVD@
    c2d2962, demo.ipynb), which erases Van Gogh. The code orthogonalises the t_k by Gram-Schmidt, but against the t_k
    themselves, so that three or more are not orthogonal; here they are. Its command line (src/main.py) has the shift
    off unless --token_sim is given.
    """

    requires = frozenset({"concept", "xattn"})
    trains = False
    presets = {
        "default": {"sd*": NOTEBOOK, "digits-text": {"midpoint": 0.35}},
        "released": {"sd-style": NOTEBOOK},
    }
    space = {"steepness": (10.0, 300.0), "midpoint": (0.3, 0.97), "strength": (0.5, 3.0), "with_null": (False, True)}
    shift: bool = True
    """Whether tokens that are unlike the concept are spared (the code's `token_sim`)."""
    steepness: Annotated[float, Field(gt=0)] = 100.0
    """How sharply the shift rises with the cosine, > 0 (the paper's p; the code's `sigmoid_a`, 100)."""
    midpoint: float = 0.93
    """Cosine at which it is half its largest (the paper's epsilon; the code's `sigmoid_b`, 0.93)."""
    strength: Annotated[float, Field(ge=0)] = 2.0
    """The largest shift, >= 0 (the paper's s; the code's `sigmoid_c`, 2): above 1, the concept's part is turned
    round."""
    with_null: bool = False
    """Whether values are taken together with those of the null condition, which then change too (as in the code)."""

    def wrap(self, model: Any, task: Task) -> Diffusion:
        """Add the hooks that change the values, and guidance that tells prompts from the null condition."""
        cross_attention(model).guidance = pairs = PairedGuidance()
        decomposer = _Decomposer(self, task.names("forget").to(task.device), pairs)
        model.register_forward_pre_hook(decomposer.before)
        change_values(model, decomposer)
        return model

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Return the model unchanged."""
        return model


class _Decomposer:
    """Changes values, given the concept's text states."""

    def __init__(self, method: AdaVD, names: Tensor, pairs: PairedGuidance):
        self.method, self.names, self.pairs = method, names, pairs
        self.concept, self.empty = names, names

    @torch.no_grad()
    def before(self, model: Any, args: tuple[Tensor, Tensor, Tensor | Condition]) -> None:
        """Read the text states of the names (n, D) and of the null condition (L, D) before each prediction."""
        self.concept = states(model, self.names, "last")
        self.empty = model.null(1).states[0]

    def __call__(self, projection: nn.Linear, values: Tensor) -> Tensor:
        """Values (B, L, D) without the concept's part."""
        many = len(values) // 2 if self.pairs.paired else 0  # null rows, which come first
        null, v = values[:many].float(), values[many:].float()
        t, empty = (  # not by the projection itself, whose hook this is
            linear(read.to(values), projection.weight, projection.bias).float() for read in (self.concept, self.empty)
        )
        common = empty.square().sum(dim=1) * self.method.with_null  # (L,)
        products, gram = v @ t.T + common[:, None], t @ t.T + common[:, None, None]
        part = span_coefficients(products, gram)  # (B, L, n)
        if self.method.shift:
            sizes = (v.square().sum(dim=-1) + common)[..., None] * gram.diagonal(dim1=1, dim2=2)
            cosine = products / sizes.sqrt().clamp(min=1e-8)
            part = part * self.method.strength * (self.method.steepness * (cosine - self.method.midpoint)).sigmoid()
        part[:, 0] = 0  # the start says nothing of the prompt
        null = null * (1 - self.method.with_null * part.sum(dim=-1, keepdim=True)) if many else null
        return torch.cat([null, v - part @ t]).to(values)
