"""Flow matching: the path, its timesteps in training and sampling, and Euler steps, beside diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import nn

from tests.support.tiny_flow import FLUX_SCHEDULE, SD3_SCHEDULE
from unlearnbench import Condition, Guidance
from unlearnbench.diffusion.flow import Flow, FlowSampler, FlowSchedule
from unlearnbench.diffusion.model import Batch
from unlearnbench.diffusion.noise import START, gaussian_noise

Y, SEEDS = torch.tensor([0, 1, 2]), [3, 4, 5]
CLOSE = {"rtol": 0, "atol": 1e-5}


class Drifting(Flow):
    """v = tanh(W x + E[y] + sigma); the last of four classes is the null condition."""

    def __init__(self, density="uniform", schedule=SD3_SCHEDULE):
        super().__init__(FlowSchedule(schedule), (1, 4, 4), density)
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(0.3 * torch.randn(16, 16, generator=generator))
        self.E = nn.Parameter(torch.randn(4, 16, generator=generator))

    @property
    def image_tokens(self):
        return self.shape[1] * self.shape[2]

    def embed(self, y):
        return Condition(self.E[y], ids=y)

    def null(self, n):
        return self.embed(torch.full((n,), 3))

    def predict(self, x_t, t, condition):
        inner = x_t.flatten(1) @ self.W.T + condition.states + t[:, None] / 1000
        return inner.tanh().view_as(x_t)

    def parts(self):
        return {"full": [self.W, self.E]}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# ---- the path ------------------------------------------------------------------------------------------------------


def test_a_network_that_knows_the_velocity_knows_the_noise():
    class Oracle(Drifting):
        def predict(self, x_t, t, condition):
            return noise - x0

    x0, noise = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4)
    t, model = torch.tensor([0.0, 1.5, 700.25, 1000.0]), Oracle()
    x_t = model.add_noise(x0, noise, t)
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - sigma) * x0 + sigma * noise, **CLOSE)
    torch.testing.assert_close(model.eps(x_t, t, torch.zeros(4, dtype=torch.long)), noise, **CLOSE)
    assert model.loss(Batch(x0, Y[:1].expand(4)), torch.Generator().manual_seed(0)) > 0  # other noise is drawn there


def test_whole_timesteps_are_taken_as_they_are():
    model, x0, noise = Drifting(), torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    expected = model.add_noise(x0, noise, torch.tensor([0.0, 999.0]))
    torch.testing.assert_close(model.add_noise(x0, noise, torch.tensor([0, 999])), expected)


def test_alpha_bar_is_that_of_the_same_ratio_of_signal_to_noise():
    model, t = Drifting(), torch.tensor([50, 250, 500, 999])
    signal, noise = model.signal(t)
    torch.testing.assert_close(
        model.alpha_bar[t] / (1 - model.alpha_bar[t]), (signal / noise).flatten() ** 2, rtol=1e-3, atol=0
    )


# ---- timesteps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096])
@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("whole_grid", [True, False], ids=["sd3", "flux"])
def test_sigmas_are_those_of_the_pipelines(tokens, steps, whole_grid):
    for config in (SD3_SCHEDULE, FLUX_SCHEDULE):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        shift = {}
        if scheduler.config.use_dynamic_shifting:
            shift = {"mu": calculate_shift(tokens, 256, 4096, 0.5, 1.15)}
        if whole_grid:
            scheduler.set_timesteps(steps, **shift)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **shift)
        ours = FlowSchedule(config, whole_grid).sigmas(steps, tokens)
        torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=1e-6)


def test_more_pixels_are_sampled_at_more_noise():
    model = Drifting(schedule=FLUX_SCHEDULE)
    small = model.timesteps(FlowSampler(4))
    model.shape = (1, 64, 64)
    assert (model.timesteps(FlowSampler(4))[1:] > small[1:]).all()


@pytest.mark.parametrize("config", [SD3_SCHEDULE, FLUX_SCHEDULE], ids=["fixed", "dynamic"])
def test_training_reads_the_sigmas_that_diffusers_scripts_read(config):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)  # its timesteps are not set, as in the scripts
    u = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(1000 * FlowSchedule(config).shifted(u), scheduler.timesteps, rtol=0, atol=1e-3)


def test_timesteps_are_drawn_as_the_density_says():
    x0, middle = torch.zeros(4001, 1, 4, 4), torch.tensor([0.25, 0.5, 0.75])
    drawn = {}
    for density in ("uniform", "logit_normal"):
        t, noise, x_t = Drifting(density).noised(x0, torch.Generator().manual_seed(0))
        assert 0 < t.min() < t.max() < 1000
        torch.testing.assert_close(x_t, (t / 1000).view(-1, 1, 1, 1) * noise)
        s = t / 1000
        drawn[density] = (s / (3 - 2 * s)).quantile(middle)  # the shift of 3 undone
    torch.testing.assert_close(drawn["uniform"], middle, rtol=0, atol=0.03)
    expected = torch.sigmoid(torch.distributions.Normal(0, 1).icdf(middle))
    torch.testing.assert_close(drawn["logit_normal"], expected, rtol=0, atol=0.03)


def test_paired_timesteps_mirror_each_other():
    model, x0 = Drifting("logit_normal", {**SD3_SCHEDULE, "shift": 1.0}), torch.zeros(5, 1, 4, 4)
    t, _, _ = model.noised(x0, torch.Generator().manual_seed(0), paired=True)
    torch.testing.assert_close(t[3:], 1000 - t[:2])


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_a_step_is_the_schedulers():
    model, sampler = Drifting(), FlowSampler(6, guidance=1.0)
    scheduler = FlowMatchEulerDiscreteScheduler(**SD3_SCHEDULE)
    scheduler.set_timesteps(6)
    x = gaussian_noise(SEEDS, START, model.shape)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(3), Y), t, x, return_dict=False)[0]
    torch.testing.assert_close(model.sample(Y, SEEDS, sampler=sampler), x, **CLOSE)


def test_guidance_counts_in_the_first_step_too():
    # noise predictions at sigma 1 are x_t, whatever the network says: guided ones would be the same
    model = Drifting()
    x = gaussian_noise(SEEDS, START, model.shape)
    t = torch.full((3,), 1000.0)
    v_null, v = model(x, t, model.null(3)), model(x, t, Y)
    torch.testing.assert_close(
        model.sample(Y, SEEDS, sampler=FlowSampler(1, guidance=3.0)), x - (v_null + 3 * (v - v_null))
    )


def test_a_method_guides_velocities():
    class Away(Guidance):
        def __call__(self, model, x_t, t, i, condition, null, w):
            return 2 * model.eps(x_t, t, null) - model.eps(x_t, t, condition) + 0 * len(model.alpha_bar)

    model = Drifting()
    model.guidance = Away()
    x, t = gaussian_noise(SEEDS, START, model.shape), torch.full((3,), 1000.0)
    expected = x - (2 * model(x, t, model.null(3)) - model(x, t, Y))
    torch.testing.assert_close(model.sample(Y, SEEDS, sampler=FlowSampler(1)), expected)


def test_images_stop_where_asked_and_go_on_to_the_same_end():
    model, sampler = Drifting(), FlowSampler(5, guidance=2.0)
    whole, seen = model.sample(Y, SEEDS, sampler=sampler), []
    model.sample(Y, SEEDS, sampler=sampler, hook=lambda i, t, x: seen.append((t, x)))
    assert [t for t, _ in seen] == model.timesteps(sampler).tolist()
    partly = model.sample(Y, SEEDS, sampler=sampler, until=torch.tensor([0, 2, 4]))
    for row, x in enumerate((whole, seen[3][1], seen[1][1])):
        torch.testing.assert_close(partly[row], x[row], **CLOSE)
    again = model.sample(Y, SEEDS, sampler=sampler, start=(seen[2][1], seen[2][0]))
    torch.testing.assert_close(again, whole, **CLOSE)


def test_an_image_is_the_same_in_any_batch_and_other_with_another_seed():
    model, sampler = Drifting(), FlowSampler(3)
    whole = model.sample(Y, SEEDS, sampler=sampler)
    torch.testing.assert_close(model.sample(Y[1:2], SEEDS[1:2], sampler=sampler), whole[1:2], **CLOSE)
    assert (model.sample(Y[1:2], [9], sampler=sampler) - whole[1:2]).abs().max() > 0.1


def test_what_is_partway_has_the_noise_of_its_timestep():
    model, sampler = Drifting(), FlowSampler(8, guidance=1.0)
    torch.manual_seed(0)
    x_t, t = model.partway(Y, sampler)
    every = model.timesteps(sampler)
    assert x_t.shape == (3, 1, 4, 4) and all(bool((every == each).any()) for each in t)


def test_a_sampler_with_noise_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        Drifting().sample(Y, SEEDS, sampler=FlowSampler(3, eta=0.5))
