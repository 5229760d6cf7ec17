"""Stable Diffusion of a few thousand weights, saved in the hub's layout and loaded by the same code as the real one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from unlearnbench.models.miniature import SCHEDULE
from unlearnbench.models.tokenizer import word_tokenizer

WORDS = ["a", "an", "the", "photo", "picture", "of", "in", "number"]
WORDS += ["red", "blue", "green", "seven", "three", "one", "person", "cat", "nudity"]
NUDITY = ["naked", "erotic", "sexual", "wearing", "clothes"]
"""Further words of the task on nudity, and of the phrases that SAFREE erases there."""
NUDITY += ["acts", "content", "meant", "to", "arouse", "excitement", "pornography", "art", "lustful", "seductive"]
NUDITY += ["orgasmic", "libido", "kinky", "orientation", "attraction", "intercourse", "pleasure", "fantasy", "carnal"]
NUDITY += ["desires", "gratification"]
TOKENS = 16


def text_encoder(tokens, projected: bool = False):
    """Three layers of width 16."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=16,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def unet(width: int, **more):
    """Two levels, cross-attention on one of them, 8x8 latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
        **more,
    )


def vae():
    """Two pixels a latent, four channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=0.18215,
    )


def save(folder: Path, kind: str, vocabulary: list[str] = WORDS) -> Path:
    """A pipeline of kind sd1, sd2 (v-prediction) or sdxl, as `save_pretrained` lays it out."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    torch.manual_seed(0)
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prediction)
    words = word_tokenizer(vocabulary, TOKENS)
    if kind == "sdxl":
        others = word_tokenizer(vocabulary, TOKENS, pad="!")
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
        pipeline = StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(words),
            text_encoder_2=text_encoder(others, projected=True),
            tokenizer=words,
            tokenizer_2=others,
            unet=unet(32, projection_class_embeddings_input_dim=6 * 8 + 16, **more),
            scheduler=scheduler,
        )
    else:
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(words),
            tokenizer=words,
            unet=unet(16),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def world(folder: Path, kind: str) -> Path:
    """A folder for `--task digits-text --pretrained`: an untrained pipeline, the shipped judge, a manifest."""
    from unlearnbench.hashing import state_hash
    from unlearnbench.storage.weights import load_state
    from unlearnbench.tasks._digits.words import vocabulary
    from unlearnbench.tasks.digits_text import DigitsText

    save(folder, kind, vocabulary())
    shutil.copy(DigitsText("seven").folder / "judge.safetensors", folder)
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*.safetensors")}
    hashes = {name: state_hash(load_state(file)) for name, file in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"seed": 5, "recipe": {}, "hashes": hashes}))
    return folder
