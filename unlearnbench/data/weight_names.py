"""Choose the files of one network's weights by their names, in a folder or in a listing of the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
WHOLE = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
"""Names, without suffix, under which diffusers, transformers and PEFT save weights. Variants have a word after it, such
as fp16 and non_ema."""


def choose_weights(names: Sequence[str]) -> list[str]:
    """Choose the files of one state dictionary among these names: one file, or its shards.

    As in diffusers, the plain weights come before variants such as fp16, and safetensors before pickles. Nothing is
    chosen where several files could be meant.
    """
    states: dict[str, list[str]] = {}
    for name in sorted(name for name in names if name.endswith(WEIGHT_SUFFIXES)):
        states.setdefault(re.sub(r"-\d+-of-\d+", "", PurePosixPath(name).name), []).append(name)
    plain = [name + suffix for suffix in WEIGHT_SUFFIXES for name in WHOLE if name + suffix in states]
    others = [name for name in states if name.endswith(".safetensors")] or list(states)
    if plain:
        return states[plain[0]]
    return states[others[0]] if len(others) == 1 else []
