"""SD3 and FLUX of a few thousand weights: diffusers' pipelines from configurations, without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support import tiny_sd
from unlearnbench.models.tokenizer import word_tokenizer

SD3_SCHEDULE = {"num_train_timesteps": 1000, "shift": 3.0}
"""scheduler/scheduler_config.json of SD 3 and 3.5."""
FLUX_SCHEDULE = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
"""That of FLUX.1 [dev]; [schnell]'s has shift 1 and no dynamic shifting (edkamesh/FluX-optimized at 2557da9)."""
KINDS = ("sd3", "sd3-medium", "sd3-no-t5", "flux-dev", "flux-schnell")
"""SD 3.5 large; SD 3.5 medium, with attention among image tokens too; SD 3 without T5; FLUX.1 [dev]; [schnell]."""
WIDTH, POOLED, T5_TOKENS = 24, 16, 12


def t5_tokenizer(vocabulary):
    """T5's tokenizer with these words, and every letter."""
    from transformers import T5Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-&/"
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0}
    scores |= {f"▁{word}": -2.0 for word in vocabulary} | dict.fromkeys(letters, -8.0)
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=0, model_max_length=512)


def t5(tokens):
    """Two layers of width 24."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokens),
            d_model=WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.1,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def vae():
    """Two pixels a latent, four channels, with the keys of SD3's and FLUX's."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def transformer(kind: str):
    """Two blocks of both streams, and two of one stream in FLUX."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    if kind.startswith("flux"):
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=POOLED,
            guidance_embeds=kind == "flux-dev",
            axes_dims_rope=(4, 6, 6),
        )
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH if kind != "sd3-no-t5" else 32,
        caption_projection_dim=32,
        pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=12,
        qk_norm=None if kind == "sd3-no-t5" else "rms_norm",
        dual_attention_layers=(0,) if kind == "sd3-medium" else (),
    )


def pipeline(kind: str, vocabulary=tiny_sd.WORDS):
    """The diffusers pipeline of one of `KINDS`, with weights large enough that text and image both count."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline

    torch.manual_seed(0)
    words = word_tokenizer(vocabulary, tiny_sd.TOKENS)
    text = t5_tokenizer(vocabulary)
    parts = {"vae": vae(), "transformer": transformer(kind), "tokenizer": words}
    if kind.startswith("flux"):
        schedule = (
            FLUX_SCHEDULE if kind == "flux-dev" else {**FLUX_SCHEDULE, "shift": 1.0, "use_dynamic_shifting": False}
        )
        parts |= {"text_encoder": tiny_sd.text_encoder(words), "text_encoder_2": t5(text), "tokenizer_2": text}
    else:
        schedule, others = SD3_SCHEDULE, word_tokenizer(vocabulary, tiny_sd.TOKENS, pad="!")
        parts |= {"text_encoder": tiny_sd.text_encoder(words, projected=True), "tokenizer_2": others}
        parts |= {"text_encoder_2": tiny_sd.text_encoder(others, projected=True)}
        with_t5 = kind != "sd3-no-t5"
        parts |= {"text_encoder_3": t5(text) if with_t5 else None, "tokenizer_3": text if with_t5 else None}
    with torch.no_grad():
        for value in parts["transformer"].parameters():
            value.add_(0.1 * torch.randn_like(value))
    cls = FluxPipeline if kind.startswith("flux") else StableDiffusion3Pipeline
    made = cls(scheduler=FlowMatchEulerDiscreteScheduler(**schedule), **parts)
    made.set_progress_bar_config(disable=True)
    return made


def save(folder: Path, kind: str, vocabulary=tiny_sd.WORDS) -> Path:
    """The pipeline as `save_pretrained` lays it out."""
    pipeline(kind, vocabulary).save_pretrained(folder)
    return folder
