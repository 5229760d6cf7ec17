"""Load Stable Diffusion from a diffusers folder, the hub or a single file, all by the same reader.

Networks are built from the folder's configuration, and every weight of theirs must be in the files, and fit. Nothing
else that an index may name is touched, such as a safety checker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import seed_of
from unlearnbench.models.external.compvis import IGNORED, Change, translated, translated_autoencoder
from unlearnbench.models.external.state_files import read_state, weight_files
from unlearnbench.models.model_index import NEEDED, check_networks, check_schedule, read_config, require_folder
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.reporting import tell
from unlearnbench.training import seeded

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an autoencoder's attention until diffusers 0.12, which the hub's files of SD 1.x and 2.x still have
(huggingface/diffusers at 0.42.1, src/diffusers/models/modeling_utils.py, _fix_state_dict_keys_on_load)."""
NO_WEIGHTS = re.compile(r"(.*\.)?position_ids$|(vision_model|visual_projection|text_projection)\.|logit_scale$")
"""Entries of a text encoder's file that are no weights of it: a counter, and the rest of a whole CLIP."""


def load_stable_diffusion(
    source: str | Path, revision: str | None = None, config: Path | None = None
) -> StableDiffusion:
    """Load SD 1.x, 2.x or XL in float32 from a diffusers folder, a hub id (with a revision), or one .safetensors or
    .ckpt file.

    A single file contains no configuration: `config` is a diffusers folder of the same model, or the hub is asked. The
    safety checker is never loaded.
    """
    path = Path(source)
    with without_progress_bars():
        if path.is_dir():
            return _from_folder(path)
        if path.suffix in (".safetensors", ".ckpt") or path.is_file():
            return _from_file(path, config)
        return _from_folder(_from_hub(str(source), revision))


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of diffusers and transformers within this block: reading takes a moment."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    shown = [library for library in (diffusers, transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks that are built within this block have no storage, and no time is spent on initial values."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        yield


def untrained(folder: Path, seed: int) -> StableDiffusion:
    """Build the networks that a diffusers folder describes, with new weights from `seed`."""
    with seeded(seed_of("architecture", seed) >> 1):
        return _described(folder, nullcontext())


def pixels_of(folder: Path) -> int:
    """Pixels along each side of what a diffusers folder's model draws, by its configuration alone."""
    unet, vae = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
    return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)


def load_tokenizers(folder: Path) -> list[Any]:
    """Load a diffusers folder's tokenizers, one or two, from tokenizer.json or from vocab.json and merges.txt."""
    return [load_clip_tokenizer(folder / part) for part in require_folder(folder) if part.startswith("tokenizer")]


def load_clip_tokenizer(place: Path) -> Any:
    """Load one of CLIP's tokenizers from its folder. Raises `UserError` where its files are missing or damaged."""
    from transformers import CLIPTokenizer

    if not (place / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):  # without them, transformers 5 makes a tokenizer that knows no words
            if not (place / name).is_file():
                raise UserError(f"{place} lacks {name} and tokenizer.json: copy the model's own tokenizer there")
    try:
        return CLIPTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # tokenizers, written in Rust, raises bare exceptions
        raise UserError(
            f"{place} cannot be loaded ({one_line(error)[:160]}): copy the model's own tokenizer there"
        ) from error


def _described(folder: Path, where: AbstractContextManager[Any]) -> StableDiffusion:
    """Build the model that a folder's configuration describes, its networks within `where`; refuse other models."""
    names = require_folder(folder)
    path = folder / "scheduler/scheduler_config.json"
    schedule = read_config(path)
    check_schedule(path, schedule)
    with where:
        networks = {part: new_network(folder / part, names[part]) for part in NETWORKS if part in names}
    encoders = [network for part, network in networks.items() if part.startswith("text_encoder")]
    unet, vae = networks["unet"], networks["vae"]
    check_networks(folder, unet.config, vae.config, [encoder.config for encoder in encoders])
    tokenizers = load_tokenizers(folder)
    positions = int(encoders[0].config.max_position_embeddings)
    for part, tokenizer in zip(("tokenizer", "tokenizer_2"), tokenizers, strict=False):
        if tokenizer.model_max_length > positions:
            raise UserError(
                f"{folder / part / 'tokenizer_config.json'}: model_max_length is {tokenizer.model_max_length}, but the "
                f"text encoder has {positions} positions: copy the model's own file there"
            )
    index = read_config(folder / "model_index.json")
    pipeline = SimpleNamespace(
        **networks,
        **dict(zip(("tokenizer", "tokenizer_2"), tokenizers, strict=False)),
        scheduler=_constructed(path, lambda: _class("diffusers", names["scheduler"]).from_config(schedule)),
        # StableDiffusionXLPipeline takes zeros where its index does not say
        config={"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", len(encoders) == 2)},
    )
    return adapted(pipeline)


def _class(library: str, name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(library), name)


def new_network(place: Path, name: str) -> Any:
    """Build the network of this class that a part's config.json describes, without reading weights."""
    path = place / "config.json"
    config = read_config(path)
    if (written := config.get("_class_name", name)) != name:
        raise UserError(f"{path} is that of {written!r}, where model_index.json names {name}: copy the part's own file")
    if place.name.startswith("text_encoder"):
        text = config.get("text_config", config)  # a whole CLIP's has the text model's inside
        text = {key: value for key, value in text.items() if key not in ("dtype", "torch_dtype")}  # it is float32 here
        cls = _class("transformers", name)
        return _constructed(path, lambda: cls(cls.config_class.from_dict(text)))
    return _constructed(path, lambda: _class("diffusers", name).from_config(config))


def _constructed(path: Path, build: Callable[[], Any]) -> Any:
    """Build from a configuration file; what its values make the libraries raise is told with the file's name."""
    try:
        return build()
    except Exception as error:  # values of any kind reach the networks' code
        raise UserError(
            f"{path} cannot be loaded ({one_line(error)[:160]}): copy the model's own file there"
        ) from error


def adapted(pipeline: Any) -> StableDiffusion:
    """Wrap a diffusers pipeline's parts as a `Diffusion`."""
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    tokenizers = [getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2")]
    return StableDiffusion(
        pipeline.unet,
        pipeline.vae,
        [encoder for encoder in encoders if encoder is not None],
        [tokenizer for tokenizer in tokenizers if tokenizer is not None],
        dict(pipeline.scheduler.config),
        zero_null=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
    )


def as_pipeline(model: StableDiffusion) -> Any:
    """Build a diffusers pipeline from a model's parts, without a safety checker."""
    import diffusers

    scheduler = getattr(diffusers, str(model.schedule.get("_class_name")), diffusers.DDIMScheduler)
    parts = {"vae": model.vae, "unet": model.unet, "scheduler": scheduler.from_config(model.schedule)}
    for number, (encoder, tokenizer) in enumerate(zip(model.text_encoders, model.tokenizers, strict=True)):
        end = "_2" if number else ""
        parts |= {f"text_encoder{end}": encoder, f"tokenizer{end}": tokenizer}
    if len(model.text_encoders) == 2:
        return diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=model.zero_null)
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def weight_paths(folder: Path) -> list[Path]:
    """List the weight files of a diffusers folder that `load_stable_diffusion` reads."""
    return [file for part in require_folder(folder) if part in NETWORKS for file in weight_files(folder / part)]


def _from_folder(folder: Path) -> StableDiffusion:
    model = _described(folder, without_weights())
    for part, network in _parts(model).items():
        place = folder / part
        changes = []
        for file in weight_files(place):
            state = read_state(file)
            changes += [Change(key, f"{part}.{_present(part, key)}", state[key]) for key in state]
        fill_network(network, part, changes, place)
    return model


def _present(part: str, key: str) -> str:
    """The present name of a weight in a part's own file."""
    if part != "vae":
        return key.removeprefix("text_model.")
    return re.sub(
        r"(\.attentions\.\d+)\.(\w+)\.", lambda found: f"{found[1]}.{OLD_ATTENTION.get(found[2], found[2])}.", key
    )


def _parts(model: StableDiffusion) -> dict[str, nn.Module]:
    encoders = dict(zip(NETWORKS[2:], model.text_encoders, strict=False))
    return {"unet": model.unet, "vae": model.vae, **encoders}


def fill_network(network: nn.Module, part: str, changes: Iterable[Change], place: Path | str) -> None:
    """Give a network without storage its weights, in float32. Raises `UserError` unless all are there and fit."""
    own = {f"{part}.{name.removeprefix('text_model.')}": name for name in network.state_dict()}
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    state = {}
    for change in changes:
        name = own.get(change.name)
        if (
            name is None
            and part.startswith("text_encoder")
            and NO_WEIGHTS.match(change.key.removeprefix("text_model."))
        ):
            continue
        if name is None:
            raise UserError(f"{place}: {change.key} is no weight of its {part}: give weights that fit config.json")
        if change.value.shape != shapes[name]:
            raise UserError(
                f"{place}: {change.key} is {tuple(change.value.shape)}, the {part}'s is {tuple(shapes[name])}: give "
                "weights and configuration of one model"
            )
        state[name] = change.value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if missing := sorted(shapes.keys() - state.keys()):
        raise UserError(f"{place} lacks {len(missing)} weights of the {part}, {missing[0]} first: give whole weights")
    network.load_state_dict(state, assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # position ids, which no file holds
            parent, _, last = name.rpartition(".")
            ids = torch.arange(buffer.numel(), dtype=buffer.dtype).view(buffer.shape)
            network.get_submodule(parent).register_buffer(last, ids, persistent=False)
    network.eval()


def _from_hub(name: str, revision: str | None) -> Path:
    """Download the files of a model on the hub that are read, into the hub's own cache."""
    from diffusers import DiffusionPipeline

    try:
        unread = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
        return Path(DiffusionPipeline.download(name, revision=revision, **unread))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is no folder here and cannot be had from the hub ({one_line(error)[:200]}): give a diffusers "
            f"folder with model_index.json and {', '.join(f'{part}/' for part in NEEDED)}; for gated models log in "
            "with `hf auth login` first"
        ) from error


def _from_file(path: Path, config: Path | None) -> StableDiffusion:
    if not path.is_file():
        raise UserError(f"no weights at {path}: give a .safetensors or .ckpt file that exists")
    state = read_state(path)
    said = f"{path} (its first keys: {', '.join(sorted(state)[:3]) or 'none'})"
    model = _described(config or _configuration_from_hub(said, state), without_weights())
    try:
        changes, used = translated(model, state)
        changes += translated_autoencoder(model, state)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{said} is no checkpoint of a known layout, or of another model than its config ({one_line(error)[:160]}):"
            " give a Stable Diffusion checkpoint, with the diffusers folder of the same model as config"
        ) from error
    for part, network in _parts(model).items():
        fill_network(network, part, [change for change in changes if change.name.startswith(f"{part}.")], said)
    if unknown := sorted(key for key in state if key not in used and not IGNORED.match(key)):
        raise UserError(f"{path}: nothing is known of its key {unknown[0]}: take it out if it carries no weights")
    if any(key.startswith("model_ema.diffusion_model") for key in state):
        tell(f"{path} holds averaged weights too; the others are used, as the scripts of CompVis and diffusers do")
    return model


def _configuration_from_hub(said: str, state: dict[str, Tensor]) -> Path:
    """Download the configuration of the model that a file's keys tell, as diffusers does for single files."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from huggingface_hub import snapshot_download

    name = fetch_diffusers_config(state)["pretrained_model_name_or_path"]
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{said} contains no configuration, and that of {name} cannot be had from the hub "
            f"({one_line(error)[:160]}): give the diffusers folder of the same model as config"
        ) from error
