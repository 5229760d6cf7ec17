"""The translation of the original naming at the real models' size, whole and in part."""

from __future__ import annotations

import pytest
import torch

from tests.support import compvis
from unlearnbench.models.external.compvis import UNET, _unet_names

XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MODELS = {
    "SD 1.x": {"cross_attention_dim": 768},
    "SD 2.x": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "SD XL": XL,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_the_real_u_nets_has_its_name(name):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[name])
    original = compvis.unet({own: own for own, _ in unet.named_parameters()}, layers=2)
    assert len(original) == len(list(unet.parameters()))
    for part in ("", "attn2.to_v", "middle_block", "time_embed"):
        wanted = {own: UNET + key for key, own in original.items() if part in key}
        assert wanted
        assert _unet_names(list(wanted.values()), unet.config) == wanted
