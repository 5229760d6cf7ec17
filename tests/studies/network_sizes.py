"""Count what unlearning takes at real size: `python -m tests.studies.network_sizes` writes
unlearnbench/pipeline/networks.toml anew, from networks whose tensors have sizes but no memory.

For each network: parameters by part, and the bytes that are alive at the peak of one loss and its backward pass,
beyond weights and gradients: fixed ones, and those of each image. `--updates` runs whole updates of methods at the
size of SD v1.4 instead, and prints their peaks beside what `run --dry-run` says.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.studies.throughput import sd14
from tests.support.live_bytes import LiveBytes, sized_like_cuda
from tests.support.short_runs import SHORT
from tests.support.tiny_text import TinyText
from unlearnbench import Batch, Diffusion, Task, registry
from unlearnbench.compute.precision import Resources
from unlearnbench.method import Method, run_prepare, run_unlearn
from unlearnbench.methods.saeuron import SAeUron
from unlearnbench.models.flux import Flux
from unlearnbench.models.miniature import SCHEDULE
from unlearnbench.models.sd3 import StableDiffusion3
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.models.text_flow import TextFlow
from unlearnbench.models.tokenizer import word_tokenizer
from unlearnbench.pipeline.memory import GIB, cost_table, peak_of_unlearning
from unlearnbench.tasks.cifar10_class import CLASSES, SIZE
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.techniques.neurons import feed_forward
from unlearnbench.techniques.sparse_autoencoder import SparseAutoencoder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).parents[2] / "unlearnbench" / "pipeline" / "networks.toml"
COMMAND = "python -m tests.studies.network_sizes"
PROMPT = 77
"""Tokens of CLIP's text encoders."""
XL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The U-Net of stabilityai/stable-diffusion-xl-base-1.0, by its unet/config.json."""


def sdxl(tokens: Any) -> StableDiffusion:
    """XL's networks of the published configurations: CLIP's text encoder, and OpenCLIP's bigG with its projection."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    small = sd14(tokens)
    big = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        max_position_embeddings=PROMPT,
        projection_dim=1280,
        hidden_act="gelu",
        eos_token_id=tokens.eos_token_id,
    )
    encoders = [small.text_encoders[0], CLIPTextModelWithProjection(big)]
    return StableDiffusion(UNet2DConditionModel(**XL), small.vae, encoders, [tokens, tokens], SCHEDULE)


SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
"""The transformer of stabilityai/stable-diffusion-3.5-medium, by its transformer/config.json."""
VAE16 = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""The VAE of SD 3.5 and FLUX.1, by their vae/config.json; they differ in scale and shift."""
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
"""T5's encoder in both: text_encoder_2/config.json of edkamesh/FluX-optimized at 2557da9, from FLUX.1 [schnell]."""


class SpokenByT5:
    """T5's tokenizer as far as sizes depend on it: it has no start token."""

    bos_token_id = None
    pad_token_id, eos_token_id, unk_token_id = 0, 1, 2


def t5_xxl() -> Any:
    """T5's encoder, with its embeddings under one name."""
    from transformers import T5Config, T5EncoderModel

    made = T5EncoderModel(T5Config(**T5_XXL))
    made.encoder.embed_tokens.weight = made.shared.weight
    return made


def sd35_medium(tokens: Any) -> Diffusion:
    """SD 3.5 medium's networks: XL's two CLIPs, the first with a projection too, and T5."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    first, second = sdxl(tokens).text_encoders
    first.config.projection_dim = 768
    clips = [CLIPTextModelWithProjection(first.config), second]
    networks = (SD3Transformer2DModel(**SD35_MEDIUM), AutoencoderKL(**VAE16), [*clips, t5_xxl()])
    return StableDiffusion3(*networks, [tokens, tokens, SpokenByT5()], {"shift": 3.0})


def flux_dev(tokens: Any) -> Diffusion:
    """FLUX.1 [dev]'s networks: the defaults of diffusers' class, with guidance embedded; CLIP and T5."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    networks = (FluxTransformer2DModel(guidance_embeds=True), AutoencoderKL(**VAE16))
    return Flux(*networks, [sd14(tokens).text_encoders[0], t5_xxl()], [tokens, SpokenByT5()], {"shift": 3.0})


def papers_cifar(tokens: Any) -> Diffusion:
    """The papers' network on CIFAR-10."""
    from unlearnbench.models.ddpm import ConditionalDDPM

    return ConditionalDDPM(len(CLASSES), SIZE)


STEPS = 2
"""Of an update that is counted: with the second, the optimiser's moments are there from the start."""
KINDS = [(precision, kind) for precision in ("fp32", "bf16") for kind in ("plain", "checkpointing", "maps")]
"""Of activations: the precision of training, and how they are kept."""
NETWORKS: dict[str, Callable[[Any], Diffusion]] = {
    "sd-v1-4": sd14,
    "sdxl-base-1.0": sdxl,
    "sd3.5-medium": sd35_medium,
    "flux.1-dev": flux_dev,
    "cifar10-class": papers_cifar,
    "digits-class": lambda tokens: DigitsClass("3").architecture(0),
    "digits-text": lambda tokens: DigitsText("seven").architecture(0),
}


def clip_tokens() -> Any:
    """A tokenizer of a few words with prompts of CLIP's length."""
    return word_tokenizer(["a", "photo", "of", "cat"], PROMPT)


def parameters(model: Any) -> dict[str, Any]:
    """Numbers of parameters by network, and by the part that a method may train; pixels of a side of an image."""

    def count(network: Any) -> int:
        return sum(value.numel() for value in network.parameters()) if network is not None else 0

    parts, features = {name: sum(value.numel() for value in part) for name, part in model.parts().items()}, None
    if isinstance(model, TextFlow):
        parts |= {"kv": sum(count(linear) for linears in model.kv() for linear in linears)}
    elif hasattr(model, "kv"):
        parts |= {"kv": sum(count(linear) for pair in model.kv() for linear in pair)}
        parts |= {"attn": parts["selfattn"] + parts["xattn"]}
        queries = sum(count(module) for name, module in model.named_modules() if name.endswith("attn2.to_q"))
        parts |= {"selfattn_q": parts["selfattn"] + queries, "selfattn_qkv": parts["selfattn"] + queries + parts["kv"]}
        parts |= {"ffn": sum(layer.weight.numel() for layer in feed_forward(model).values())}
        width = SAeUron().place(model).in_channels
        features = SAeUron().expansion * width
        parts |= {"autoencoder": count(SparseAutoencoder(width, features, 1))}
    text, vae = getattr(model, "text_encoders", None), getattr(model, "vae", None)
    return {
        "denoiser": count(model) - count(text) - count(vae),
        "vae": count(vae),
        "text_encoders": count(text),
        "pixels": model.shape[-1] * getattr(model, "scale_factor", 1),
        **({} if features is None else {"features": features}),
        "parts": parts,
    }


def conditions(model: Any, n: int) -> Tensor:
    """Conditions of n images."""
    if not hasattr(model, "tokens"):
        return torch.zeros(n, dtype=torch.long)
    if isinstance(model, TextFlow):
        return torch.zeros(n, len(model.lengths), max(model.lengths), dtype=torch.long)
    return torch.zeros(n, *((2,) if len(model.text_encoders) == 2 else ()), model.length, dtype=torch.long)


def activations(model: Any, live: LiveBytes, images: int, resources: Resources, maps: bool = False) -> int:
    """Bytes alive at the peak of one denoising loss and its backward pass, beyond weights and gradients.

    With `maps` attention maps are recorded meanwhile, as for losses that read them.
    """
    batch = Batch(torch.zeros(images, *model.shape), conditions(model, images))
    live.restart()
    before = live.now
    with resources.training("cpu"), model.attention() if maps else nullcontext({}) as recorded:
        loss = model.loss(batch) + sum(one.square().mean() for layer in recorded.values() for one in layer)
        loss.backward()  # each gradient is freed at once, see `unkept`
    return live.peak - before


def drawn(model: Any, live: LiveBytes, images: int) -> int:
    """Bytes alive at the peak of a step of guided sampling, beyond weights."""
    live.restart()
    before = live.now
    sampler = replace(model.sampler, steps=1, guidance=2.0)
    with torch.no_grad():
        model.sample(conditions(model, images), list(range(images)), sampler=sampler)
    return live.peak - before


def unkept(model: Any) -> None:
    """Free each parameter's gradient once it is there."""
    for value in model.parameters():
        value.register_post_accumulate_grad_hook(lambda value: setattr(value, "grad", None))


def counted(name: str, kinds: Sequence[tuple[str, str]] = KINDS) -> dict[str, Any]:
    """A network's entry of the table; `kinds` may be fewer than all of those that it has."""
    tokens = clip_tokens()
    with sized_like_cuda():
        model: Any = NETWORKS[name](tokens).train()
        with LiveBytes() as live:
            live.add([*model.parameters(), *model.buffers()])
            unkept(model)
            activations(model, live, 1, Resources())  # what the first call alone makes, such as caches
            found: dict[str, Any] = {
                **parameters(model),
                "drawing": fitted(partial(drawn, model, live)),
                "activations": {},
            }
            for precision, kind in kinds:
                if kind != "maps" or (hasattr(model, "attention") and not isinstance(model, TextFlow)):
                    found["activations"].setdefault(precision, {})[kind] = fitted(
                        in_graph(model, live, precision, kind)
                    )
    return found


def fitted(count: Callable[[int], int]) -> list[int]:
    """Fixed bytes, and those of each image, from one image and from two."""
    one, two = (count(n) for n in (1, 2))
    return [max(0, 2 * one - two), two - one]


def in_graph(model: Any, live: LiveBytes, precision: str, kind: str) -> Callable[[int], int]:
    """Counts `activations` of this kind for some images."""
    resources = Resources(precision, ("checkpointing",) if kind == "checkpointing" else ())  # type: ignore[arg-type]
    resources.equip(model)
    if kind != "checkpointing":
        model.unet.disable_gradient_checkpointing()
    return lambda images: activations(model, live, images, resources, kind == "maps")


class RealSize(TinyText):
    """The tiny task's words on a network of any size, which is the only one there is."""

    def __init__(self, model: StableDiffusion):
        Task.__init__(self, "seven")
        self.original, self.words, self.limit = model, ("seven",), STEPS
        model.sampler = self.protocol.sampler

    def pretrained(self) -> StableDiffusion:
        return self.original

    def architecture(self, seed: int) -> StableDiffusion:
        return copy.deepcopy(self.original)

    def data(self, which: str) -> Batch:
        y = torch.cat([self.captions(side) for side in (("forget", "retain") if which == "both" else (which,))])
        return Batch(torch.zeros(len(y), *self.original.shape), y)


def update(name: str, network: str, resources: Resources) -> tuple[Method, int]:
    """A method with its default settings for nudity, and the bytes alive at the peak of its preparation and steps."""
    cls = registry.load_method(name)
    settings = cls.preset("default", "sd-nudity")
    known = cls.configured(settings).settings()
    few = {key: value for key, value in SHORT.items() if key in known and key not in ("batch_size", "K")}
    method = cls.configured({**settings, **few})
    tokens = word_tokenizer(["a", "photo", "of", "red", "seven", "one", "three", "cat"], PROMPT)

    def ones(tensor: Tensor) -> Any:
        return [ones(row) for row in tensor] if tensor.dim() else 1

    with sized_like_cuda(), mock.patch.object(Tensor, "tolist", ones):
        model: Any = NETWORKS[network](tokens)
        with LiveBytes() as live, resources.training("cpu"):
            task = RealSize(model)
            resources.equip(method.wrap(model, task))
            live.add([*model.parameters(), *model.buffers()])
            live.restart()
            run_unlearn(method, model, task, run_prepare(method, model, task))
            return method, live.peak


def written(found: dict[str, dict[str, Any]]) -> str:
    """The table as TOML."""
    lines = [
        f"# Counted by `{COMMAND}`, which writes this file: parameters, and for each precision the bytes",
        "# that are alive at the peak of a loss and its backward pass beyond weights and gradients, as fixed ones and",
        "# those of each image. `maps`: with attention maps recorded, which checkpointing does not save. `drawing`:",
        "# such bytes at the peak of guided sampling in fp32. `features`: those of saeuron's autoencoder.",
    ]
    for name, entry in found.items():
        lines += ["", f'["{name}"]']
        lines += [f"{key} = {value:_}" for key, value in entry.items() if isinstance(value, int)]
        if drawing := entry.get("drawing"):
            lines.append(f"drawing = [{drawing[0]:_}, {drawing[1]:_}]")
        lines += [f'["{name}".parts]', *(f"{key} = {value:_}" for key, value in entry["parts"].items())]
        for precision, kinds in entry.get("activations", {}).items():
            lines.append(f'["{name}".activations.{precision}]')
            lines += [f"{kind} = [{fixed:_}, {each:_}]" for kind, (fixed, each) in kinds.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="those to count anew; the others keep their numbers")
    parser.add_argument("--updates", metavar="METHOD", nargs="*", help="count whole updates of these methods instead")
    parser.add_argument("--network", default="sd-v1-4", choices=("sd-v1-4", "digits-text"), help="their size")
    parser.add_argument("--memory", nargs="*", default=(), help="with these savings")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    given = parser.parse_args()
    if given.updates is None:
        found = tomllib.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
        for name in given.networks or NETWORKS:
            found[name] = counted(name)
            print(f"{name}: {found[name]['activations']}", flush=True)
            TABLE.write_text(written({name: found[name] for name in NETWORKS if name in found}), encoding="utf-8")
        return
    resources = Resources(given.precision, tuple(given.memory))
    for name in given.updates:
        method, peak = update(name, given.network, resources)
        entry = cost_table()["model"][given.network]
        planned = peak_of_unlearning(entry, method, given.precision, given.memory)
        what = ", ".join([given.precision, *given.memory])
        counted_gib, planned_gib = peak / GIB, planned / GIB
        print(f"| {name} | {what} | {counted_gib:.1f} | {planned_gib:.1f} | {planned / peak - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
