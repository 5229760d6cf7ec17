"""The adapter against diffusers' own pipelines and training loss, on tiny models in the hub's layout."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from tests.support import tiny_sd
from unlearnbench.diffusion.model import Batch
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.diffusion.schedulers import SCHEDULERS, Scheduled
from unlearnbench.errors import UserError
from unlearnbench.models.loading import load_stable_diffusion

KINDS = ("sd1", "sd2", "sdxl")
PROMPTS = ["a photo of a red seven", "the number three"]
SEEDS = [11, 12]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return tiny_sd.save(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load_stable_diffusion(folder).eval()


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import DiffusionPipeline

    made = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipeline, scheduler, steps, guidance, **more):
    import diffusers

    # a protocol's timesteps: those that v1.4's configuration, which has no spacing, gives each scheduler
    spacing = "leading" if scheduler == "ddim" else "linspace"
    cls = getattr(diffusers, SCHEDULERS[scheduler])
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    latents = gaussian_noise(SEEDS, START, (4, 8, 8))
    with torch.no_grad():
        return pipeline(
            PROMPTS, num_inference_steps=steps, guidance_scale=guidance, latents=latents, output_type="latent", **more
        ).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("steps", "guidance"), [(6, 7.5), (5, 1.0)])  # 1000 / 6 is rounded; 5 divides it
def test_samples_are_the_pipelines(model, pipeline, scheduler, steps, guidance):
    with torch.no_grad():
        ours = model.sample(model.tokens(PROMPTS), SEEDS, sampler=Scheduled(steps, 0.0, guidance, scheduler))
    expected = theirs(pipeline, scheduler, steps, guidance)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)


def test_images_are_the_pipelines(model, pipeline):
    latents = gaussian_noise(SEEDS, START, (4, 8, 8))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(model.decode(latents), expected, rtol=0, atol=1e-5)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mode = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(model.encode(images), mode, rtol=0, atol=1e-5)


def test_loss_is_the_training_scripts(model, pipeline):
    x0, ids = torch.randn(3, 4, 8, 8), model.tokens([*PROMPTS, ""])
    ours = model.loss(Batch(x0, ids), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    t, noise = torch.randint(1000, (3,), generator=generator), torch.randn(x0.shape, generator=generator)
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(x0, noise, t)
    condition = model.embed(ids)
    added = {} if condition.pooled is None else {"text_embeds": condition.pooled, **condition.extra}
    predicted = pipeline.unet(noisy, t, condition.states, added_cond_kwargs=added or None).sample
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, noise, t) if v else noise
    torch.testing.assert_close(ours, F.mse_loss(predicted, target), rtol=1e-5, atol=1e-6)


def test_embeddings_are_the_pipelines(model, pipeline):
    found, null = model.embed(model.tokens(PROMPTS)), model.null(2)
    with torch.no_grad():
        expected = pipeline.encode_prompt(
            PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    for ours, other in zip((found.states, null.states, found.pooled, null.pooled), expected, strict=False):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)


def test_noise_of_eta_follows_the_images_seed(model):
    ids = model.tokens(PROMPTS)
    with torch.no_grad():
        pair = model.sample(ids, SEEDS, sampler=Scheduled(5, 1.0, 3.0))
        one = model.sample(ids[1:], SEEDS[1:], sampler=Scheduled(5, 1.0, 3.0))
        quiet = model.sample(ids, SEEDS, sampler=Scheduled(5, 0.0, 3.0))
    torch.testing.assert_close(pair[1:], one, rtol=0, atol=1e-4)
    assert (pair - quiet).abs().max() > 0.1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_steps_left_undone_give_x_t_in_the_papers_scale(model, scheduler):
    """A sample stopped after two steps and taken up again ends where one does that was never stopped (DDIM)."""
    ids, sampler = model.tokens(PROMPTS), Scheduled(6, 0.0, 2.0, scheduler)
    seen = {}
    with torch.no_grad():
        whole = model.sample(ids, SEEDS, sampler=sampler, hook=lambda i, t, x: seen.setdefault(i, (t, x.clone())))
        stopped = model.sample(ids, SEEDS, sampler=sampler, until=torch.tensor([4, 6]))
    torch.testing.assert_close(stopped[0], seen[2][1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(stopped[1], seen[0][1][1], rtol=0, atol=1e-5)
    assert [t for t, _ in seen.values()] == model.timesteps(sampler).tolist()
    if scheduler == "ddim":  # the others remember earlier steps
        with torch.no_grad():
            resumed = model.sample(ids, SEEDS, sampler=sampler, start=(seen[2][1], seen[2][0]))
        torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-5)


def test_the_projects_own_sampler_works_too(model):
    with torch.no_grad():
        assert model.sample(model.tokens(PROMPTS), SEEDS, sampler=Sampler(3)).isfinite().all()


def test_parts_are_those_of_the_papers(model):
    names = {part: set(model.select(part)) for part in model.parts()}
    assert names["full"] == {f"unet.{name}" for name, _ in model.unet.named_parameters()}
    assert names["xattn"] == {name for name in names["full"] if "attn2" in name} != set()
    assert names["selfattn"] == {name for name in names["full"] if "attn1" in name} != set()
    assert names["full"] - names["noxattn"] - names["xattn"] == {
        name
        for name in names["full"]
        if "time_embed" in name or name.startswith(("unet.conv_out.", "unet.conv_norm_out."))
    }
    assert all(name.startswith("text_encoders.") for name in names["text_encoder"])
    assert not any("embedding" in name for name in names["text_encoder"])
    weights = {f"text_encoders.{name}" for name, _ in model.text_encoders.named_parameters()}
    assert {
        name for name in weights - names["text_encoder"] if "embedding" not in name and "projection" not in name
    } == set()


def test_key_and_value_projections_come_in_pairs(model):
    pairs = model.kv()
    width = model.embed(model.tokens([""])).states.shape[-1]
    assert len(pairs) == sum(name.endswith("attn2") for name, _ in model.unet.named_modules()) > 1
    assert all(k.in_features == v.in_features == width for k, v in pairs)


def test_attention_maps_are_distributions_over_tokens_and_change_nothing(model):
    ids, x, t = model.tokens(PROMPTS), torch.randn(2, 4, 8, 8), torch.tensor([5, 800])
    with torch.no_grad():
        plain = model.eps(x, t, ids)
        with model.attention() as maps:
            recorded = model.eps(x, t, ids)
        after = model.eps(x, t, ids)
    torch.testing.assert_close(recorded, plain, rtol=0, atol=1e-5)
    assert torch.equal(after, plain)
    assert len(maps) == len(model.kv())
    for kept in maps.values():
        (probabilities,) = kept
        assert probabilities.shape[0] == 2 and probabilities.shape[-1] == tiny_sd.TOKENS
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]), rtol=0, atol=1e-5)


def test_embeddings_of_an_attack_reach_the_text_encoder_by_gradient(model):
    condition = model.embed(model.tokens(PROMPTS))
    loss = model.eps(torch.randn(2, 4, 8, 8), torch.tensor([5, 800]), condition).square().mean()
    grads = torch.autograd.grad(loss, list(model.select("text_encoder").values()), allow_unused=True)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_prompts_over_the_limit_are_counted(model):
    long = " ".join(["seven"] * 30)
    assert model.too_long(["a seven", long]) == [long]
    assert model.tokens([long]).shape[-1] == tiny_sd.TOKENS


def test_the_teacher_is_apart(model):
    teacher = model.frozen()
    assert not any(value.requires_grad for value in teacher.parameters())
    first = next(iter(model.select("full").values()))
    before = teacher.eps(torch.zeros(1, 4, 8, 8), torch.tensor([3]), teacher.null(1))
    with torch.no_grad():
        first += 1.0
        again = teacher.eps(torch.zeros(1, 4, 8, 8), torch.tensor([3]), teacher.null(1))
        first -= 1.0
    assert torch.equal(before, again)


@pytest.mark.parametrize(
    ("part", "encoders"), [(None, True), ("text_encoder", True), ("xattn", False), ("full", False)]
)
def test_a_teacher_copies_the_denoiser_and_only_what_may_be_trained(model, part, encoders):
    teacher, alive = model.frozen(part), {id(value) for value in model.parameters()}
    copied = {name.partition(".")[0] for name, value in teacher.named_parameters() if id(value) not in alive}
    assert copied == ({"unet", "text_encoders"} if encoders else {"unet"})
    assert not any(value.requires_grad for value in teacher.parameters())
    assert all(value.requires_grad for value in model.unet.parameters())
    y, x_t, t = model.tokens(["seven", "cat"]), torch.randn(2, 4, 8, 8), torch.tensor([3, 5])
    assert torch.equal(teacher.eps(x_t, t, y), model.eps(x_t, t, y)) and not teacher.eps(x_t, t, y).requires_grad


@pytest.mark.parametrize(
    ("prompt", "last"), [("seven", 1), ("a photo of a red seven", 6), ("", 0), ("a " * 30, tiny_sd.TOKENS - 2)]
)
def test_position_of_the_last_subject_token(model, prompt, last):
    y = model.tokens([prompt, "the cat"])
    assert model.positions(y).tolist() == [last, 2]


@pytest.mark.parametrize("prompts", [["seven"], ["seven", "red cat"], ["a cat", "xyz", "one"], ["seven", "", "one"]])
def test_prompts_are_joined_by_commas(model, prompts):
    joined = model.joined(model.tokens(prompts))
    assert torch.equal(joined, model.tokens([", ".join(prompts)]))
    assert joined.shape == model.tokens(["one"]).shape


def test_joined_prompts_are_never_cut(model):
    full = ["a"] * 6 + ["the cat"]  # with six commas, start and end: 16 tokens
    assert torch.equal(model.joined(model.tokens(full)), model.tokens([", ".join(full)]))
    with pytest.raises(UserError, match="7 names in one prompt are over 16 tokens"):
        model.joined(model.tokens([*full[:-1], "the red cat"]))
