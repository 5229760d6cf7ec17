"""SD3 and FLUX against diffusers' own pipelines, on tiny models in the hub's layout."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from tests.support import tiny_flow
from unlearnbench.diffusion.flow import FlowSampler
from unlearnbench.diffusion.model import Batch
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.models.flow_folder import (
    as_flow_pipeline,
    flow_networks,
    flow_pixels_of,
    latent_shape,
    load_flow,
    require_flow_folder,
    token_lengths,
    untrained_flow,
)
from unlearnbench.models.flux import Flux, pack_latents, unpack_latents
from unlearnbench.models.sd3 import StableDiffusion3
from unlearnbench.models.text_flow import prompt_of

PROMPTS = ["a photo of a Red seven", "the number three"]
SEEDS = [11, 12]


@pytest.fixture(scope="module", params=tiny_flow.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(kind):
    return tiny_flow.pipeline(kind)


@pytest.fixture(scope="module")
def model(pipeline):
    """The adapter over the pipeline's own networks."""
    names = ("", "_2", "_3")
    encoders = [each for name in names if (each := getattr(pipeline, f"text_encoder{name}", None)) is not None]
    tokenizers = [each for name in names if (each := getattr(pipeline, f"tokenizer{name}", None)) is not None]
    cls = Flux if "Flux" in type(pipeline).__name__ else StableDiffusion3
    parts = (pipeline.transformer, pipeline.vae, encoders, tokenizers, pipeline.scheduler.config)
    return cls(*parts, t5_length=tiny_flow.T5_TOKENS).eval()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders of SD3 and FLUX as saved."""
    place = tmp_path_factory.mktemp("hub")
    return {kind: tiny_flow.save(place / kind, kind) for kind in ("sd3-medium", "sd3-no-t5", "flux-dev")}


@pytest.fixture
def folder(hub, tmp_path):
    """A copy of FLUX's folder, to be damaged."""
    return shutil.copytree(hub["flux-dev"], tmp_path / "flux")


def theirs(pipeline, side, steps, guidance):
    latents = gaussian_noise(SEEDS, START, (4, side, side))
    size = {"height": 2 * side, "width": 2 * side}
    said = {"num_inference_steps": steps, "output_type": "latent", "max_sequence_length": tiny_flow.T5_TOKENS}
    with torch.no_grad():
        if "Flux" not in type(pipeline).__name__:
            return pipeline(PROMPTS, guidance_scale=guidance, latents=latents, **size, **said).images
        both = {"negative_prompt": ["", ""], "true_cfg_scale": guidance, "guidance_scale": 2.5}
        return unpack_latents(
            pipeline(PROMPTS, latents=pack_latents(latents), **both, **size, **said).images, side, side
        )


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_samples_are_the_pipelines(model, pipeline, guidance):
    sampler = FlowSampler(4, guidance=guidance, embedded_guidance=2.5)
    with torch.no_grad():
        ours = model.sample(model.tokens(PROMPTS), SEEDS, sampler=sampler)
    expected = theirs(pipeline, 8, 4, guidance)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
    assert (ours[0] - ours[1]).abs().max() > 0.1


def test_samples_of_another_size_are_the_pipelines(model, pipeline):
    model.shape = (4, 12, 12)
    try:
        with torch.no_grad():
            ours = model.sample(
                model.tokens(PROMPTS), SEEDS, sampler=FlowSampler(3, guidance=1.0, embedded_guidance=2.5)
            )
    finally:
        model.shape = (4, 8, 8)
    expected = theirs(pipeline, 12, 3, 1.0)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)


def test_only_a_distilled_network_is_told_a_scale(kind, model):
    y = model.tokens(PROMPTS)
    with torch.no_grad():
        low, high = (model.sample(y, SEEDS, sampler=FlowSampler(2, 0.0, 1.0, scale)) for scale in (1.0, 5.0))
    assert ((low - high).abs().max() > 1e-4) == (kind == "flux-dev")
    assert model.embedded_guidance == 3.5  # that of losses, as before


def test_images_are_the_pipelines(model, pipeline):
    latents, config = gaussian_noise(SEEDS, START, (4, 8, 8)), pipeline.vae.config
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        mode = (pipeline.vae.encode(images).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(model.decode(latents), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode(images), mode, rtol=0, atol=1e-5)


def test_loss_is_the_training_scripts(model):
    x0, y = torch.randn(2, 4, 8, 8), model.tokens(PROMPTS)
    ours = model.loss(Batch(x0, y), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    sd3 = isinstance(model, StableDiffusion3)
    u = torch.randn(2, generator=generator).sigmoid() if sd3 else torch.rand(2, generator=generator)
    sigma = 3 * u / (1 + 2 * u) if sd3 else u  # SD3's scheduler shifts by 3
    noise = torch.randn(x0.shape, generator=generator)
    s = sigma.view(-1, 1, 1, 1)
    predicted = model.predict((1 - s) * x0 + s * noise, 1000 * sigma, model.embed(y))
    torch.testing.assert_close(ours, F.mse_loss(predicted, noise - x0))


def test_training_leaves_text_states_as_they_are(model):
    y = model.tokens(PROMPTS)
    before = model.embed(y)
    try:
        model.train()
        assert model.transformer.training
        torch.testing.assert_close(model.embed(y).states, before.states)  # T5 has dropout
    finally:
        model.eval()


def test_words_take_the_place_of_token_embeddings(model):
    y = model.tokens(PROMPTS)
    known, words = model.embed(y), model.words(y)
    again = model.embed(y, words)
    torch.testing.assert_close(again.states, known.states)
    torch.testing.assert_close(again.pooled, known.pooled)
    for k in range(len(words)):
        changed = [each + (torch.randn_like(each) if at == k else 0.0) for at, each in enumerate(words)]
        other = model.embed(y, changed)
        assert max((other.states - known.states).abs().max(), (other.pooled - known.pooled).abs().max()) > 1e-3


def test_prompts_are_read_joined_and_measured(kind, model):
    y = model.tokens(PROMPTS)
    text = "a photo of a red seven" if kind == "sd3-no-t5" else PROMPTS[0]  # CLIP has no capitals
    assert prompt_of(model.tokenizers, y[0]) == text
    joined = prompt_of(model.tokenizers, model.joined(model.tokens(["red", "the number three"]))[0])
    assert joined.replace(" ,", ",") == "red, the number three"
    assert model.too_long(["red " * 9, "red " * 40]) == ["red " * 40]
    with pytest.raises(UserError, match="fewer names"):
        model.joined(model.tokens(["the number three"] * 8))
    assert len(model.tokens([])) == 0


def test_positions_are_those_of_the_last_word(model):
    prompts = ["a photo of a red seven", "seven", ""]
    y = model.tokens(prompts)
    states, where = model.embed(y).states, model.positions(y)
    for row, other in ((0, "a photo of a red three"), (1, "three")):
        changed = model.embed(model.tokens([other])).states[0]
        differs = (states[row] - changed).abs().amax(dim=1)
        assert differs.argmax() == where[row] or differs[where[row]] > 0.1 * differs.max()
    assert where[0] - where[1] == 5 and where[2] >= 0


def test_parts_are_the_transformers(kind, model):
    parts = model.parts()
    ids = {name: {id(value) for value in values} for name, values in parts.items()}
    names = {id(value): name for name, value in model.named_parameters()}
    assert {names[each] for each in ids["full"]} == {
        f"transformer.{name}" for name, _ in model.transformer.named_parameters()
    }
    assert ("selfattn" in parts) == (kind == "sd3-medium")
    assert all(".attn." in names[each] for each in ids["xattn"])
    assert any("add_k_proj" in names[each] for each in ids["xattn"])
    assert any("to_q" in names[each] for each in ids["xattn"])
    assert not ids["xattn"] & ids["noxattn"] and ids["noxattn"] < ids["full"]
    assert not any("time_text_embed" in names[each] or "norm_out" in names[each] for each in ids["noxattn"])
    assert ids["text_encoder"] and not ids["text_encoder"] & ids["full"]
    teacher = model.frozen("full")
    assert teacher.vae is model.vae and teacher.transformer is not model.transformer
    assert teacher.text_encoders is model.text_encoders and model.frozen().text_encoders is not model.text_encoders


def test_the_edited_layer_reads_text_states(model):
    seen = []
    ((layer,),) = model.kv()
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    y = model.tokens(PROMPTS)
    with torch.no_grad():
        model(torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0]), y)
    hook.remove()
    torch.testing.assert_close(seen[0], model.embed(y).states)


def test_what_needs_a_unet_is_refused(model):
    for needed in (lambda: list(model.unet.named_modules()), model.unet, model.attention):
        with pytest.raises(Unsupported, match="no U-Net"):
            needed()
    model.unet.enable_gradient_checkpointing()
    assert model.transformer.is_gradient_checkpointing
    model.transformer.disable_gradient_checkpointing()
    with pytest.raises(UserError, match="--compile"):
        model.unet = model.unet  # as `Resources.compiled` puts the compiled network in its place


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd3-medium", "sd3-no-t5", "flux-dev"], indirect=True)
def test_a_folder_is_read_whole(kind, pipeline, hub):
    model = load_flow(hub[kind])
    assert isinstance(model, Flux if kind.startswith("flux") else StableDiffusion3)
    for part, network in flow_networks(model).items():
        expected = getattr(pipeline, part).state_dict()
        assert network.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert flow_pixels_of(hub[kind]) == 16 == model.scale_factor * model.shape[1]
    assert model.lengths == {"sd3-medium": [16, 16, 256], "sd3-no-t5": [16, 16], "flux-dev": [16, 512]}[kind]
    assert latent_shape(hub[kind]) == model.shape
    assert token_lengths(hub[kind], model.tokenizers) == model.lengths
    fresh = untrained_flow(hub[kind], 0)
    assert fresh.shape == model.shape
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["sd3-medium", "sd3-no-t5", "flux-dev"])
def test_a_pipeline_of_its_parts_is_read_again(kind, hub, tmp_path):
    model = load_flow(hub[kind])
    with torch.no_grad():
        model.kv()[0][0].weight.add_(1.0)
    as_flow_pipeline(model).save_pretrained(tmp_path / "again")
    again = load_flow(tmp_path / "again")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again.sigmas(5), model.sigmas(5)) and again.lengths == model.lengths


def rewritten(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model_index.json", {"_class_name": "Flux2Pipeline"}, "Flux2Pipeline"),
        ("model_index.json", {"transformer": ["diffusers", "SD3Transformer2DModel"]}, "SD3Transformer2DModel"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "text_encoder_2"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "stochastic_sampling"),
        ("transformer/config.json", {"in_channels": 96}, "in_channels is 96"),  # FLUX.1 Fill's is 6 times the latents'
        ("transformer/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ("text_encoder_2/config.json", {"d_model": 32}, "joint_attention_dim is 24"),
    ],
)
def test_another_model_is_refused_by_file_and_key(folder, file, changes, said):
    rewritten(folder / file, **changes)
    with pytest.raises(UserError, match=said) as told:
        load_flow(folder)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


def test_what_is_missing_is_named(folder, tmp_path):
    (folder / "tokenizer_2/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_2 lacks tokenizer.json"):
        load_flow(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match="names vae, but there is no folder"):
        require_flow_folder(folder)
    with pytest.raises(UserError, match=r"lacks model_index.json"):
        require_flow_folder(tmp_path)


def test_shards_and_tied_embeddings_are_read_as_on_the_hub(folder):
    from safetensors.torch import load_file, save_file

    # transformer/ in three shards and text_encoder_2/ in two, whose index names shared.weight alone
    state, place = load_file(folder / "transformer/diffusion_pytorch_model.safetensors"), folder / "transformer"
    (place / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(state)
    for number in range(3):
        part = {name: state[name] for name in names[number::3]}
        save_file(part, place / f"diffusion_pytorch_model-{number + 1:05}-of-00003.safetensors")
    text = load_file(folder / "text_encoder_2/model.safetensors")
    text.pop("encoder.embed_tokens.weight", None)
    save_file(text, folder / "text_encoder_2/model.safetensors")
    model = load_flow(folder)
    assert all(torch.equal(value, state[name]) for name, value in model.transformer.state_dict().items())
    t5 = model.text_encoders[1]
    assert t5.encoder.embed_tokens.weight is t5.shared.weight and torch.equal(t5.shared.weight, text["shared.weight"])
    (place / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="00002-of-00003"):
        load_flow(folder)
