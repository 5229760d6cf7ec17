"""Folders and single files in the hub's own shape load as diffusers loads them, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import hub_sd
from tests.support.unlearned_sd import same
from unlearnbench.diffusion.schedulers import SCHEDULERS, Repeating
from unlearnbench.errors import UserError
from unlearnbench.models.configuration import configuration
from unlearnbench.models.external.apply import apply_checkpoint
from unlearnbench.models.loading import load_stable_diffusion, load_tokenizers, pixels_of, untrained, weight_paths
from unlearnbench.reporting import told_by
from unlearnbench.tasks.sd_nudity import PROTOCOLS

PROMPTS, SEEDS = ["a photo of a cat", "red seven!"], [3, 4_000_000_001]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A model's folder by its name, written once."""
    place = tmp_path_factory.mktemp("hub")
    return cache(lambda name: hub_sd.write_folder(place / name, name))


@pytest.fixture(scope="module", params=hub_sd.REPOSITORIES)
def repository(request, hub):
    """A model's name and its folder."""
    return request.param, hub(request.param)


@pytest.fixture(scope="module")
def loaded(hub):
    """The model of a folder by its name, loaded once; not to be changed."""
    return cache(lambda name: load_stable_diffusion(hub(name)).requires_grad_(False))


@pytest.fixture(scope="module")
def v14(hub):
    return hub("v1-4")


@pytest.fixture(scope="module")
def original(loaded):
    return loaded("v1-4")


@pytest.fixture
def copy(v14, tmp_path):
    return shutil.copytree(v14, tmp_path / "copy")


def refused(source, *said, **options):
    with pytest.raises(UserError) as caught:
        load_stable_diffusion(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in said:
        assert word in text, text


def edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- what loads ------------------------------------------------------------------------------------------------------


def test_a_folder_draws_what_diffusers_draws_from_it(repository, loaded):
    import diffusers

    name, folder = repository
    model = loaded(name)
    index = json.loads((folder / "model_index.json").read_text())
    unread = {key: None for key in ("safety_checker", "feature_extractor") if key in index}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **unread)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    sampler = Repeating(2, guidance=3.0)
    with torch.inference_mode():
        ours = model.sample(model.tokens(PROMPTS), SEEDS, sampler=sampler)
        pictures = model.decode(ours)
    for i, prompt in enumerate(PROMPTS):
        drawn = pipeline(
            prompt,
            height=64,
            width=64,
            num_inference_steps=sampler.steps,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(SEEDS[i]),
            output_type="latent",
        ).images
        torch.testing.assert_close(ours[i : i + 1], drawn, rtol=1e-3, atol=1e-3)
        with torch.inference_mode():
            picture = pipeline.vae.decode(drawn / pipeline.vae.config.scaling_factor).sample
        torch.testing.assert_close(pictures[i : i + 1], picture, rtol=1e-3, atol=1e-3)
    assert model.prediction == ("v_prediction" if name == "2-1" else "epsilon")


SINGLE_FILES = [
    ("v1-4", "ckpt with averaged weights"),
    ("v1-5", "safetensors"),
    ("2-1", "ckpt"),
    ("2-1-base", "safetensors"),
    ("xl-base-1.0", "half"),
]


@pytest.mark.parametrize(("name", "form"), SINGLE_FILES)
def test_a_single_file_is_the_same_model_and_says_where_averaged_weights_are_left(hub, loaded, name, form, tmp_path):
    state = hub_sd.released(name, averaged=form.endswith("averaged weights"))
    if form.startswith("ckpt"):
        path = hub_sd.write_checkpoint(tmp_path / "model.ckpt", state)
    else:
        path = tmp_path / "model.safetensors"
        if form == "half":
            state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    told = []
    with told_by(told.append):
        found, wanted = load_stable_diffusion(path, config=hub(name)).state_dict(), loaded(name).state_dict()
    assert len(told) == form.endswith("averaged weights")
    assert all(str(path) in line and "averaged" in line for line in told)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value.half().float() if form == "half" else value), key


@pytest.mark.parametrize("name", ["v1-4", "2-1", "xl-base-1.0"])
def test_files_and_folders_of_the_hub_applied_as_unlearned_weights(hub, name, tmp_path):
    folder = hub(name)
    model = load_stable_diffusion(folder).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = hub_sd.write_checkpoint(tmp_path / "model.ckpt", hub_sd.released(name, averaged=True))
    for source, layout in ((path, "CompVis"), (folder, "diffusers pipeline")):
        for weight in (*model.unet.parameters(), *model.text_encoders.parameters()):
            weight.zero_()
        assert apply_checkpoint(model, source) == layout
        same(model, before)


def keep(*kept):
    """Leave out all weights but those whose names end in one of these."""
    ends = (".safetensors", ".bin")
    return lambda file: file.endswith(ends) and not file.endswith(kept)


FORMS = {
    "pickles": (keep("model.bin", "pytorch_model.bin"), False),
    "half precision": (keep(".fp16.safetensors"), True),
    "half precision as pickles": (keep(".fp16.bin"), True),
    "plain pickles before half precision": (keep("model.bin", ".fp16.safetensors"), False),
    "without parts that are never read": (
        lambda file: file.startswith(("safety_checker/", "feature_extractor/")),
        False,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_hubs_variants(original, form, tmp_path):
    leave_out, half = FORMS[form]
    folder = hub_sd.write_folder(tmp_path / "model", "v1-4", leave_out)
    found = load_stable_diffusion(folder).state_dict()
    for key, value in original.state_dict().items():
        assert torch.equal(found[key], value.half().float() if half else value), key
    assert all(file.is_file() for file in weight_paths(folder)) and len(weight_paths(folder)) == 3


def test_an_index_as_diffusers_writes_it_today(original, copy):
    none = {key: [None, None] for key in ("feature_extractor", "image_encoder", "safety_checker")}
    edit(copy / "model_index.json", **none, _name_or_path="a/b", requires_safety_checker=False)
    same(load_stable_diffusion(copy), original.state_dict())


def test_shards_are_one_state_and_a_missing_one_is_named(v14, original, copy):
    place = copy / "unet"
    weights = load_file(place / "diffusion_pytorch_model.safetensors")
    for file in place.glob("diffusion_pytorch_model.*"):
        file.unlink()
    keys, shards = sorted(weights), [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [dict.fromkeys(keys[: len(keys) // 2], shards[0]), dict.fromkeys(keys[len(keys) // 2 :], shards[1])]
    for shard, names in zip(shards, halves, strict=True):
        save_file({key: weights[key] for key in names}, place / shard)
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": {**halves[0], **halves[1]}})
    )
    same(load_stable_diffusion(copy), original.state_dict())
    (place / shards[1]).unlink()
    refused(copy, f"{place} lacks {shards[1]}", "copy it there")
    with pytest.raises(UserError, match="lacks"):
        apply_checkpoint(load_stable_diffusion(v14), place)
    (place / shards[0]).unlink()
    refused(copy, str(place), "diffusion_pytorch_model.safetensors.index.json", "none of its shards")


def test_what_is_loaded_decides_the_identity_of_the_weights(v14, copy, tmp_path):
    from unlearnbench.tasks.sd_nudity import SDNudity

    def identity(folder):
        return SDNudity("nudity", protocol="smoke", data=tmp_path, checkpoint=folder).model_identity()

    before = identity(v14)
    assert identity(copy) == before
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.bin"):
        (copy / "unet" / name).write_bytes(b"never read")
    (copy / "safety_checker/config.json").write_text("never read")
    assert identity(copy) == before
    pickles = hub_sd.write_folder(tmp_path / "pickles", "v1-4", FORMS["pickles"][0])
    first = identity(pickles)
    assert first != before and configuration(pickles) == configuration(v14)
    weights = torch.load(pickles / "vae/diffusion_pytorch_model.bin")
    torch.save({key: value * 2 for key, value in weights.items()}, pickles / "vae/diffusion_pytorch_model.bin")
    assert identity(pickles) != first


def test_an_untrained_model_is_of_the_same_kind(repository, loaded):
    name, folder = repository
    model, trained = untrained(folder, 1), loaded(name)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in trained.state_dict().items()
    }
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert pixels_of(folder) == model.shape[1] * model.scale_factor == 64
    assert (model.prediction, model.shape, model.zero_null) == (trained.prediction, trained.shape, trained.zero_null)


@pytest.mark.parametrize("kind", ["slow", "fast", "both"])
def test_a_tokenizer_of_either_kind(v14, kind, copy):
    expected = load_tokenizers(v14)[0](PROMPTS).input_ids
    place = copy / "tokenizer"
    if kind != "slow":
        load_tokenizers(v14)[0].backend_tokenizer.save(str(place / "tokenizer.json"))
    if kind == "fast":
        (place / "vocab.json").unlink()
        (place / "merges.txt").unlink()
    (tokenizer,) = load_tokenizers(copy)
    assert tokenizer(PROMPTS).input_ids == expected and tokenizer.model_max_length == 77
    assert expected[0] != expected[1] and len(expected[0]) == 7, "words of the vocabulary are single tokens"


def test_pad_tokens_are_those_of_the_special_tokens_map(repository):
    name, folder = repository
    pads = [tokenizer.pad_token for tokenizer in load_tokenizers(folder)]
    assert pads == {"2-1": ["!"], "2-1-base": ["!"], "xl-base-1.0": ["<|endoftext|>", "!"]}.get(name, ["<|endoftext|>"])


# ---- the hub ---------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_read_like_a_folder(v14, original, monkeypatch):
    from diffusers import DiffusionPipeline

    asked = []

    def download(name, revision=None, **unread):
        asked.append((name, revision))
        assert not any(value is not None for value in unread.values())
        return str(v14)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    same(load_stable_diffusion("CompVis/stable-diffusion-v1-4", "133a221"), original.state_dict())
    assert asked == [("CompVis/stable-diffusion-v1-4", "133a221")]


def test_the_configuration_of_a_single_file_comes_from_the_hub(v14, original, monkeypatch, tmp_path):
    import huggingface_hub

    path = tmp_path / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in hub_sd.released("v1-4").items()}, path)
    asked = []

    def snapshot(name, allow_patterns):
        asked.append(name)
        if len(asked) > 1:
            raise OSError("cannot connect")
        return str(v14)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    same(load_stable_diffusion(path), original.state_dict())
    assert asked[0].endswith("stable-diffusion-v1-5"), "diffusers knows all of 1.x by that name"
    refused(path, str(path), "cannot connect", "as config")


# ---- noise schedules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_how_a_model_was_saved_does_not_change_how_a_protocol_samples(original, copy, scheduler):
    path = copy / "scheduler/scheduler_config.json"
    edit(
        path,
        timestep_spacing="trailing",
        steps_offset=0,
        set_alpha_to_one=True,
        clip_sample=True,
        use_karras_sigmas=True,
        thresholding=True,
        solver_order=1,
    )
    saved = json.loads((copy / "model_index.json").read_text())
    model, sampler = load_stable_diffusion(copy), Repeating(3, guidance=2.0, scheduler=scheduler)
    assert saved["scheduler"] == ["diffusers", "PNDMScheduler"]
    with torch.inference_mode():
        one, two = (each.sample(each.tokens(PROMPTS), SEEDS, sampler=sampler) for each in (original, model))
    assert torch.equal(original.timesteps(sampler), model.timesteps(sampler))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("spacing", [None, "leading", "trailing"])  # what files have, and what would move most
def test_latents_are_those_of_the_papers_own_scheduler(copy, spacing):
    """As OPTML-Group/Diffusion-MU-Attack@5a3e5d3, src/execs/generate_dataset.py:57,72-110 sets it up and uses it,
    whatever a folder's scheduler says: save_pretrained writes "leading" where v1.4's own configuration has nothing.
    """
    import diffusers

    if spacing is not None:
        edit(copy / "scheduler/scheduler_config.json", timestep_spacing=spacing, steps_offset=1)
    samplers = {p.sampler for p in PROTOCOLS.values() if p.sampler.scheduler == "lms"}
    assert samplers == {Repeating(50, guidance=7.5, scheduler="lms")}, "what every protocol with LMS has"
    model, sampler = load_stable_diffusion(copy), replace(samplers.pop(), steps=5)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    lms = diffusers.LMSDiscreteScheduler(**schedule, num_train_timesteps=1000)
    with torch.inference_mode():
        ours = model.sample(model.tokens(PROMPTS), SEEDS, sampler=sampler)
        for i, seed in enumerate(SEEDS):
            states = torch.cat([model.null(1).states, model.embed(model.tokens(PROMPTS[i : i + 1])).states])
            lms.set_timesteps(sampler.steps)
            x = torch.randn((1, *model.shape), generator=torch.Generator().manual_seed(seed)) * lms.init_noise_sigma
            for t in lms.timesteps:
                both = lms.scale_model_input(torch.cat([x, x]), t)
                plain, asked = model.unet(both, t, encoder_hidden_states=states).sample.chunk(2)
                x = lms.step(plain + 7.5 * (asked - plain), t, x).prev_sample
            assert (ours[i] - x[0]).norm() <= 1e-4 * x.norm()


def test_a_configuration_without_clip_sample_draws_unclipped_latents(original, copy):
    path = copy / "scheduler/scheduler_config.json"
    old = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "_diffusers_version": "0.2.2", **old}))
    model, sampler = load_stable_diffusion(copy), Repeating(2, guidance=2.0)
    with torch.inference_mode():
        one, two = (each.sample(each.tokens(PROMPTS), SEEDS, sampler=sampler) for each in (original, model))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


# ---- what is refused -------------------------------------------------------------------------------------------------

SCHEDULER = "scheduler/scheduler_config.json"
BAD_KEYS = [
    ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "text-to-image|StableDiffusionPipeline"),
    ("model_index.json", {"_class_name": "FluxPipeline"}, "StableDiffusionPipeline"),
    ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "StableDiffusionPipeline"),
    ("model_index.json", {"_class_name": None}, "StableDiffusionPipeline"),
    ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "text_encoder_2"),
    ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "CLIPTextModel"),
    ("model_index.json", {"text_encoder": [None, None]}, "text-to-image"),
    ("model_index.json", {"unet": ["my_networks", "UNet2DConditionModel"]}, "diffusers"),
    ("model_index.json", {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "AutoencoderKL"),
    ("model_index.json", {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "betas"),
    ("model_index.json", {"scheduler": "PNDMScheduler"}, "betas"),
    (SCHEDULER, {"prediction_type": "flow_prediction"}, "epsilon"),
    (SCHEDULER, {"beta_schedule": "exponential"}, "scaled_linear"),
    (SCHEDULER, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "trained without it"),
    (SCHEDULER, {"use_flow_sigmas": True}, "betas"),
    ("unet/config.json", {"in_channels": 9}, "inpainting"),
    ("unet/config.json", {"in_channels": 8}, "text-to-image"),
    ("unet/config.json", {"out_channels": 8}, "text-to-image"),
    ("unet/config.json", {"class_embed_type": "timestep"}, "text alone"),
    ("unet/config.json", {"time_cond_proj_dim": 256}, "text alone"),
    ("unet/config.json", {"encoder_hid_dim": 16}, "text alone"),
    ("unet/config.json", {"addition_embed_type": "text"}, "one model"),
    ("unet/config.json", {"cross_attention_dim": 1024}, "one model"),
    ("unet/config.json", {"_class_name": "AutoencoderKL"}, "copy the part's own"),
    ("unet/config.json", {"norm_num_groups": 7}, "copy the model's own"),
    ("vae/config.json", {"latents_mean": [0.0, 0.0, 0.0, 0.0]}, "Stable Diffusion 1.x"),
    ("text_encoder/config.json", {"num_hidden_layers": "many"}, "copy the model's own"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": 512}, "copy the model's own"),
]


@pytest.mark.parametrize(
    ("file", "changes", "remedy"), BAD_KEYS, ids=[f"{file}-{next(iter(changes))}" for file, changes, _ in BAD_KEYS]
)
def test_a_key_of_another_kind_of_model_is_named_with_its_file(v14, tmp_path, file, changes, remedy):
    folder = tmp_path / "model"
    shutil.copytree(v14, folder, copy_function=link)
    path = folder / file
    text = json.dumps({**json.loads(path.read_text()), **changes})
    path.unlink()
    path.write_text(text)
    key = next(iter(changes))
    named = "text_encoder_2" if changes.get(key) == "StableDiffusionXLPipeline" else key
    with pytest.raises(UserError) as caught:
        load_stable_diffusion(folder)
    said = str(caught.value)
    assert said.count(str(path)) == 1 and "\n" not in said
    assert any(word in said for word in remedy.split("|")), said
    if remedy not in ("copy the model's own", "copy the part's own") or key == "model_max_length":
        assert named in said


def test_the_folder_that_describes_a_single_file_is_checked_too(copy, tmp_path):
    edit(copy / "unet/config.json", in_channels=9)
    path = hub_sd.write_checkpoint(tmp_path / "model.ckpt", {"a": torch.zeros(1)})
    refused(path, str(copy / "unet/config.json"), "in_channels", config=copy)


def link(source, target):
    Path(target).hardlink_to(source)


@pytest.mark.parametrize("kind", ["missing", "no JSON", "a list"])
@pytest.mark.parametrize("file", ["unet/config.json", "text_encoder/config.json", SCHEDULER])
def test_a_configuration_file_that_is_none(copy, file, kind):
    (copy / file).write_text({"no JSON": "{", "a list": "[]"}.get(kind, ""))
    if kind == "missing":
        (copy / file).unlink()
    refused(copy, str(copy / file), "copy the model's own file")


def test_parts_that_the_index_names_must_be_there(hub, copy, tmp_path):
    folder = shutil.copytree(hub("xl-base-1.0"), tmp_path / "xl")
    for part in ("tokenizer_2", "text_encoder_2"):
        shutil.rmtree(folder / part)
        refused(folder, f"names {part}", f"{part}/", "copy it")
    (copy / "text_encoder/model.safetensors").unlink()
    for file in (copy / "text_encoder").glob("*model.*"):
        file.unlink()
    refused(copy, str(copy / "text_encoder"), "no .safetensors")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_that_would_know_no_words_is_refused(copy, name):
    (copy / "tokenizer" / name).unlink()
    refused(copy, str(copy / "tokenizer"), name, "copy the model's own tokenizer")


def test_a_damaged_tokenizer_is_refused(copy):
    (copy / "tokenizer/vocab.json").write_text("{")
    refused(copy, str(copy / "tokenizer"), "copy the model's own tokenizer")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_truncated_file_is_named(copy, suffix):
    path = copy / f"vae/diffusion_pytorch_model.{suffix}"
    if suffix == "bin":
        path.with_suffix(".safetensors").unlink()
    path.write_bytes(path.read_bytes()[:-1000])
    refused(copy, str(path), "get the file again")


def test_a_pointer_of_git_lfs_says_how_to_get_the_weights(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3438167540\n")
    refused(copy, str(path), "git lfs pull")


def test_weights_that_do_not_fit_are_named_by_key(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for change, said in (
        ({"conv_in.bias": torch.zeros(5)}, ("conv_in.bias is (5,)", "(32,)")),
        ({"adapter.weight": torch.zeros(1)}, ("adapter.weight is no weight",)),
    ):
        save_file({**state, **change}, path)
        refused(copy, str(copy / "unet"), *said)
    save_file({key: value for key, value in state.items() if key != "conv_in.bias"}, path)
    refused(copy, str(copy / "unet"), "lacks 1 weights", "conv_in.bias")


def test_a_single_file_with_a_key_of_which_nothing_is_known(v14, tmp_path):
    path = tmp_path / "model.safetensors"
    state = {**hub_sd.released("v1-4"), "control_model.input_hint_block.0.weight": torch.zeros(1)}
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    refused(path, str(path), "control_model.input_hint_block.0.weight", config=v14)


def test_a_single_file_of_another_model_is_refused(v14, tmp_path):
    path = hub_sd.write_checkpoint(tmp_path / "v2-1_768-ema-pruned.ckpt", hub_sd.released("2-1"))
    refused(path, str(path), "first keys", config=v14)


def test_the_trainers_entries_run_nothing(tmp_path, v14):
    class Run:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": hub_sd.released("v1-4"), "callbacks": Run()}, path)
    refused(path, str(path), "could run code", config=v14)
