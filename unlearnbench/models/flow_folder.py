"""Load Stable Diffusion 3, 3.5 and FLUX.1 from a diffusers folder; each part is checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import seed_of
from unlearnbench.models.configuration import configuration, configuration_digest
from unlearnbench.models.external.compvis import Change
from unlearnbench.models.external.state_files import read_state, weight_files
from unlearnbench.models.flux import PATCH, Flux
from unlearnbench.models.flux import T5_TOKENS as FLUX_T5_TOKENS
from unlearnbench.models.loading import (
    fill_network,
    load_clip_tokenizer,
    new_network,
    without_progress_bars,
    without_weights,
)
from unlearnbench.models.model_index import excerpt, read_config
from unlearnbench.models.sd3 import T5_TOKENS as SD3_T5_TOKENS
from unlearnbench.models.sd3 import StableDiffusion3
from unlearnbench.models.text_flow import TextFlow, encoder_lengths
from unlearnbench.training import seeded

CLIP_TOKENIZERS, T5_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5TokenizerFast", "T5Tokenizer")
SHARED = {"vae": ("AutoencoderKL",), "scheduler": ("FlowMatchEulerDiscreteScheduler",), "tokenizer": CLIP_TOKENIZERS}


class FlowPipeline(NamedTuple):
    """What a kind of pipeline consists of."""

    title: str
    parts: Mapping[str, tuple[str, ...]]
    """The classes that each part may have."""
    optional: frozenset[str]
    """Parts that an index may leave out, as [null, null]."""


FLOW_PIPELINES = {
    "StableDiffusion3Pipeline": FlowPipeline(
        "Stable Diffusion 3",
        {
            **SHARED,
            "transformer": ("SD3Transformer2DModel",),
            "text_encoder": ("CLIPTextModelWithProjection",),
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "text_encoder_3": ("T5EncoderModel",),
            "tokenizer_2": CLIP_TOKENIZERS,
            "tokenizer_3": T5_TOKENIZERS,
        },
        frozenset({"text_encoder_3", "tokenizer_3"}),
    ),
    "FluxPipeline": FlowPipeline(
        "FLUX.1",
        {
            **SHARED,
            "transformer": ("FluxTransformer2DModel",),
            "text_encoder": ("CLIPTextModel",),
            "text_encoder_2": ("T5EncoderModel",),
            "tokenizer_2": T5_TOKENIZERS,
        },
        frozenset(),
    ),
}
"""Pipelines by the class in model_index.json, as the hub's folders name it."""
NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
OTHER_FOLDERS = ("transformer", "text_encoder_3", "tokenizer_3")
"""Those that `configuration` does not know."""
OTHER_PATHS = ("invert_sigmas", "stochastic_sampling")
"""Keys of a scheduler that sample another path than the straight one from noise to image."""
TIED, EMBEDDING = "encoder.embed_tokens.weight", "shared.weight"
"""Two names of T5's token embeddings. The hub's files have the second alone, or both."""


def require_flow_folder(folder: Path) -> dict[str, str]:
    """Check that a diffusers folder has all parts of SD3 or FLUX; returns "pipeline" and the class of each part.

    Raises `UserError` for another kind of model, a part that is missing, and weights that are quantised.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise UserError(f"{folder} is no diffusers folder (it lacks model_index.json): give the model's whole folder")
    index = read_config(path)
    name = index.get("_class_name")
    if name not in FLOW_PIPELINES:
        raise UserError(
            f"{path}: _class_name is {excerpt(name)}, which cannot be used here: give Stable Diffusion 3 or 3.5, "
            "or FLUX.1, as a StableDiffusion3Pipeline or FluxPipeline"
        )
    pipeline, found = FLOW_PIPELINES[name], {"pipeline": str(name)}
    for part, classes in pipeline.parts.items():
        entry = index.get(part)
        if part in pipeline.optional and entry in (None, [None, None]):
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in classes:
            raise UserError(
                f"{path}: {part} is {excerpt(entry)}, where {pipeline.title} has a {classes[0]}: give a whole "
                "text-to-image model of that kind"
            )
        if not (folder / part).is_dir():
            raise UserError(
                f"{path} names {part}, but there is no folder {part}/: copy it from where the model is from"
            )
        found[part] = str(entry[1])
    if ("text_encoder_3" in found) != ("tokenizer_3" in found):
        raise UserError(f"{path} names one of text_encoder_3 and tokenizer_3 without the other: give both, or neither")
    for part in (part for part in NETWORKS if part in found):
        if "quantization_config" in read_config(folder / part / "config.json"):
            raise UserError(
                f"{folder / part / 'config.json'}: quantization_config is given, and quantised weights cannot be "
                "trained or compared here: give the weights that they were made from"
            )
    return found


def load_flow(folder: Path) -> TextFlow:
    """Load SD 3, 3.5 or FLUX.1 in float32 from a diffusers folder. Every weight must be there, and fit."""
    with without_progress_bars():
        model = _described(folder, without_weights())
        for part, network in flow_networks(model).items():
            _read(network, part, folder / part)
        return model.train(False)


def untrained_flow(folder: Path, seed: int) -> TextFlow:
    """Build the networks that a diffusers folder describes, with new weights from `seed`."""
    with seeded(seed_of("architecture", seed) >> 1):
        return _described(folder, nullcontext())


def flow_networks(model: TextFlow) -> dict[str, nn.Module]:
    """A model's networks by their folders' names."""
    encoders = dict(zip(NETWORKS[2:], model.text_encoders, strict=False))  # SD3 may lack T5, and FLUX has two
    return {"transformer": model.transformer, "vae": model.vae, **encoders}


def as_flow_pipeline(model: TextFlow) -> Any:
    """Build a diffusers pipeline from a model's parts."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(model.flow_schedule.config))
    parts: dict[str, Any] = {"scheduler": scheduler, **flow_networks(model)}
    parts |= dict(zip(("tokenizer", "tokenizer_2", "tokenizer_3"), model.tokenizers, strict=False))
    if isinstance(model, Flux):
        return diffusers.FluxPipeline(**parts)
    return diffusers.StableDiffusion3Pipeline(**{"text_encoder_3": None, "tokenizer_3": None, **parts})


def flow_weight_paths(folder: Path) -> list[Path]:
    """List the weight files of a diffusers folder that `load_flow` reads."""
    return [file for part in require_flow_folder(folder) if part in NETWORKS for file in weight_files(folder / part)]


def latent_shape(folder: Path) -> tuple[int, int, int]:
    """The shape (C, H, W) of the latents of a diffusers folder's model, by its configuration alone."""
    transformer, vae = (read_config(folder / part / "config.json") for part in ("transformer", "vae"))
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    side = int(transformer.get("sample_size") or vae["sample_size"] // scale)  # FLUX has no size: it has the VAE's
    return int(vae["latent_channels"]), side, side


def flow_pixels_of(folder: Path) -> int:
    """Pixels along each side of what a diffusers folder's model draws, by its configuration alone."""
    vae = read_config(folder / "vae/config.json")
    return latent_shape(folder)[1] * int(2 ** (len(vae["block_out_channels"]) - 1))


def load_flow_tokenizers(folder: Path) -> list[Any]:
    """Load a diffusers folder's tokenizers: CLIP's, one or two, and then T5's if the model has it."""
    names = require_flow_folder(folder)
    return [
        _t5_tokenizer(folder / part) if names[part] in T5_TOKENIZERS else load_clip_tokenizer(folder / part)
        for part in ("tokenizer", "tokenizer_2", "tokenizer_3")
        if part in names
    ]


def _t5_tokenizer(place: Path) -> Any:
    from transformers import T5Tokenizer

    if not (place / "tokenizer.json").is_file():  # spiece.model alone needs another library to read
        raise UserError(f"{place} lacks tokenizer.json: copy the model's own tokenizer there")
    try:
        return T5Tokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # tokenizers, written in Rust, raises bare exceptions
        raise UserError(
            f"{place} cannot be loaded ({one_line(error)[:160]}): copy the model's own tokenizer there"
        ) from error


def _described(folder: Path, where: AbstractContextManager[Any]) -> TextFlow:
    """Build the model that a folder's configuration describes, its networks within `where`."""
    names = require_flow_folder(folder)
    path = folder / "scheduler/scheduler_config.json"
    schedule = read_config(path)
    for key in OTHER_PATHS:
        if schedule.get(key):
            raise UserError(f"{path}: {key} is {excerpt(schedule[key])}, which cannot be sampled: give false")
    with where:
        networks = {part: new_network(folder / part, names[part]) for part in NETWORKS if part in names}
    _check_widths(folder, networks, flux=names["pipeline"] == "FluxPipeline")
    encoders = [network for part, network in networks.items() if part.startswith("text_encoder")]
    cls: Any = Flux if names["pipeline"] == "FluxPipeline" else StableDiffusion3
    model: TextFlow = cls(networks["transformer"], networks["vae"], encoders, load_flow_tokenizers(folder), schedule)
    return model


def _check_widths(folder: Path, networks: Mapping[str, Any], flux: bool) -> None:
    """Refuse parts that do not make a text-to-image model together, by the key of the transformer's configuration."""
    config, latents = networks["transformer"].config, int(networks["vae"].config.latent_channels)
    t5 = networks.get("text_encoder_2" if flux else "text_encoder_3")
    pooled = (
        int(networks["text_encoder"].config.hidden_size)
        if flux
        else sum(int(networks[part].config.projection_dim) for part in ("text_encoder", "text_encoder_2"))
    )
    wanted = {"in_channels": latents * PATCH**2 if flux else latents, "pooled_projection_dim": pooled}
    if t5 is not None:
        wanted["joint_attention_dim"] = int(t5.config.d_model)
    for key, value in wanted.items():
        if int(getattr(config, key)) != value:
            raise UserError(
                f"{folder / 'transformer/config.json'}: {key} is {getattr(config, key)}, where the other parts make "
                f"it {value}: give parts of one text-to-image model"
            )


def _read(network: Any, part: str, place: Path) -> None:
    """Give a network without storage the weights of its folder."""
    state = {key: value for file in weight_files(place) for key, value in read_state(file).items()}
    tied = EMBEDDING in dict(network.named_parameters())
    if tied and EMBEDDING in state:
        state[TIED] = state[EMBEDDING]
    keys = ((key, key.removeprefix("text_model.")) for key in state)
    fill_network(network, part, [Change(key, f"{part}.{name}", state[key]) for key, name in keys], place)
    if tied:
        network.encoder.embed_tokens.weight = network.shared.weight


def token_lengths(folder: Path, tokenizers: Sequence[Any]) -> list[int]:
    """Tokens that each encoder of a diffusers folder's model reads, by its configuration alone."""
    distilled = bool(read_config(folder / "transformer/config.json").get("guidance_embeds", False))
    is_flux = require_flow_folder(folder)["pipeline"] == "FluxPipeline"
    return encoder_lengths(tokenizers, FLUX_T5_TOKENS[distilled] if is_flux else SD3_T5_TOKENS)


def flow_configuration(folder: Path) -> dict[str, str]:
    """As `configuration`, with the parts that only these models have."""
    files = [path for part in OTHER_FOLDERS for path in (folder / part).glob("*.json")]
    own = {
        path.relative_to(folder).as_posix(): configuration_digest(path)
        for path in files
        if not path.name.endswith(".index.json")
    }
    return dict(sorted({**configuration(folder), **own}.items()))
