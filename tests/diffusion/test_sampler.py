"""Noise against published words and normality; the sampler against diffusers and Gaussian data in closed form."""

import itertools
import math
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import stats

from tests.support.tiny_outcome import Smooth
from unlearnbench import Diffusion, Sampler
from unlearnbench.diffusion.model import Condition
from unlearnbench.diffusion.noise import START, gaussian_noise, philox
from unlearnbench.diffusion.sampler import ddim_step, timesteps

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""The philox4x32-10 lines of Random123's kat_vectors."""


def words(text):
    return torch.tensor([int(word, 16) for word in text.split()])


# ---- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_known_answers(counter, key, answer):
    assert philox(words(counter), words(key)).tolist() == words(answer).tolist()


def test_philox_is_the_same_for_many_counters_at_once():
    counters, keys = (torch.stack([words(line[i]) for line in KNOWN]) for i in range(2))
    assert torch.equal(philox(counters, keys), torch.stack([words(line[2]) for line in KNOWN]))


def test_noise_is_box_muller_on_the_published_words():
    u = [(int(word) + 0.5) / 2**32 for word in words(KNOWN[0][2])]
    r0, r1 = (math.sqrt(-2 * math.log(value)) for value in u[:2])
    a0, a1 = (2 * math.pi * value for value in u[2:])
    expected = [r0 * math.cos(a0), r1 * math.cos(a1), r0 * math.sin(a0), r1 * math.sin(a1)]
    assert gaussian_noise([0], 0, (2, 2)).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_a_row_depends_on_its_seed_and_timestep_alone():
    seeds = [0, 1, 7, 2**32 + 1, 2**64 - 1, 12345678901234567890]
    together = gaussian_noise(seeds, 400, (3, 5, 5))
    assert together.shape == (6, 3, 5, 5) and together.dtype == torch.float32
    for i, seed in enumerate(seeds):
        assert torch.equal(gaussian_noise([seed], 400, (3, 5, 5))[0], together[i])
    assert torch.equal(gaussian_noise(seeds[::-1], 400, (3, 5, 5)), together.flip(0))


def test_the_global_generators_have_no_part_in_it():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    one = gaussian_noise([5], 3, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(gaussian_noise([5], 3, (1, 8, 8)), one)


@pytest.mark.parametrize("t", [0, 999, START])
def test_noise_is_standard_normal(t):
    values = gaussian_noise(range(64), t, (1, 64, 64)).numpy()
    n = values.size
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.001
    pixels = np.corrcoef(values.reshape(-1, 4).T)  # the four values of a block share two radii and two angles
    assert abs(pixels - np.eye(4)).max() < 4 / math.sqrt(n / 4)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 63])
def test_sizes_that_are_no_multiple_of_a_block(n):
    assert torch.equal(gaussian_noise([9], 2, (n,)), gaussian_noise([9], 2, (64,))[:, :n])


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 5), (2, 5)), ((1, 5), (1, 6)), ((1, 5), (1 + 2**32, 5)), ((1, 5), (1, START)), ((0, 1), (1, 0))],
)
def test_other_seeds_and_timesteps_give_unrelated_noise(one, other):
    a, b = (gaussian_noise([seed], t, (1, 64, 64)).flatten() for seed, t in (one, other))
    assert not (a == b).any()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / 64


# ---- timesteps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 20, 30, 50, 600, 999, 1000])
def test_timesteps_are_diffusers_trailing_ones(steps):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert timesteps(steps, 1000) == scheduler.timesteps.tolist()[:steps]


def test_timesteps_fall_from_the_last_and_never_repeat():
    for T in (10, 1000):
        for steps in range(1, T + 1):
            every = timesteps(steps, T)
            assert len(every) == steps and every[0] == T - 1 and every[-1] >= 0
            assert all(a > b for a, b in itertools.pairwise(every))


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps} is outside 1..1000"):
        timesteps(steps, 1000)


def test_a_models_timesteps_are_its_samplers():
    model = Smooth()
    model.sampler = Sampler(steps=4)
    assert model.timesteps().tolist() == [999, 749, 499, 249]
    assert model.timesteps(Sampler(steps=2)).tolist() == [999, 499]


# ---- DDIM against diffusers ----------------------------------------------------------------------------------------


@torch.no_grad()
def diffusers_loop(model, y, seeds, sampler):
    """The same sampling by diffusers' scheduler, from the same noise."""
    scheduler = DDIMScheduler(
        trained_betas=model.scheduler.betas.numpy(),
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=model.clip,
        prediction_type=model.prediction,
    )
    scheduler.set_timesteps(sampler.steps)
    x = gaussian_noise(seeds, START, model.shape)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(
            model(x, torch.full((len(y),), t), y),
            t,
            x,
            eta=sampler.eta,
            use_clipped_model_output=model.clip,
            variance_noise=gaussian_noise(seeds, t, model.shape) if sampler.eta else None,
        ).prev_sample
    return x


EVERY_STEP = (1000, 0.0, False), (1000, 1.0, True)  # these take the longest, and differ in their number alone


@pytest.mark.parametrize(
    ("steps", "eta", "clip"), [*product((10,), (0.0, 0.5, 1.0), (True, False)), (50, 0.5, True), *EVERY_STEP]
)
@torch.no_grad()
def test_sampling_is_diffusers_ddim(steps, eta, clip):
    model = Smooth("squaredcos_cap_v2" if clip else "linear", clip=clip)
    y, seeds, sampler = torch.tensor([0, 1, 2, 0, 1]), [3, 1, 4, 1, 5], Sampler(steps, eta)
    x = model.sample(y, seeds, sampler=sampler)
    torch.testing.assert_close(x, diffusers_loop(model, y, seeds, sampler), rtol=1e-5, atol=1e-5)
    assert x.abs().max() > 0.1 and x.std() > 0.1


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@torch.no_grad()
def test_sampling_is_diffusers_ddim_for_other_predictions(prediction, eta):
    model = Smooth(prediction=prediction)
    y, seeds, sampler = torch.tensor([0, 1, 2]), [1, 2, 3], Sampler(20, eta)
    expected = diffusers_loop(model, y, seeds, sampler)
    torch.testing.assert_close(model.sample(y, seeds, sampler=sampler), expected, rtol=1e-5, atol=1e-5)


def test_clipping_matters_in_the_comparison_above():
    def bounded(clip):
        model = Smooth("squaredcos_cap_v2", "sample", clip)
        model.E.data *= 0
        model.W.data *= 0
        model.predict = lambda x_t, t, condition: torch.full_like(x_t, 3.0)
        return model.sample(torch.tensor([0]), [1], sampler=Sampler(10))

    torch.testing.assert_close(bounded(True), torch.ones(1, 1, 4, 4))
    torch.testing.assert_close(bounded(False), torch.full((1, 1, 4, 4), 3.0))


# ---- DDIM where the number of steps does not divide T --------------------------------------------------------------

MEAN, SPREAD = 0.7, 0.4


class GaussianData(Diffusion):
    """The ideal eps for pixels that are N(MEAN, SPREAD^2): b (x - a MEAN) / (a^2 SPREAD^2 + b^2)."""

    def __init__(self):
        super().__init__(DDPMScheduler(1000, beta_schedule="linear").alphas_cumprod, (1, 4, 4))

    def embed(self, y):
        return Condition(y[:, None].float())

    def null(self, n):
        return self.embed(torch.zeros(n))

    def predict(self, x_t, t, condition):
        a, b = self.signal(t)
        return b * (x_t - a * MEAN) / (a**2 * SPREAD**2 + b**2)

    def parts(self):
        return {"full": []}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [7, 30, 600])
def test_each_step_on_gaussian_data_in_closed_form(steps, eta):
    model, seeds, seen = GaussianData(), [11, 12], []
    final = model.sample(
        torch.zeros(2), seeds, sampler=Sampler(steps, eta), hook=lambda i, t, x: seen.append(x.double().numpy())
    )
    every = [math.floor(1000 - i * 1000 / steps + 0.5) - 1 for i in range(steps)]
    alpha_bar = np.append(model.alpha_bar.double().numpy(), 1.0)  # alpha_bar[-1] = 1: no noise is left
    x = gaussian_noise(seeds, START, model.shape).double().numpy()
    for i, (t, after) in enumerate(zip(every, [*every[1:], -1], strict=True)):
        np.testing.assert_allclose(seen[i], x, rtol=0, atol=1e-4)
        now, prev = alpha_bar[t], alpha_bar[after]
        variance = now * SPREAD**2 + 1 - now
        x0 = MEAN + math.sqrt(now) * SPREAD**2 / variance * (x - math.sqrt(now) * MEAN)
        eps = math.sqrt(1 - now) / variance * (x - math.sqrt(now) * MEAN)
        sigma = eta * math.sqrt((1 - prev) / (1 - now) * (1 - now / prev))
        z = gaussian_noise(seeds, t, model.shape).double().numpy() if sigma else 0
        x = math.sqrt(prev) * x0 + math.sqrt(1 - prev - sigma**2) * eps + sigma * z
    np.testing.assert_allclose(final.double().numpy(), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [300, 600, 1000])
def test_many_deterministic_steps_carry_noise_to_the_data_along_quantiles(steps):
    seeds = [1, 2, 3]
    x = GaussianData().sample(torch.zeros(3), seeds, sampler=Sampler(steps))
    expected = MEAN + SPREAD * gaussian_noise(seeds, START, (1, 4, 4))
    torch.testing.assert_close(x, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_datas_mean_and_spread(eta):
    x = GaussianData().sample(torch.zeros(400), range(400), sampler=Sampler(1000, eta))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01 + 4 * SPREAD / math.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(SPREAD, rel=0.01 + 4 / math.sqrt(2 * x.numel()))


def test_steps_that_end_a_schedule_and_have_no_noise_left():
    x, eps = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    now, one = torch.tensor(0.6), torch.ones(())
    x0 = (x - math.sqrt(0.4) * eps) / math.sqrt(0.6)
    torch.testing.assert_close(ddim_step(x, eps, now, one, 1.0, None, False), x0)
    torch.testing.assert_close(ddim_step(x, eps, now, one, 1.0, None, True), x0.clamp(-1, 1))
    assert x0.abs().max() > 1


def test_one_step_takes_an_alpha_bar_for_each_image():
    x, eps, noise = torch.randn(3, 2, 1, 4, 4)
    now, prev = torch.tensor([0.3, 0.6]).view(2, 1, 1, 1), torch.tensor([0.5, 0.9]).view(2, 1, 1, 1)
    together = ddim_step(x, eps, now, prev, 0.5, noise, True)
    for i in range(2):
        alone = ddim_step(x[i], eps[i], now[i, 0, 0, 0], prev[i, 0, 0, 0], 0.5, noise[i], True)
        torch.testing.assert_close(together[i], alone)
