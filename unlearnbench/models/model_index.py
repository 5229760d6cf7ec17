"""What a diffusers folder says about itself: model_index.json and the configuration files of its parts.

All of it is checked before any weight is read, so that a model of another kind is refused by file and key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearnbench.errors import UserError, message

NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""Parts that every Stable Diffusion has."""
XL_ONLY = ("text_encoder_2", "tokenizer_2")
PIPELINES = {
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionPipelineSafe": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLImg2ImgPipeline": True,
}
"""Classes of pipelines whose parts draw pictures from text alone, and whether they are XL's."""
SCHEDULES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers whose noise schedule is one of betas. Only that schedule is used; the protocol says how to sample."""
CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", SCHEDULES),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
}
"""Library and classes of each part that is read. An index may name more: safety_checker, feature_extractor and
image_encoder are never loaded, with or without their folders."""
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Those that every scheduler of `unlearnbench.diffusion.schedulers` knows."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
OTHER_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Keys of U-Nets that take more than a noisy image, a timestep and text."""


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `UserError` if the file is missing or is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy the model's own file there") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({(error.strerror or '').lower()}): make it readable") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be loaded, as it is no JSON ({message(error)}): copy the model's own file there"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be loaded, as it holds no JSON object: copy the model's own file there")
    return value


def require_folder(folder: Path) -> dict[str, str]:
    """Check that a diffusers folder has all that Stable Diffusion needs; returns the class of each part that is read.

    Raises `UserError` for a folder that lacks a part, and for an index of another kind of model.
    """
    path = folder / "model_index.json"
    lacking = [part for part in NEEDED if not (folder / part).is_dir()]
    if not path.is_file() or lacking:
        what = ", ".join(["model_index.json", *(f"{part}/" for part in NEEDED)])
        raise UserError(
            f"{folder} is no diffusers folder (it lacks {', '.join(lacking) or 'model_index.json'}): it needs {what}"
        )
    index = read_config(path)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise UserError(
            f"{path}: _class_name is {excerpt(pipeline)}, which cannot be used here: give Stable Diffusion 1.x, 2.x or "
            "XL, as a StableDiffusionPipeline or StableDiffusionXLPipeline"
        )
    parts = (*NEEDED, *XL_ONLY) if PIPELINES[pipeline] else NEEDED
    return {part: _named_class(folder, index, part) for part in parts}


def excerpt(value: Any) -> str:
    """A value as the file has it, on one line and cut if it is long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _named_class(folder: Path, index: Mapping[str, Any], part: str) -> str:
    path, entry = folder / "model_index.json", index.get(part)
    library, known = CLASSES[part]
    want = f"{library}'s {known[0]}" if part != "scheduler" else "a scheduler of diffusers with betas, such as DDIM"
    if not isinstance(entry, list) or entry == [None, None]:
        raise UserError(f"{path}: {part} is {excerpt(entry)}, where {want} is needed: give a whole text-to-image model")
    if len(entry) != 2 or entry[0] != library or entry[1] not in known:
        raise UserError(f"{path}: {part} is {excerpt(entry)}, where {want} is needed: give a model with that part")
    if not (folder / part).is_dir():
        raise UserError(f"{path} names {part}, but there is no folder {part}/: copy it from where the model is from")
    return str(entry[1])


def check_schedule(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a noise schedule that this package cannot sample or train with, by its key in the scheduler's file."""

    def refuse(key: str, remedy: str) -> UserError:
        return UserError(f"{path}: {key} is {excerpt(config[key])}, which cannot be used here: {remedy}")

    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise refuse("prediction_type", f"give a model that predicts {', '.join(PREDICTIONS)}")
    if config.get("trained_betas") is None and config.get("beta_schedule", "linear") not in BETA_SCHEDULES:
        raise refuse("beta_schedule", f"give a model whose schedule is {', '.join(BETA_SCHEDULES)}")
    if config.get("rescale_betas_zero_snr"):
        raise refuse(
            "rescale_betas_zero_snr",
            "methods and guidance work on noise predictions, which a last timestep without signal does not have; give "
            "a model trained without it",
        )
    if config.get("use_flow_sigmas"):
        raise refuse("use_flow_sigmas", "give a model with a noise schedule of betas")


def check_networks(folder: Path, unet: Any, vae: Any, text_encoders: list[Any]) -> None:
    """Refuse networks that do not make a text-to-image model together, by key; takes their configurations.

    `unet` and `vae` are those of diffusers, `text_encoders` those of transformers, one or two.
    """
    path, wide = folder / "unet/config.json", len(text_encoders) == 2
    latents, given = int(vae.latent_channels), (int(unet.in_channels), int(unet.out_channels))
    if given[0] != latents:
        what = "an inpainting U-Net's" if given[0] == 2 * latents + 1 else f"not the autoencoder's {latents}"
        raise UserError(f"{path}: in_channels is {given[0]}, {what}: give a text-to-image model")
    if given[1] != latents:
        raise UserError(
            f"{path}: out_channels is {given[1]}, not the autoencoder's {latents}: give a text-to-image model"
        )
    for key in OTHER_INPUTS:
        if (value := getattr(unet, key, None)) is not None:
            raise UserError(
                f"{path}: {key} is {excerpt(value)}, an input that is never given here: give a U-Net with text alone"
            )
    added = unet.addition_embed_type
    if added != ("text_time" if wide else None):
        raise UserError(
            f"{path}: addition_embed_type is {excerpt(added)}, not that of a model with "
            f"{'two text encoders' if wide else 'one text encoder'}: give parts of one model"
        )
    width, states = unet.cross_attention_dim, sum(int(encoder.hidden_size) for encoder in text_encoders)
    if isinstance(width, int) and width != states:
        raise UserError(
            f"{path}: cross_attention_dim is {width}, but the text states have hidden_size {states}: give parts of "
            "one model"
        )
    for key in ("latents_mean", "latents_std"):
        if getattr(vae, key, None) is not None:
            raise UserError(
                f"{folder / 'vae/config.json'}: {key} is given, but latents are scaled by scaling_factor alone: give "
                "Stable Diffusion 1.x, 2.x or XL"
            )
