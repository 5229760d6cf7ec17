"""Pick a model's weights out of what training code saves: beside optimisers, averages and wrappers' prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from unlearnbench.errors import UserError
from unlearnbench.models.external.state_files import named_tensors, read_file

Form = Literal["raw", "ema"]
"""The weights that the optimiser changed, or their exponential moving average."""

MODELS = ("state_dict", "model_state_dict", "model", "module")
"""Entries that hold the model: Lightning's and CompVis's, PyTorch's tutorials', DeepSpeed's."""
AVERAGES = ("ema_state_dict", "state_dict_ema", "ema_model", "model_ema", "ema", "shadow")
OPTIMISERS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim")
"""Entries of a file that was saved while training; its weights are raw unless it says otherwise."""
AVERAGED, TRAINED = ("ema_model.", "model_ema.", "ema."), "online_model."
"""Prefixes of averages in the same dictionary as the weights, and ema-pytorch's prefix of the weights."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, torch.compile, FSDP and activation checkpointing put into names, at any depth."""
BOOKKEEPING = ("n_averaged", "decay", "num_updates", "initted", "step")
"""Numbers that averages keep among the tensors."""


class _Found(NamedTuple):
    """The weights of a file in both forms, as far as it holds them."""

    raw: Mapping[str, Any] | None
    average: Mapping[str, Any] | None
    said: bool
    """Whether the file says which of the two its weights are."""


def training_weights(path: Path, form: Form | None = None) -> dict[str, Tensor]:
    """Read the model's weights by name from safetensors or a pickle, without the wrappers' prefixes.

    Understood are a state dictionary; dictionaries that hold one beside the trainer's entries; and the lists
    `[model, optimiser, (epoch,) step, average]` of the DDIM code. `form` chooses between the trained weights and their
    average; None takes the trained ones where there are both. A file that holds one state and does not say which it is
    has that for either form.

    Raises `UserError` for a file without the asked form, or without weights.
    """
    found = _taken_apart(path, read_file(path))
    if form == "ema" and found.average is None and found.said:
        raise UserError(
            f"{path} has no running mean ({_kind(found)}): ask for its raw weights, as --protocol raw and "
            "--protocol salun-iclr24 do"
        )
    if form == "raw" and found.raw is None:
        raise UserError(f"{path} has a running mean only: use a protocol that takes it, such as --protocol default")
    raw, average = (
        None if part is None else _without_wrappers(path, named_tensors(path, part))
        for part in (found.raw, found.average)
    )
    if average is None or (raw is not None and form != "ema"):
        return raw or {}
    return {**{name: value for name, value in (raw or {}).items() if name not in average}, **average}


def _taken_apart(path: Path, value: Any) -> _Found:
    if isinstance(value, (list, tuple)):
        return _listed(path, value)
    if not isinstance(value, Mapping):
        raise UserError(f"{path} holds a {type(value).__name__}: save the model's state dictionary")
    raw = next((value[key] for key in MODELS if isinstance(value.get(key), Mapping)), None)
    average = next((_average(path, key, value[key]) for key in AVERAGES if _is_average(value.get(key))), None)
    if raw is None and average is None:
        return _by_prefix(value)
    inner = _taken_apart(path, raw) if raw is not None else _Found(None, None, said=False)
    said = average is not None or any(key in value for key in OPTIMISERS)
    return _Found(inner.raw, average or inner.average, said or inner.said)


def _listed(path: Path, states: list[Any] | tuple[Any, ...]) -> _Found:
    """Take `[model, optimiser, step]` apart, with the average as the last entry if there is one."""
    if not states or not _is_state(states[0]):
        said = ", ".join(type(each).__name__ for each in states) or "nothing"
        raise UserError(
            f"{path} is no training checkpoint (it is a list of {said}): give a list of the model's state, the "
            "optimiser's, a step, the average's, or a state dictionary"
        )
    average = states[-1] if len(states) > 3 and _is_state(states[-1]) else None
    return _Found(states[0], average, said=True)


def _by_prefix(value: Mapping[str, Any]) -> _Found:
    """Take a flat dictionary apart that has the average under a prefix."""
    average = {key: item for key, item in value.items() if key.startswith(AVERAGED)}
    if not average:
        return _Found(value, None, said=False)
    raw = {key.removeprefix(TRAINED): item for key, item in value.items() if key not in average}
    bare = {key[len(next(start for start in AVERAGED if key.startswith(start))) :]: average[key] for key in average}
    return _Found(raw or None, bare, said=True)


def _is_average(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _average(path: Path, key: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The named weights of an average, which its class may keep one level deeper."""
    if isinstance(value.get("shadow_params"), (list, tuple)):
        raise UserError(
            f"{path}: {key} lists its averages without names: copy them into the model (`ema.copy_to`) and save its "
            "state dictionary"
        )
    inner = next((value[name] for name in ("shadow", *MODELS) if isinstance(value.get(name), Mapping)), value)
    return {name: item for name, item in inner.items() if name not in BOOKKEEPING}


def _without_wrappers(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in state.items():
        name = bare_name(key)
        if name in BOOKKEEPING:
            continue
        if name in origin:
            raise UserError(f"{path}: {origin[name]} and {key} are both for {name}: leave one in the file")
        found[name], origin[name] = value, key
    return found


def bare_name(key: str) -> str:
    """Remove what wrappers put into a weight's name, and Lightning's `model.`; CompVis's own names stay."""
    name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    return name if name.startswith("model.diffusion_model.") else name.removeprefix("model.")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _kind(found: _Found) -> str:
    return f"it holds {len(found.raw or {})} weights, as an optimiser left them"
