"""What is said about a LoRA outside its tensors: PEFT's adapter_config.json, and headers of diffusers and kohya."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnbench.data.hosted_weights import CONFIGURATION
from unlearnbench.errors import UserError

HEADER = "lora_adapter_metadata"
"""diffusers' key in the header of safetensors (`LORA_ADAPTER_METADATA_KEY` in `loaders/lora_base.py`, 0.42)."""
PARTS = ("unet", "text_encoder", "text_encoder_2")
OF_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of PEFT's `init_lora_weights` that also change the weights below the adapter (`tuners/lora/layer.py`)."""
UNREAD = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
)  # fmt: skip
"""Options of PEFT's `LoraConfig` (0.21) that change what the tensors mean."""
MOST_REPEATS = 3
"""How many `*` and `+` a pattern of module names may have, so that no file can make matching it take for ever."""


@dataclass(frozen=True)
class AdapterSettings:
    """Settings by the model's part ("" for all parts), and the alpha that the user gave."""

    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    given: float | None = None

    def scale(self, place: Path, module: str, rank: int, told: float | None, wide: bool) -> float | None:
        """What a module's product is multiplied by; None where nothing says it.

        Args:
            place: The file, for messages.
            module: The module's name in the file.
            rank: Its rank.
            told: Alpha as the file's tensors say it.
            wide: Whether it is a convolution of more than one pixel, for which kohya has an alpha of its own.

        Raises `UserError` where two sources say different things.
        """
        part, _, rest = module.partition(".")
        settings = self.parts.get(part) or self.parts.get("", {})
        name = (rest if part in PARTS else module).removeprefix("base_model.model.")
        expected = _matched(settings.get("rank_pattern"), name, settings.get("r"), place)
        if expected is not None and expected != rank and told is None:
            raise UserError(
                f"{place}: {module} has rank {rank}, {settings['from']} says {expected:g}: give the settings that "
                "were saved with these weights"
            )
        said = _matched(settings.get("alpha_pattern"), name, settings.get("lora_alpha"), place)
        if wide and "conv_alpha" in settings:
            said = settings["conv_alpha"]
        alpha = said if told is None else told
        if self.given is not None and alpha not in (None, self.given):
            raise UserError(f"{place} says alpha {alpha:g} for {module}: leave out alpha={self.given:g}")
        alpha = self.given if alpha is None else alpha
        if alpha is None:
            return None
        return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def read_settings(file: Path, header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read what is said about the LoRA in a file, by part of the model.

    diffusers' header counts, then adapter_config.json beside the file, then `lora_alpha` or kohya's `ss_network_alpha`
    in the header. Raises `UserError` for settings that are not read, with their name.
    """
    if HEADER in header:
        found = _by_part(_parsed(header[HEADER], f"{HEADER} in the header of {file}"), HEADER)
    elif (beside := file.with_name(CONFIGURATION)).is_file():
        found = {"": {**_parsed(_text(beside), str(beside)), "from": CONFIGURATION}}
    else:
        found = _plain_header(file, header)
    for settings in found.values():
        _require_readable(file, settings)
    return found


def _plain_header(file: Path, header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    name = next((name for name in ("lora_alpha", "ss_network_alpha") if header.get(name) not in (None, "None")), None)
    if name is None:
        return {}
    settings: dict[str, Any] = {"lora_alpha": header[name], "from": f"{name} in its header"}
    if name == "ss_network_alpha":
        arguments = _parsed(header.get("ss_network_args") or "{}", f"ss_network_args in the header of {file}")
        if arguments.get("conv_dim") is not None:
            settings["conv_alpha"] = arguments.get("conv_alpha") or 1.0  # kohya's default
    return {"": settings}


def _require_readable(file: Path, settings: dict[str, Any]) -> None:
    """Refuse settings that are not read; numbers become numbers."""
    where = settings["from"]
    kind = str(settings.get("peft_type") or "LORA").upper()
    if kind != "LORA":
        raise UserError(
            f"{file}: {where} names an adapter of another kind ({kind}), which is not read: merge it into the model "
            "with PEFT's merge_and_unload, and give the merged weights"
        )
    if settings.get("use_dora"):
        raise UserError(
            f"{file}: {where} has use_dora: DoRA is not read; merge it into the model with PEFT's merge_and_unload, "
            "and give the merged weights"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(OF_ANOTHER_BASE):
        raise UserError(
            f"{file}: {where} has init_lora_weights={start}, so the adapter belongs to a base model that was changed "
            "as well: save it with path_initial_model_for_weight_conversion, or give the merged weights"
        )
    for name in UNREAD:
        if settings.get(name):
            raise UserError(
                f"{file}: {where} has {name}, which is not read: merge the adapter into the model with PEFT's "
                "merge_and_unload, and give the merged weights"
            )
    for name in ("r", "lora_alpha", "conv_alpha"):
        if settings.get(name) is not None:
            settings[name] = _number(settings[name], f"{name} in {where} of {file}")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(name) or {}
        if not isinstance(pattern, Mapping):
            raise UserError(f"{name} in {where} of {file} is no JSON object: save the LoRA again")
        settings[name] = {key: _number(value, f"{name} in {where} of {file}") for key, value in pattern.items()}


def _by_part(flat: Mapping[str, Any], origin: str) -> dict[str, dict[str, Any]]:
    """Sort diffusers' settings, whose keys start with the part's name, or have none where one model saved them."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, _, rest = key.partition(".")
        part, name = (part, rest) if part in PARTS and rest else ("", key)
        found.setdefault(part, {"from": origin})[name] = value
    return found


def _matched(pattern: Mapping[str, float] | None, name: str, default: float | None, place: Path) -> float | None:
    """The first entry whose pattern fits the end of the module's name, as PEFT matches them (`get_pattern_key`)."""
    for key, value in (pattern or {}).items():
        if len(re.findall(r"[*+{]", key)) > MOST_REPEATS or "(" in key or len(key) > len(name) + 100:
            raise UserError(f"{place}: the pattern {key[:80]!r} of module names is not read: list the modules' names")
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise UserError(f"{place}: the pattern {key[:80]!r} of module names is not valid ({error})") from error
    return default


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
        if 0 < number < float("inf"):
            return number
    except (TypeError, ValueError):
        pass
    raise UserError(f"{what} is {value!r}, no number above 0: save the LoRA again")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: bring the one that was saved with the adapter") from error


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is no JSON ({error}): save the LoRA again") from error
    if isinstance(value, dict):
        return value
    raise UserError(f"{what} is no JSON object: save the LoRA again")
