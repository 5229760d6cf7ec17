"""Merge LoRA files: W + (alpha / rank) up @ down (Hu et al., ICLR 2022).

Done here because diffusers loads a LoRA through PEFT, as adapter modules, and only warns about keys that it does not
know. A checkpoint of weights needs neither: the product is added to the weights, and unknown keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.errors import UserError
from unlearnbench.models.external.adapter_settings import AdapterSettings

NAME = r"(?:\.[\w-]+)?"
"""An adapter's name, which PEFT writes into names of a whole model's state."""
DOWN = re.compile(rf"(?:\.lora_A{NAME}|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight$")
UP = re.compile(rf"(?:\.lora_B{NAME}|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight$")
BIAS = re.compile(rf"\.lora_B{NAME}\.bias$")
"""What PEFT adds to a layer's bias under `lora_bias`."""
ALPHA = re.compile(r"\.alpha$")
PEFT = "base_model.model."
SCALED_BY_RULE = ("unet.", "text_encoder.", "text_encoder_2.", "lora_unet_", "lora_te")
"""Names of formats whose own loaders take alpha to be the rank where the file does not say it: diffusers
(`get_peft_kwargs` in `utils/peft_utils.py`, 0.42) and kohya (`create_network_from_weights` in `networks/lora.py`, lines
1470 ff. at 48d368f). PEFT's own names are not among them: its alpha is in adapter_config.json."""
OTHER_KINDS = {
    r"\.(lora_magnitude_vector|dora_scale)": "DoRA",
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.(ia3_l|on_input)": "IA3",
    r"\.(oft|boft)_": "OFT",
    r"\.vera_lambda": "VeRA",
    r"\.lora_mid\.": "LoRA by Tucker's decomposition",
    r"\.lora_embedding_": "LoRA of an embedding",
    r"\.diff(_b)?$": "differences of whole weights",
}
"""Adapters that are not read, by patterns of their names (PEFT's and LyCORIS's)."""


class Pair(NamedTuple):
    """The two low-rank factors that change one weight."""

    keys: tuple[str, str]
    """Their keys in the file, down and up."""
    target: str
    """Name of the weight."""
    down: Tensor
    """(rank, in, ...)"""
    up: Tensor
    """(out, rank, ...)"""
    scale: float
    """What the product is multiplied by: alpha over the rank, or over its root for rank-stabilised LoRA."""

    def module(self) -> str:
        """Name of the module in the file."""
        return DOWN.sub("", self.keys[0])

    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that the pair was made for."""
        return (self.up.shape[0], *self.down.shape[1:])

    def fits(self, weight: Tensor) -> bool:
        """Whether the product has the weight's shape. A 1x1 convolution counts as a linear layer."""
        rank, rows = len(self.down), len(self.up)
        full = rows == len(weight) and self.down.numel() * rows == weight.numel() * rank
        return full and (self.down.dim() == 2 or self.shape()[2:] == weight.shape[2:])

    def merged(self, weight: Tensor) -> Tensor:
        """Return W + scale up @ down, computed in at least single precision."""
        kind = torch.promote_types(weight.dtype, torch.float32)
        up, down = (part.to(weight.device, kind).flatten(1) for part in (self.up, self.down))
        return weight.to(kind) + self.scale * (up @ down).view_as(weight)


def is_lora(state: Iterable[str]) -> bool:
    """Whether any key belongs to a low-rank pair."""
    return any(DOWN.search(key) or UP.search(key) for key in state)


def require_merged(place: Path, state: Iterable[str]) -> None:
    """Raise `UserError` for an adapter of another kind than LoRA, with its name."""
    for key in state:
        for pattern, kind in OTHER_KINDS.items():
            if re.search(pattern, key):
                raise UserError(
                    f"{place}: {key} belongs to an adapter of another kind ({kind}), which is not read: merge it into "
                    "the model with the library that made it, and give the merged weights"
                )


def layout(state: Iterable[str]) -> str:
    """Name of the file's naming scheme."""
    keys = list(state)
    if any(key.startswith("lora_") for key in keys):
        return "LoRA (kohya)"
    return "LoRA (PEFT)" if any(PEFT in key for key in keys) else "LoRA (diffusers)"


def collect_pairs(
    place: Path,
    state: Mapping[str, Tensor],
    settings: AdapterSettings,
    named: Callable[[str], str],
) -> tuple[list[Pair], set[str]]:
    """Collect the file's pairs and the keys that they use; `named` maps a module of the file to the model's weight.

    Alpha comes from the file's tensors, else from the adapter's settings, else from the rule of the file's format.
    Raises `UserError` where none of them says it.
    """
    ups = {UP.sub("", key): key for key in state if UP.search(key)}
    alphas = {ALPHA.sub("", key): key for key in state if ALPHA.search(key) and state[key].numel() == 1}
    found, used = [], set()
    for key in state:
        module = DOWN.sub("", key)
        if module == key or module not in ups:
            continue
        down, up = state[key], state[ups[module]]
        if min(down.dim(), up.dim()) < 2 or up.numel() != len(up) * len(down):
            raise UserError(
                f"{key} {tuple(down.shape)} and {ups[module]} {tuple(up.shape)} are of different ranks: "
                "save the LoRA again"
            )
        used |= {key, ups[module]}
        told = None
        if module in alphas:
            used.add(alphas[module])
            told = float(state[alphas[module]]) or float(len(down))  # kohya writes 0 for the rank
        scale = settings.scale(place, module, len(down), told, wide=down.dim() > 2 and down.shape[2:].numel() > 1)
        if scale is None and module.startswith(SCALED_BY_RULE):
            scale = 1.0
        if scale is None:
            raise UserError(
                f"{place}: nothing says alpha, by which {key} is scaled: put PEFT's adapter_config.json beside the "
                f"file, or give it with --set alpha={len(down)} (which applies the LoRA at scale 1) or another number"
            )
        found.append(Pair((key, ups[module]), named(module), down, up, scale))
    return found, used


def plain_name(module: str) -> str:
    """Remove PEFT's wrapper and the names of diffusers' old attention processors, whose to_out had no number."""
    module = module.replace(PEFT, "", 1).replace(".base_layer", "")
    return re.sub(r"\.processor\.(to_\w+)$", lambda found: "." + found[1].replace("to_out", "to_out.0"), module)
