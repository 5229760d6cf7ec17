"""The original (CompVis, Stability) naming of Stable Diffusion's weights, translated by diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from unlearnbench.models.stable_diffusion import StableDiffusion

FOLDERS = ("unet", "text_encoder", "text_encoder_2")
UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
BARE_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.0.", "out.2.")
CLIP = {"cond_stage_model.transformer.": "text_encoder.", "conditioner.embedders.0.transformer.": "text_encoder."}
OPEN_CLIP = {"cond_stage_model.model.": "text_encoder.", "conditioner.embedders.1.model.": "text_encoder_2."}
PREFIXES = (UNET, *CLIP, *OPEN_CLIP, *BARE_UNET)
IGNORED = re.compile(
    r"(first_stage_model|vae|model_ema|denoiser)\.|.*\.(position_ids|logit_scale)$|position_ids$"
    r"|(betas|alphas_cumprod\w*|(sqrt|log)_\w+|posterior_\w+|lvlb_weights|logvar|scale_factor)$"
)
"""The VAE, averaged weights that CompVis does not sample from, schedules and counters."""


class Change(NamedTuple):
    """A weight to set: the file's key, the model's name and the value."""

    key: str
    name: str
    value: Tensor


def own_weights(model: StableDiffusion) -> dict[str, Tensor]:
    """The model's weights by part and name, without `text_model.`, as in transformers 5."""
    found = {f"unet.{name}": value for name, value in model.unet.state_dict().items()}
    for part, encoder in zip(FOLDERS[1:], model.text_encoders, strict=False):
        found |= {f"{part}.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}
    return found


def translated(model: StableDiffusion, state: Mapping[str, Tensor]) -> tuple[list[Change], set[str]]:
    """Translate U-Net and text encoders of an LDM checkpoint with diffusers."""
    from diffusers.loaders.single_file_utils import SD_2_TEXT_ENCODER_KEYS_TO_IGNORE, convert_open_clip_checkpoint

    used = {key for key in state if key in SD_2_TEXT_ENCODER_KEYS_TO_IGNORE}
    unet = {(UNET + key if key.startswith(BARE_UNET) else key): key for key in state}
    changes = [
        Change(unet[key], f"unet.{name}", state[unet[key]])
        for name, key in _unet_names([key for key in unet if key.startswith(UNET)], model.unet.config).items()
    ]
    for key in state.keys() - used:
        for prefix, part in CLIP.items():
            if key.startswith(prefix) and not IGNORED.match(key):
                changes.append(Change(key, part + key[len(prefix) :].removeprefix("text_model."), state[key]))
        for prefix, part in OPEN_CLIP.items():
            if key.startswith(prefix) and not IGNORED.match(key):
                encoder = model.text_encoders[-1]
                made = convert_open_clip_checkpoint(encoder, {key: state[key]}, prefix)
                changes += [Change(key, part + n.removeprefix("text_model."), value) for n, value in made.items()]
    return changes, used | {change.key for change in changes}


def _unet_names(keys: list[str], config: Any) -> dict[str, str]:
    """Map each CompVis key that diffusers knows to diffusers' name.

    Its translation moves values without looking at them, so it is given the keys as values. It counts the blocks and
    expects the embeddings, so a partial U-Net is filled up with empty ones that are removed again.
    """
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING, convert_ldm_unet_checkpoint

    count = len(config["block_out_channels"]) * (config["layers_per_block"] + 1)
    blocks: list[str] = [f"{side}_blocks.{i}" for side in ("input", "output") for i in range(count)]
    blocks += [f"middle_block.{i}" for i in range(3)]
    mapping: Any = DIFFUSERS_TO_LDM_MAPPING["unet"]
    fill = [*(f"{block}.none" for block in blocks), *mapping["addition_embed_type"].values()]
    values = {UNET + key: "" for key in fill} | {key: key for key in keys}
    return {name: key for name, key in convert_ldm_unet_checkpoint(values, config).items() if key}


def translated_autoencoder(model: StableDiffusion, state: Mapping[str, Tensor]) -> list[Change]:
    """Translate the autoencoder of an LDM checkpoint with diffusers; its 1x1 convolutions become matrices."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    given = {key: value for key, value in state.items() if key.startswith(AUTOENCODER)}
    made = convert_ldm_vae_checkpoint(dict(given), model.vae.config)
    return [Change(AUTOENCODER, f"vae.{name}", value) for name, value in made.items()]
