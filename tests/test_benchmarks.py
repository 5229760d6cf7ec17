"""How long the parts take (alone: --benchmark-only), and what sampling spends beside the network."""

import dataclasses
import statistics
import time

import pytest
import torch
from diffusers import DDIMScheduler

from unlearnbench import Sampler, registry
from unlearnbench.judges.fidelity import extract
from unlearnbench.sampling import START, gaussian_noise
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.training import seeded

STEPPING = [
    name
    for name, entry in registry.methods().items()
    if entry.point is None
    and "steps" in {field.name for field in dataclasses.fields(registry.load_method(name))}
    and registry.load_method(name).requires <= DigitsClass.provides
]
"""Methods that count their updates and run on the digits; the controls do not."""
SAMPLER = Sampler(steps=20)
Y, SEEDS = torch.arange(50) % 10, list(range(50))


@pytest.fixture(scope="module")
def task():
    return DigitsClass("3")


@pytest.fixture
def model(task):
    return task.pretrained().eval()


def ours(model):
    with torch.inference_mode():
        return model.sample(Y, SEEDS, sampler=SAMPLER)


def theirs(model):
    """The same sampling as a plain loop over diffusers' scheduler."""
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=True
    )
    scheduler.set_timesteps(SAMPLER.steps)
    with torch.inference_mode():
        x, states = gaussian_noise(SEEDS, START, model.shape), model.embedding(Y)
        for t in scheduler.timesteps:
            eps = model.unet(x, t, class_labels=states).sample
            x = scheduler.step(eps, t, x, use_clipped_model_output=True).prev_sample
        return x


def test_methods_that_update_are_all_benchmarked():
    assert set(STEPPING) >= {"erasediff", "esd", "esd_retain", "finetune", "gradient_ascent", "salun"}
    assert not set(STEPPING) & {"original", "retrain", "destroy"}


@pytest.mark.benchmark(group="one update")
@pytest.mark.parametrize("name", STEPPING)
def test_one_update(benchmark, task, name):
    cls = registry.load_method(name)
    known = {field.name for field in dataclasses.fields(cls)}
    method = cls.configured({key: 1 for key in ("steps", "blind_steps") if key in known})

    def fresh():
        model = method.wrap(task.pretrained(), task)
        return (model, task, method.prepare(model, task)), {}

    with seeded(0):
        model = benchmark.pedantic(method.unlearn, setup=fresh, rounds=5)
    before = task.pretrained().state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.benchmark(group="preparing")
def test_preparing_the_mask_of_salun(benchmark, task, model):
    method = registry.load_method("salun")()
    mask = benchmark.pedantic(method.prepare, args=(model, task), rounds=5)
    assert set(mask) == set(model.select("full"))


@pytest.mark.benchmark(group="sampling")
@pytest.mark.parametrize("loop", [ours, theirs])
def test_sampling_50_images_for_20_steps(benchmark, model, loop):
    x = benchmark.pedantic(loop, args=(model,), rounds=5, warmup_rounds=1)
    assert x.shape == (50, 1, 8, 8) and x.isfinite().all()


def test_both_loops_draw_the_same_images(model):
    torch.testing.assert_close(ours(model), theirs(model), rtol=0, atol=1e-3)


@pytest.mark.benchmark(group="features")
def test_features_of_450_images(benchmark, task):
    images = to_uint8(splits()["train"].x0[:450])
    features = benchmark.pedantic(extract, args=(task.judge(), images), rounds=5, warmup_rounds=1)
    assert features.shape == (450, 32)


@pytest.mark.slow
def test_sampling_spends_its_time_in_the_network_and_is_as_fast_as_diffusers(model):
    inside, seconds = [], {ours: [], theirs: []}
    forward = model.unet.forward

    def timed(*words, **named):
        start = time.perf_counter()
        result = forward(*words, **named)
        inside.append(time.perf_counter() - start)
        return result

    model.unet.forward = timed
    shares = []
    for _ in range(12):
        for loop in (ours, theirs):
            inside.clear()
            start = time.perf_counter()
            loop(model)
            seconds[loop].append(time.perf_counter() - start)
            assert len(inside) == SAMPLER.steps
            if loop is ours:
                shares.append(sum(inside) / seconds[ours][-1])
    assert statistics.median(shares[2:]) >= 0.9
    assert statistics.median(seconds[ours][2:]) <= 1.15 * statistics.median(seconds[theirs][2:])
