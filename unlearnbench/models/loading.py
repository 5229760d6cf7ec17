"""Load Stable Diffusion from a diffusers folder, the hub or a single file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import seed_of
from unlearnbench.models.external.compvis import missing_weights
from unlearnbench.models.external.state_files import first_keys, read_state
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.training import seeded

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def load_stable_diffusion(
    source: str | Path, revision: str | None = None, config: Path | None = None
) -> StableDiffusion:
    """Load SD 1.x, 2.x or XL from a diffusers folder, a hub id (with a revision), or one .safetensors or .ckpt file.

    A single file contains no configuration: `config` is a diffusers folder of the same model, or the hub is asked. The
    safety checker is never loaded.
    """
    path = Path(source)
    with _quiet():
        if path.is_dir():
            return adapted(_from_folder(path))
        if path.suffix in (".safetensors", ".ckpt") or path.is_file():
            return _from_file(path, config)
        return adapted(_from_hub(str(source), revision))


@contextmanager
def _quiet() -> Iterator[None]:
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


def untrained(folder: Path, seed: int) -> StableDiffusion:
    """Build the networks that a diffusers folder describes, with new weights from `seed`."""
    require_folder(folder)
    try:
        return adapted(_described(folder, seed))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be loaded: {one_line(error)}") from error


def _described(folder: Path, seed: int) -> Any:
    from importlib import import_module
    from types import SimpleNamespace

    from diffusers import DiffusionPipeline

    index: dict[str, Any] = dict(DiffusionPipeline.load_config(folder, local_files_only=True))
    parts: dict[str, Any] = {"config": index}
    with seeded(seed_of("architecture", seed) >> 1):
        for name in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
            library, kind = index.get(name) or ("", "")
            if library not in ("diffusers", "transformers"):
                continue  # the model lacks this part
            cls = getattr(import_module(library), kind)
            if name.startswith("tokenizer"):
                parts[name] = cls.from_pretrained(folder / name)
            elif library == "transformers":
                parts[name] = cls(cls.config_class.from_pretrained(folder / name))
            else:
                parts[name] = cls.from_config(cls.load_config(folder / name))
    return SimpleNamespace(**parts)


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


def require_folder(folder: Path) -> None:
    """Raise `UserError` if this is not a diffusers folder."""
    lacking = [part for part in PARTS if not (folder / part).is_dir()]
    if not (folder / "model_index.json").is_file() or lacking:
        what = ", ".join(["model_index.json", *(f"{part}/" for part in PARTS)])
        raise UserError(
            f"{folder} is no diffusers folder (it lacks {', '.join(lacking) or 'model_index.json'}): it needs {what}"
        )


def _from_folder(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    require_folder(folder)
    try:
        index: Any = DiffusionPipeline.load_config(folder, local_files_only=True)
        unwanted = {"safety_checker": None} if "safety_checker" in index else {}  # XL has none and would warn
        return DiffusionPipeline.from_pretrained(
            folder, **unwanted, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be loaded: {one_line(error)}") from error


def _from_hub(name: str, revision: str | None) -> Any:
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(name, revision=revision, safety_checker=None, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is no folder here and cannot be had from the hub ({one_line(error)[:200]}): give a diffusers "
            f"folder with model_index.json and {', '.join(f'{part}/' for part in PARTS)}; for gated models log in with "
            "`hf auth login` first"
        ) from error


def _from_file(path: Path, config: Path | None) -> StableDiffusion:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if not path.is_file():
        raise UserError(f"no weights at {path}: give a .safetensors or .ckpt file that exists")
    keys = first_keys(path)
    wide = config is not None and (config / "text_encoder_2").is_dir()
    cls = StableDiffusionXLPipeline if wide else StableDiffusionPipeline
    try:
        pipeline = cls.from_single_file(
            str(path),
            config=None if config is None else str(config),
            safety_checker=None,
            local_files_only=config is not None,
        )
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, SingleFileComponentError) as error:
        raise UserError(
            f"{path} is no checkpoint of a known layout, or of another model than its config "
            f"(its first keys: {', '.join(keys)}; {one_line(error)[:160]}): give a Stable Diffusion checkpoint, "
            "with the diffusers folder of the same model as config"
        ) from error
    model = adapted(pipeline)
    # diffusers silently keeps random weights for those that the file lacks
    if missing := missing_weights(model, read_state(path)):
        raise UserError(
            f"{path} lacks {len(missing)} of the model's weights, {missing[0]} first (its first keys: "
            f"{', '.join(keys)}): give a whole checkpoint, or with --method checkpoint one that changes a part"
        )
    return model
