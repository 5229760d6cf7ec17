"""Load weights that others unlearned into a Stable Diffusion in place. Their layout is recognised by their keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.hashing import digest, file_hash
from unlearnbench.models.external import compvis, lora
from unlearnbench.models.external.compvis import FOLDERS, IGNORED, Change, own_weights
from unlearnbench.models.external.state_files import metadata, read_state, weight_files
from unlearnbench.models.stable_diffusion import StableDiffusion

WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SD XL"}


def apply_checkpoint(model: Diffusion, path: str | Path) -> str:
    """Load a file's or folder's weights into the model in place; returns the layout's name.

    Accepts a diffusers pipeline, U-Net or text-encoder folder; a U-Net or text-encoder state, complete or partial, in
    diffusers' or CompVis's naming; and LoRA, which is merged. VAEs are not changed. A refused file changes nothing.
    """
    if not isinstance(model, StableDiffusion):
        raise Unsupported(f"{type(model).__name__} is no Stable Diffusion, for which alone checkpoints are read")
    place = _place(path)
    state, remarks = _read(place)
    targets = own_weights(model)
    if lora.is_lora(state):
        layout, changes, used = lora.layout(state), *_low_rank(place, model, state, remarks, targets)
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
    _check(place, state, changes, used, targets)
    with torch.no_grad():
        for change in changes:
            targets[change.name].copy_(change.value)
    return layout


def checkpoint_hash(path: str | Path, expected: str = "") -> str:
    """SHA-256 (hex) of a file, or over a folder's weight files. Raises `UserError` if another hash is expected."""
    place = _place(path)
    files = {str(file.relative_to(place)): _hash(file) for file in _files(place)} if place.is_dir() else {}
    found = digest(files) if files else _hash(place)
    if expected and found != expected:
        raise UserError(
            f"{place} has sha256={found}, not {expected}: give the file that was meant, or leave out sha256"
        )
    return found


def _hash(file: Path) -> str:
    about = file.stat()
    return _hashed(file.resolve(), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _hashed(file: Path, size: int, changed: int) -> str:
    """Hash a checkpoint once per process, not once per seed: it may have gigabytes."""
    return file_hash(file)


# ---- files and folders -----------------------------------------------------------------------------------------------


def _place(path: str | Path) -> Path:
    if not str(path):
        raise UserError("no checkpoint is given: name a file or folder with --set path=FILE")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"no checkpoint at {place}: give a file or folder that exists with --set path=FILE")
    return place


def _files(folder: Path) -> list[Path]:
    """The weight files of a pipeline's parts, or of a single folder."""
    parts = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    return [file for part in parts or [folder] for file in weight_files(part)]


def _read(place: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; the keys of a pipeline start with the part's name."""
    if not place.is_dir():
        return read_state(place), metadata(place)
    state: dict[str, Tensor] = {}
    remarks: dict[str, str] = {}
    for file in _files(place):
        part = "" if file.parent == place else f"{file.parent.name}."
        state |= {part + key: value for key, value in read_state(file).items()}
        remarks |= metadata(file)
    return state, remarks


# ---- names -----------------------------------------------------------------------------------------------------------


def _named(model: StableDiffusion, key: str) -> str:
    """Translate a key of diffusers' naming, with or without its part's name, to the model's name."""
    part, _, rest = key.partition(".")
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
    remarks: Mapping[str, str],
    targets: Mapping[str, Tensor],
) -> tuple[list[Change], set[str]]:
    found, used = lora.collect_pairs(state, remarks, targets, lambda module: _named(model, module))
    changes = []
    for pair in found:
        weight = targets.get(pair.target)
        if weight is None:
            raise _foreign(place, pair.keys[0], "is none of the model's", state)
        if not pair.fits(weight):
            raise _foreign(place, pair.keys[0], f"changes {pair.shape()}, the model's is {tuple(weight.shape)}", state)
        changes.append(Change(pair.keys[0], pair.target, pair.merged(weight)))
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
            raise _foreign(place, change.key, "is none of the model's", state)
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
