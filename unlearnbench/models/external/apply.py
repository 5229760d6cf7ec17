"""Load weights that others unlearned into a model in place. Their layout is recognised by their keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.data.hosted_weights import (
    CONFIGURATION,
    fetch_weights,
    is_address,
    released_weights,
)
from unlearnbench.data.sources import known_hash
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.models.ddpm import ConditionalDDPM, converted, renamed
from unlearnbench.models.ddpm_checkpoint import read_ddpm
from unlearnbench.models.ddpm_folder import LABELS
from unlearnbench.models.external import compvis, lora
from unlearnbench.models.external.adapter_settings import AdapterSettings, read_settings
from unlearnbench.models.external.compvis import FOLDERS, IGNORED, Change, own_weights
from unlearnbench.models.external.kohya import flat_names
from unlearnbench.models.external.state_files import metadata, weight_files
from unlearnbench.models.external.training_files import Form, training_weights
from unlearnbench.models.stable_diffusion import StableDiffusion

WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SD XL"}


def apply_checkpoint(
    model: Diffusion, path: str | Path, *, form: Form | None = None, alpha: float | None = None
) -> str:
    """Load a file's or folder's weights into the model in place; returns the layout's name.

    Into a Stable Diffusion: a diffusers pipeline, U-Net or text-encoder folder; a U-Net or text-encoder state, complete
    or partial, in diffusers' or CompVis's naming; and LoRA, which is merged. VAEs are not changed. Into any other
    model: its state dictionary, complete or partial, or a training checkpoint that holds it; for the CIFAR-10 network
    in the papers' naming as well.

    A number in half precision that equals the model's own number, rounded, leaves that as it is: it was not changed,
    only stored more coarsely. A refused file changes nothing.

    Args:
        model: The original.
        path: The file or folder; or `hub:OWNER/NAME`, with `@REVISION` and `/FILE`; or `released:NAME`.
        form: Which weights of a training checkpoint to take; None for the trained ones where there are both.
        alpha: LoRA's alpha, for files that do not say it.

    Raises `UserError` for files that do not fit.
    """
    place = _place(path)
    if isinstance(model, StableDiffusion):
        layout, state, changes, used, targets = _for_stable_diffusion(place, model, alpha)
    else:
        if alpha is not None:
            raise UserError(f"alpha={alpha:g} is for LoRA, which {type(model).__name__} takes none of: leave it out")
        layout, state, changes, used, targets = _for_other_model(place, model, form)
    _check(place, state, changes, used, targets)
    with torch.no_grad():
        for change in changes:
            _set(targets[change.name], change.value)
    return layout


def checkpoint_fit(
    model: Diffusion, path: str | Path, *, form: Form | None = None, alpha: float | None = None
) -> tuple[int, int]:
    """Load weights as `apply_checkpoint` does; returns how many of the model's tensors they replace, and of how many.

    An untrained model of the same architecture tells whether a file fits. Raises `UserError` for files that do not.
    """
    weights = own_weights(model) if isinstance(model, StableDiffusion) else model.state_dict()
    before = {name: value._version for name, value in weights.items()}  # raised by every change in place
    apply_checkpoint(model, path, form=form, alpha=alpha)
    return sum(value._version > before[name] for name, value in weights.items()), len(weights)


def _set(target: Tensor, value: Tensor) -> None:
    """Copy a value, but not the rounding of a narrower type."""
    if value.is_floating_point() and value.element_size() < target.element_size():
        value = value.to(target.device)
        value = torch.where(target.to(value.dtype) == value, target, value.to(target.dtype))
    target.copy_(value)


Contents = tuple[str, Mapping[str, Tensor], list[Change], set[str], Mapping[str, Tensor]]
"""Layout, the file's tensors, what they change, which keys that takes, and the model's weights by name."""


def _for_stable_diffusion(place: Path, model: StableDiffusion, alpha: float | None) -> Contents:
    state, settings = _read(place)
    lora.require_merged(place, state)
    targets = own_weights(model)
    if lora.is_lora(state):
        adapter = AdapterSettings(settings, alpha)
        layout, changes, used = lora.layout(state), *_low_rank(place, model, state, adapter, targets)
    elif alpha is not None:
        raise UserError(f"{place} holds no LoRA: leave out alpha={alpha:g}")
    elif any(key.startswith(compvis.PREFIXES) for key in state):
        layout, (changes, used) = "CompVis", compvis.translated(model, state)
    else:
        changes = [Change(key, _named(model, key), state[key]) for key in state if not IGNORED.match(key)]
        used = {change.key for change in changes}
        layout = _diffusers_layout(place, changes)
    if not any(change.name in targets for change in changes):
        raise UserError(
            f"{place} is of no known layout, or holds nothing of a U-Net or text encoder (its first keys: "
            f"{', '.join(sorted(state)[:3]) or 'none'}): give a diffusers folder, a U-Net's or text encoder's state "
            "dictionary, a CompVis checkpoint or LoRA"
        )
    return layout, state, changes, used, targets


def _for_other_model(place: Path, model: Diffusion, form: Form | None) -> Contents:
    targets = model.state_dict()
    if isinstance(model, ConditionalDDPM):
        state = read_ddpm(place, form)
        names, values = {renamed(key): key for key in state}, converted(state)
        changes = [Change(names[name], name, value) for name, value in values.items()]
    else:
        files = weight_files(place) if place.is_dir() else [place]
        state = {name: value for file in files for name, value in training_weights(file, form).items()}
        changes = [Change(key, key, value) for key, value in state.items()]
    if not any(change.name in targets for change in changes):
        raise UserError(
            f"{place} holds none of the model's weights (its first keys: {', '.join(sorted(state)[:3]) or 'none'}): "
            f"give a state dictionary of this task's model, which begins with {', '.join(sorted(targets)[:2])}"
        )
    return "state dictionary", state, changes, {change.key for change in changes}, targets


def checkpoint_hash(path: str | Path, expected: str = "") -> str:
    """SHA-256 (hex) of a file, or over a folder's weight files; with that of an adapter's configuration beside them.

    Raises `UserError` if another hash is expected.
    """
    place = _place(path)
    weights = _files(place) if place.is_dir() else [place]
    weights += [labels] if (labels := place / LABELS).is_file() else []
    files = [
        *weights,
        *dict.fromkeys(beside for file in weights if (beside := file.with_name(CONFIGURATION)).is_file()),
    ]
    top = place if place.is_dir() else place.parent
    named = {str(file.relative_to(top)): known_hash(file) for file in files}
    found = digest(named) if place.is_dir() or len(named) > 1 else named[place.name]
    if expected and found != expected:
        raise UserError(
            f"{place} has sha256={found}, not {expected}: give the file that was meant, or leave out sha256"
        )
    return found


def checkpoint_address(path: str | Path) -> str:
    """An address that gives the same weights again: downloads them and names the hub's commit; local paths stay."""
    return fetch_weights(str(path)).address if is_address(str(path)) else str(path)


# ---- files and folders -----------------------------------------------------------------------------------------------


def _place(path: str | Path) -> Path:
    if not str(path):
        raise UserError("no checkpoint is given: name a file or folder with --set path=FILE")
    if is_address(str(path)):
        return fetch_weights(str(path)).place
    place = Path(path).expanduser()
    if not place.exists():
        known = f", or released:{path} for the one that was released" if str(path) in released_weights() else ""
        raise UserError(f"no checkpoint at {place}: give a file or folder that exists with --set path=FILE{known}")
    return place


def _files(folder: Path) -> list[Path]:
    """The weight files of a pipeline's parts, or of a single folder."""
    parts = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    return [file for part in parts or [folder] for file in weight_files(part)]


def _read(place: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Read tensors and what is said about a LoRA among them; the keys of a pipeline start with the part's name."""
    state: dict[str, Tensor] = {}
    settings: dict[str, dict[str, Any]] = {}
    for file in _files(place) if place.is_dir() else [place]:
        part = "" if file.parent == place or file == place else file.parent.name
        start = f"{part}." if part else ""
        found = training_weights(file)
        state |= {start + key.removeprefix(start): value for key, value in found.items()}
        if lora.is_lora(found):
            said = read_settings(file, metadata(file))
            settings |= {(part if name == "" else name): values for name, values in said.items()}
    return state, settings


# ---- names -----------------------------------------------------------------------------------------------------------


def _named(model: StableDiffusion, key: str) -> str:
    """Translate a key of diffusers' naming, with or without its part's name, to the model's name."""
    part, _, rest = key.partition(".")
    if part == "text_encoders":  # this project's own states number them
        number, _, rest = rest.partition(".")
        part = FOLDERS[1:][int(number)] if number in ("0", "1") else key
    if part in FOLDERS:
        return f"{part}.{rest.removeprefix('text_model.')}"
    if not key.startswith(("text_model.", "embeddings.", "encoder.layers.", "final_layer_norm.", "text_projection.")):
        return f"unet.{key}"
    if len(model.text_encoders) > 1:
        raise UserError(
            f"{key} does not say which of the model's two text encoders it is of: "
            "put text_encoder. or text_encoder_2. before its keys"
        )
    return f"text_encoder.{key.removeprefix('text_model.')}"


def _diffusers_layout(place: Path, changes: list[Change]) -> str:
    parts = {change.name.partition(".")[0] for change in changes}
    if place.is_dir() and any((place / part).is_dir() for part in FOLDERS):
        return "diffusers pipeline"
    return "diffusers U-Net" if parts == {"unet"} else "text encoder" if "unet" not in parts else "diffusers parts"


def _low_rank(
    place: Path,
    model: StableDiffusion,
    state: Mapping[str, Tensor],
    settings: AdapterSettings,
    targets: Mapping[str, Tensor],
) -> tuple[list[Change], set[str]]:
    """What a LoRA changes: its products, and the whole weights and biases that PEFT saves beside them."""
    modules = (re.split(r"\.(?=lora_down|lora_up|alpha)", key)[0] for key in state if key.startswith("lora_"))
    flat = flat_names(dict.fromkeys(modules), targets, model.unet.config)

    def named(module: str) -> str:
        return flat.get(module) or _named(model, lora.plain_name(module)) + ".weight"

    found, used = lora.collect_pairs(place, state, settings, named)
    changes = []
    for pair in found:
        weight = targets.get(pair.target)
        if weight is None:
            raise _foreign(place, pair.keys[0], "is no tensor of the model", state)
        if not pair.fits(weight):
            raise _foreign(place, pair.keys[0], f"changes {pair.shape()}, the model's is {tuple(weight.shape)}", state)
        changes.append(Change(pair.keys[0], pair.target, pair.merged(weight)))
        for key in (key for key in state if lora.BIAS.search(key) and lora.BIAS.sub("", key) == pair.module()):
            name = pair.target.removesuffix("weight") + "bias"
            if name in targets and state[key].shape == targets[name].shape:
                changes.append(Change(key, name, targets[name] + pair.scale * state[key].to(targets[name])))
                used.add(key)
    for key in state.keys() - used:
        if lora.PEFT in key and (name := _named(model, lora.plain_name(key))) in targets:
            changes.append(Change(key, name, state[key]))
            used.add(key)
    return changes, used


# ---- refusals --------------------------------------------------------------------------------------------------------


def _check(
    place: Path,
    state: Mapping[str, Tensor],
    changes: list[Change],
    used: set[str],
    targets: Mapping[str, Tensor],
) -> None:
    """Refuse what does not fit before anything is changed."""
    for key in state:
        if key not in used and not IGNORED.match(key):
            raise UserError(f"{place}: nothing is known of its key {key}: take it out if it carries no weights")
    for change in changes:
        target = targets.get(change.name)
        if target is None:
            raise _foreign(place, change.key, "is no tensor of the model", state)
        if change.value.shape != target.shape:
            said = f"is {tuple(change.value.shape)}, the model's {tuple(target.shape)}"
            raise _foreign(place, change.key, said, state)
    by_name: dict[str, str] = {}
    for change in changes:
        if (first := by_name.setdefault(change.name, change.key)) != change.key:
            raise UserError(f"{place}: {first} and {change.key} are both for {change.name}: leave one in the file")
    for key in sorted(used):
        if not state[key].float().isfinite().all():
            raise UserError(
                f"{place}: {key} holds values that are not finite: get the file again, or one from an earlier step"
            )


def _foreign(place: Path, key: str, said: str, state: Mapping[str, Tensor]) -> UserError:
    """Describe a key or shape that the model lacks, and guess the intended model from the width of its text states."""
    widths = {
        value.shape[-1]
        for name, value in state.items()
        if "attn2" in name and re.search(r"to_k(\.weight|\W.*(lora_A|down).*)$", name)
    }
    guess = next((f" ({WIDTHS[width]}?)" for width in widths if width in WIDTHS), "")
    return UserError(
        f"{place}: {key} {said}: it was made for another architecture{guess}; give weights made for this model's"
    )
