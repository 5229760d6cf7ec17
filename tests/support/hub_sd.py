"""Stable Diffusion in the files that the hub has: names and keys of that time, with sizes shrunk and made-up weights.

Everything below was read from copies of the hub's repositories, whose weights are pointers of Git LFS:
- v1-4: wswplay/stable-diffusion-v1-4 at d43bc75
- v1-5: HDRJ-One/runwayml-stable-diffusion-v1-5 at 5fa07f3
- 2-1: jack-op11/stable-diffusion-2-1 at e03f2e1
- 2-1-base: jack-op11/stable-diffusion-2-1-base at 88bb1a4
- xl-base-1.0: HDRJ-One/stable-diffusion-xl-base-1.0 at 4621659

Keys of the weights: huggingface/diffusers at 0.42.1, src/diffusers/models/modeling_utils.py,
_fix_state_dict_keys_on_load (query, key, value, proj_attn), and CompVis/stable-diffusion at 21f890f,
ldm/models/diffusion/ddpm.py:136-157 (schedule), ldm/modules/ema.py:12-24 (averaged weights).
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch

from tests.support import compvis, tiny_sd
from unlearnbench.models.tokenizer import word_tokenizer

WORDS = [*tiny_sd.WORDS, *tiny_sd.NUDITY]
INDEX = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNCHECKED = {
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}
IMAGE_PROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [32, 32, 32, 32],  # 320, 640, 1280, 1280
    "center_input_sample": False,
    "cross_attention_dim": 32,  # 768
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 8,  # 64
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
LATER_UNET = {"dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False}
SD2_UNET = {**UNET, **LATER_UNET, "_diffusers_version": "0.10.0.dev0", "use_linear_projection": True}
SD2_UNET |= {"attention_head_dim": [1, 2, 4, 4]}  # 5, 10, 20, 20
XL_UNET = {
    **UNET,
    **LATER_UNET,
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 8,  # 256
    "attention_head_dim": [1, 2, 4],  # 5, 10, 20
    "block_out_channels": [32, 32, 32],  # 320, 640, 1280
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 64,  # 2048
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 80,  # 2816
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 3],  # 1, 2, 10
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 32, 32, 32],  # 128, 256, 512, 512
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 64,  # 512
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 32,  # 768
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 64,  # 3072
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,  # 12
    "num_hidden_layers": 3,  # 12
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.21.0.dev0",
}
SD2_TEXT = {**TEXT, "hidden_act": "gelu", "num_hidden_layers": 23, "projection_dim": 16}  # 512
SD2_TEXT |= {"transformers_version": "4.25.0.dev0"}
XL_TEXT = {**TEXT, "projection_dim": 32, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0"}
XL_SECOND = {**XL_TEXT, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"}

FOLDER = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json")
TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
ENCODER = ("config.json", "model.safetensors", "pytorch_model.bin")
NETWORK = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
HALF = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16.bin")
SLOW_AVERAGE = ("diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.non_ema.bin")
CHECKER = ("config.json", "model.fp16.safetensors", "model.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")


def below(folder, *names):
    return tuple(f"{folder}/{name}" for name in names)


SD1_FILES = (
    *FOLDER,
    "feature_extractor/preprocessor_config.json",
    *below("safety_checker", *CHECKER),
    *below("text_encoder", *ENCODER, "model.fp16.safetensors", "pytorch_model.fp16.bin"),
    *below("tokenizer", *TOKENIZER),
    *below("unet", *NETWORK, *HALF, *SLOW_AVERAGE),
    *below("vae", *NETWORK, *HALF),
)
SD2_FILES = (
    *FOLDER,
    "feature_extractor/preprocessor_config.json",
    *below("text_encoder", *ENCODER),
    *below("tokenizer", *TOKENIZER),
    *below("unet", *NETWORK),
    *below("vae", *NETWORK),
)
XL_FILES = (
    *FOLDER,
    *below("text_encoder", "config.json", "model.fp16.safetensors", "model.safetensors", "openvino_model.bin"),
    *below("text_encoder_2", "config.json", "model.fp16.safetensors", "model.safetensors", "openvino_model.bin"),
    *below("tokenizer", *TOKENIZER),
    *below("tokenizer_2", *TOKENIZER),
    *below("unet", NETWORK[0], HALF[0], "openvino_model.bin"),
    *below("vae", NETWORK[0], HALF[0]),
    *below("vae_1_0", "config.json", NETWORK[0], HALF[0]),
    *below("vae_encoder", "config.json", "openvino_model.bin"),
)
REPOSITORIES = {
    "v1-4": {
        "files": (*SD1_FILES, "scheduler/.ipynb_checkpoints/scheduler_config-checkpoint.json"),
        "model_index.json": {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2", **INDEX},
        "scheduler": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", **SCHEDULE},
        "unet": {
            **UNET,
            **LATER_UNET,
            "_diffusers_version": "0.12.0.dev0",
            "class_embed_type": None,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "resnet_time_scale_shift": "default",
            "upcast_attention": False,
            "use_linear_projection": False,
        },
        "vae": {**VAE, "_diffusers_version": "0.2.2", "scaling_factor": 0.18215},
        "text_encoder": {"_name_or_path": "openai/clip-vit-large-patch14", **TEXT},
        "pad": ("<|endoftext|>", "<|endoftext|>"),
        "old attention": True,
    },
    "v1-5": {
        "files": (*SD1_FILES, "v1-inference.yaml"),
        "model_index.json": {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", **INDEX},
        "scheduler": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **SCHEDULE},
        "unet": {**UNET, "_diffusers_version": "0.6.0"},
        "vae": {**VAE, "_diffusers_version": "0.6.0", "norm_num_groups": 32},
        "text_encoder": {"_name_or_path": "openai/clip-vit-large-patch14", **TEXT, "projection_dim": 32},
        "pad": ("<|endoftext|>", "<|endoftext|>"),
        "old attention": True,
    },
    "2-1": {
        "files": SD2_FILES,
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.8.0",
            **INDEX,
            **UNCHECKED,
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
        "scheduler": {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.8.0",
            **SCHEDULE,
            "prediction_type": "v_prediction",
        },
        "unet": {**SD2_UNET, "upcast_attention": True},
        "vae": {**VAE, "_diffusers_version": "0.8.0", "norm_num_groups": 32},
        "text_encoder": {"_name_or_path": "hf-models/stable-diffusion-v2-768x768/text_encoder", **SD2_TEXT},
        "pad": ("<|endoftext|>", "!"),
        "old attention": True,
    },
    "2-1-base": {
        "files": SD2_FILES,
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.10.0.dev0",
            **INDEX,
            **UNCHECKED,
        },
        "scheduler": {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.10.0.dev0",
            **SCHEDULE,
            "prediction_type": "epsilon",
        },
        "unet": SD2_UNET,
        "vae": {**VAE, "_diffusers_version": "0.10.0.dev0", "norm_num_groups": 32},
        "text_encoder": {"_name_or_path": "stabilityai/stable-diffusion-2", **SD2_TEXT},
        "pad": ("<|endoftext|>", "!"),
        "old attention": True,
    },
    "xl-base-1.0": {
        "files": XL_FILES,
        "model_index.json": {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": "0.19.0.dev0",
            "force_zeros_for_empty_prompt": True,
            "add_watermarker": None,
            **{name: entry for name, entry in INDEX.items() if name not in ("feature_extractor", "safety_checker")},
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        },
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "_diffusers_version": "0.19.0.dev0",
            **SCHEDULE,
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
        "unet": XL_UNET,
        "vae": {
            **VAE,
            "_diffusers_version": "0.20.0.dev0",
            "_name_or_path": "../sdxl-vae/",
            "force_upcast": True,
            "norm_num_groups": 32,
            "scaling_factor": 0.13025,
        },
        "text_encoder": XL_TEXT,
        "text_encoder_2": XL_SECOND,
        "pad": ("<|endoftext|>", "<|endoftext|>"),
        "pad_2": ("!", "!"),
        "old attention": False,
    },
}
"""By model: the hub's files, the content of its JSON files, the pad tokens that tokenizer_config.json and
special_tokens_map.json name, and whether its autoencoder has the old names of attention."""


# ---- a folder --------------------------------------------------------------------------------------------------------


@cache
def networks(name):
    """The model's networks with random weights, by part; not to be changed."""
    import diffusers
    import transformers

    about = REPOSITORIES[name]
    torch.manual_seed(0)
    made = {
        "unet": diffusers.UNet2DConditionModel.from_config(about["unet"]),
        "vae": diffusers.AutoencoderKL.from_config(about["vae"]),
    }
    for part in ("text_encoder", "text_encoder_2"):
        if part in about:
            cls = getattr(transformers, about[part]["architectures"][0])
            made[part] = cls(cls.config_class(**{**about[part], "vocab_size": len(word_tokenizer(WORDS, 77))}))
    return made


def stored(part, state, old_attention):
    """A part's state under the keys of the hub's files."""
    if part.startswith("text_encoder"):
        whole = ("text_model.", "text_projection.")
        found = {key if key.startswith(whole) else f"text_model.{key}": value for key, value in state.items()}
        return {**found, "text_model.embeddings.position_ids": torch.arange(77)[None]}
    if part == "vae" and old_attention:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    return state


def write_folder(folder: Path, name: str, leave_out=lambda file: False) -> Path:
    """Write a model's files, except those for which `leave_out` is true."""
    from safetensors.torch import save_file

    about, made = REPOSITORIES[name], networks(name)
    for file in about["files"]:
        path = folder / file
        if leave_out(file):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part, _, last = file.rpartition("/")
        part = part.split("/")[0]
        if last == "model_index.json":
            _json(path, about[last])
        elif part.startswith("tokenizer"):
            _tokenizer_file(path, about["pad" + part.removeprefix("tokenizer")])
        elif part == "scheduler":
            _json(path, about[part] if ".ipynb" not in file else {"_class_name": "PNDMScheduler"})
        elif last == "config.json" and part in about:
            more = {"vocab_size": len(word_tokenizer(WORDS, 77))} if part.startswith("text_encoder") else {}
            _json(path, {**about[part], **more})
        elif last == "preprocessor_config.json":
            _json(path, IMAGE_PROCESSOR)
        elif part in made and "openvino" not in last:
            state = stored(part, made[part].state_dict(), about["old attention"])
            if "fp16" in last:
                state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
            if "non_ema" in last:
                state = {key: value + 1 for key, value in state.items()}
            save = save_file if last.endswith(".safetensors") else torch.save
            save({key: value.contiguous() for key, value in state.items()}, path)
        else:
            path.write_bytes(b"not read")
    return folder


def _json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tokenizer_file(path, pads):
    def token(text, **more):
        return {**more, "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    start, end = "<|startoftext|>", "<|endoftext|>"
    if path.name == "special_tokens_map.json":
        _json(
            path,
            {"bos_token": token(start), "eos_token": token(end), "pad_token": pads[1], "unk_token": token(end)},
        )
    elif path.name == "tokenizer_config.json":
        kind = {"__type": "AddedToken"}
        _json(
            path,
            {
                "add_prefix_space": False,
                "bos_token": token(start, **kind),
                "do_lower_case": True,
                "eos_token": token(end, **kind),
                "errors": "replace",
                "model_max_length": 77,
                "pad_token": pads[0],
                "special_tokens_map_file": "./special_tokens_map.json",
                "tokenizer_class": "CLIPTokenizer",
                "unk_token": token(end, **kind),
            },
        )
    else:
        spelling = json.loads(word_tokenizer(WORDS, 77).backend_tokenizer.to_str())["model"]
        if path.name == "vocab.json":
            path.write_text(json.dumps(spelling["vocab"]), encoding="utf-8")
        else:
            lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in spelling["merges"]]
            path.write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


# ---- a single file ---------------------------------------------------------------------------------------------------


def released(name, averaged=False) -> dict[str, torch.Tensor]:
    """The state of a single file with all parts, as it was released; `averaged`: with a second, averaged U-Net."""
    about, made = REPOSITORIES[name], networks(name)
    unet = compvis.unet(made["unet"].state_dict(), layers=2)
    state = {
        **compvis.prefixed("model.diffusion_model.", unet),
        **compvis.prefixed("first_stage_model.", compvis.vae(made["vae"].state_dict(), levels=4)),
    }
    text = made["text_encoder"].state_dict()
    ids = torch.arange(77)[None]
    if name.startswith("v1"):
        state |= compvis.prefixed("cond_stage_model.transformer.", compvis.clip(text))
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    elif name.startswith("2"):
        layers = about["text_encoder"]["num_hidden_layers"]
        tower = compvis.open_clip(text, layers=layers)
        last = f"transformer.resblocks.{layers - 1}."  # the file has one layer more than is used
        more = {key.replace(f".{layers - 1}.", f".{layers}."): value for key, value in tower.items() if last in key}
        tower |= {**more, "text_projection": torch.eye(32)}
        state |= compvis.prefixed("cond_stage_model.model.", tower)
    else:
        state |= compvis.prefixed("conditioner.embedders.0.transformer.", compvis.clip(text))
        state["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = ids
        second = compvis.open_clip(made["text_encoder_2"].state_dict(), layers=3)
        state |= compvis.prefixed("conditioner.embedders.1.model.", second)
    if not name.startswith("xl"):
        buffers = ["betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"]
        buffers += ["sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"]
        buffers += ["sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"]
        buffers += ["posterior_mean_coef1", "posterior_mean_coef2"]
        state |= dict.fromkeys(buffers, torch.zeros(1000))
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000)}
    if averaged:
        state |= {"model_ema.diffusion_model" + key.replace(".", ""): value + 1 for key, value in unet.items()}
    return state


@contextmanager
def _importable(cls):
    """Make a class importable under the name of a library's that need not be installed."""
    words = cls.__module__.split(".")
    modules = {".".join(words[: n + 1]): ModuleType(".".join(words[: n + 1])) for n in range(len(words))}
    setattr(modules[cls.__module__], cls.__name__, cls)
    with mock.patch.dict(sys.modules, modules):
        yield


def write_checkpoint(path: Path, state) -> Path:
    """Write a .ckpt as pytorch_lightning 1.4 did, with its own entries beside `state_dict`.

    What they name was read from AUTOMATIC1111/stable-diffusion-webui at 0593384, modules/safe.py, which lists the
    globals of the released files; 1.4.2 is the version in CompVis/stable-diffusion at 21f890f, environment.yaml.
    """
    import numpy as np

    place = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": place})
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    with _importable(callback):
        torch.save(
            {
                "epoch": 1,
                "global_step": 470000,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": state,
                "callbacks": {callback: {"monitor": "val/loss", "best_model_score": np.float64(0.125)}},
                "optimizer_states": [{"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
                "lr_schedulers": [{"base_lrs": [1e-4], "lr_lambdas": [None]}],
            },
            path,
        )
    return path
