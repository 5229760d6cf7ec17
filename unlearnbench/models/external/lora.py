"""Merge LoRA files: W + (alpha / rank) up @ down (Hu et al., ICLR 2022).

Done here because diffusers loads a LoRA through PEFT, as adapter modules, and only warns about keys that it does not
know. A checkpoint of weights needs neither: the product is added to the weights, and unknown keys are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearnbench.errors import UserError

DOWN = re.compile(r"(?:\.lora_A(?:\.default)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight$")
UP = re.compile(r"(?:\.lora_B(?:\.default)?|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight$")
ALPHA = re.compile(r"\.alpha$")
KOHYA = {"unet.": ("lora_unet_",), "text_encoder.": ("lora_te_", "lora_te1_"), "text_encoder_2.": ("lora_te2_",)}


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
    alpha: float

    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that the pair was made for."""
        return (self.up.shape[0], *self.down.shape[1:])

    def fits(self, weight: Tensor) -> bool:
        """Whether the product has the weight's shape. A 1x1 convolution counts as a linear layer."""
        rank, rows = len(self.down), len(self.up)
        full = rows == len(weight) and self.down.numel() * rows == weight.numel() * rank
        return full and (self.down.dim() == 2 or self.shape()[2:] == weight.shape[2:])

    def merged(self, weight: Tensor) -> Tensor:
        """Return W + (alpha / rank) up @ down, computed in at least single precision."""
        kind = torch.promote_types(weight.dtype, torch.float32)
        up, down = (part.to(weight.device, kind).flatten(1) for part in (self.up, self.down))
        return weight.to(kind) + (self.alpha / len(self.down)) * (up @ down).view_as(weight)


def is_lora(state: Iterable[str]) -> bool:
    """Whether any key belongs to a low-rank pair."""
    return any(DOWN.search(key) or UP.search(key) for key in state)


def layout(state: Iterable[str]) -> str:
    """Name of the file's naming scheme."""
    return "LoRA (kohya)" if any(key.startswith("lora_") for key in state) else "LoRA (diffusers)"


def collect_pairs(
    state: Mapping[str, Tensor], remarks: Mapping[str, str], weights: Iterable[str], named: Callable[[str], str]
) -> tuple[list[Pair], set[str]]:
    """Collect the file's pairs and the keys that they use; `named` maps a diffusers module to the model's name.

    Alpha comes from the file, else from the adapter's configuration in the header; otherwise it is the rank.
    """
    flat = {
        start + ("" if part == "unet." else "text_model_") + name[len(part) : -len(".weight")].replace(".", "_"): name
        for name in weights
        for part, starts in KOHYA.items()
        if name.startswith(part) and name.endswith(".weight")
        for start in starts
    }
    config = _config(remarks)
    ups = {UP.sub("", key): key for key in state if UP.search(key)}
    alphas = {ALPHA.sub("", key): key for key in state if ALPHA.search(key) and state[key].numel() == 1}
    found, used = [], set()
    for key in state:
        module = DOWN.sub("", key)
        if module == key or module not in ups:
            continue
        target = flat.get(module) or named(_plain(module)) + ".weight"
        down, up = state[key], state[ups[module]]
        if min(down.dim(), up.dim()) < 2 or up.numel() != len(up) * len(down):
            raise UserError(
                f"{key} {tuple(down.shape)} and {ups[module]} {tuple(up.shape)} are of different ranks: "
                "save the LoRA again"
            )
        used |= {key, ups[module]}
        if module in alphas:
            alpha = float(state[alphas[module]])
            used.add(alphas[module])
        else:
            alpha = _configured(config, module, len(down))
        found.append(Pair((key, ups[module]), target, down, up, alpha))
    return found, used


def _config(remarks: Mapping[str, str]) -> Mapping[str, Any]:
    """The adapter's configuration, which diffusers writes into the header."""
    try:
        config = json.loads(remarks.get("lora_adapter_metadata", "{}"))
        if isinstance(config, dict):
            return config
    except ValueError as error:
        raise UserError(
            f"lora_adapter_metadata in the file's header is no JSON ({error}): save the LoRA again"
        ) from error
    raise UserError("lora_adapter_metadata in the file's header is no JSON object: save the LoRA again")


def _plain(module: str) -> str:
    """Remove PEFT's wrapper and the names of diffusers' old attention processors, whose to_out had no number."""
    module = module.removeprefix("base_model.model.")
    return re.sub(r"\.processor\.(to_\w+)$", lambda found: "." + found[1].replace("to_out", "to_out.0"), module)


def _configured(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha from the adapter's configuration, whose keys start with the part's name; the rank if it has none."""
    part, _, rest = module.removeprefix("base_model.model.").partition(".")
    alpha = config.get(f"{part}.lora_alpha", rank)
    for pattern, value in (config.get(f"{part}.alpha_pattern") or {}).items():
        if rest == pattern or rest.endswith(f".{pattern}"):
            alpha = value
    return float(alpha) * (rank**0.5 if config.get(f"{part}.use_rslora") else 1.0)
