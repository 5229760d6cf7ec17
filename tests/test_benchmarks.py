"""How long the parts take, and what sampling spends beside the network: pytest -n 0 -m timing --benchmark-enable."""

import copy
import dataclasses
import statistics
import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from tests.support.ddpm_reference import Reference
from unlearnbench import Sampler, registry
from unlearnbench.attacks.search import arena
from unlearnbench.data.image_sets import Images
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.judges.torch_fidelity import extract
from unlearnbench.metrics.unlearndiffatk import UnlearnDiffAtk
from unlearnbench.models.ddpm import ConditionalDDPM, load_converted
from unlearnbench.models.ddpm_train import TrainingImages, _descend, draw_batch
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.tasks.digits_text import DigitsText
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


@pytest.mark.timing
@pytest.mark.benchmark(group="one update")
@pytest.mark.parametrize("name", STEPPING)
def test_one_update(benchmark, task, name):
    cls = registry.load_method(name)
    known = {field.name for field in dataclasses.fields(cls)}
    one = {"steps": 1, "blind_steps": 1, "start_steps": 0}  # race's first steps are ESD's, each an update of its own
    method = cls.configured({key: value for key, value in one.items() if key in known})

    def fresh():
        model = method.wrap(task.pretrained(), task)
        return (model, task, method.prepare(model, task)), {}

    with seeded(0):
        model = benchmark.pedantic(method.unlearn, setup=fresh, rounds=5)
    before = task.pretrained().state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.timing
@pytest.mark.benchmark(group="preparing")
def test_preparing_the_mask_of_salun(benchmark, task, model):
    method = registry.load_method("salun")()
    mask = benchmark.pedantic(method.prepare, args=(model, task), rounds=5)
    assert set(mask) == set(model.select("full"))


@pytest.mark.timing
@pytest.mark.benchmark(group="sampling")
@pytest.mark.parametrize("loop", [ours, theirs])
def test_sampling_50_images_for_20_steps(benchmark, model, loop):
    x = benchmark.pedantic(loop, args=(model,), rounds=5, warmup_rounds=1)
    assert x.shape == (50, 1, 8, 8) and x.isfinite().all()


def test_both_loops_draw_the_same_images(model):
    torch.testing.assert_close(ours(model), theirs(model), rtol=0, atol=1e-3)


@pytest.mark.timing
@pytest.mark.benchmark(group="features")
def test_features_of_450_images(benchmark, task):
    images = to_uint8(splits()["train"].x0[:450])
    features = benchmark.pedantic(extract, args=(task.judge(), images), rounds=5, warmup_rounds=1)
    assert features.shape == (450, 32)


# ---- the papers' network on CIFAR-10, whole ------------------------------------------------------------------------

FEW = 4


@pytest.fixture(scope="module")
def full():
    """It, and an independent one of the same weights."""
    torch.manual_seed(0)
    reference, model = Reference(), ConditionalDDPM()
    load_converted(model, reference.state_dict(), "made")
    return {"ours": model.eval(), "reference": reference.eval()}


@pytest.mark.timing
@pytest.mark.benchmark(group="one sampling step, 38.6 M weights")
@pytest.mark.parametrize("whose", ["ours", "reference"])
def test_one_sampling_step_of_the_full_network(benchmark, full, whose):
    """Guided, of four images; the other network as the papers' loop asks it, once for the class and once for none."""
    y, seeds, network = torch.arange(FEW), list(range(FEW)), full[whose]
    x_t, t, none = gaussian_noise(seeds, START, (3, 32, 32)), torch.full((FEW,), 999), torch.full((FEW,), -1)

    def step():
        with torch.inference_mode():
            if whose == "ours":
                return network.sample(y, seeds, sampler=Sampler(1, guidance=3.0))
            eps_null = network(x_t, t, none)
            eps = eps_null + 3.0 * (network(x_t, t, y) - eps_null)
            a = full["ours"].alpha_bar[999]
            return (x_t - (1 - a).sqrt() * eps) / a.sqrt()

    x = benchmark.pedantic(step, rounds=2, warmup_rounds=1)
    assert x.shape == (FEW, 3, 32, 32) and x.isfinite().all()


@pytest.mark.timing
@pytest.mark.benchmark(group="one training step, 38.6 M weights")
@pytest.mark.parametrize("whose", ["ours", "reference"])
def test_one_training_step_of_the_full_network(benchmark, full, whose):
    network = copy.deepcopy(full[whose]).train()
    images = Images(np.zeros((FEW, 3, 32, 32), dtype=np.uint8), np.arange(FEW))
    item = draw_batch(TrainingImages(images, np.arange(FEW)), 0, FEW, 0, 1000, "cpu")
    engine = torch.optim.Adam(network.parameters(), lr=2e-4)

    def step():
        if whose == "ours":
            _descend(network, item, FEW, 0)
        else:
            batch, t, noise, shown = item
            a = full["ours"].alpha_bar[t].view(-1, 1, 1, 1)
            found = network(a.sqrt() * batch.x0 + (1 - a).sqrt() * noise, t, torch.where(shown, batch.y, -1))
            (found - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        engine.step()
        engine.zero_grad()

    benchmark.pedantic(step, rounds=2, warmup_rounds=1)
    before = full[whose].state_dict()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.timing
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


@pytest.mark.timing
@pytest.mark.benchmark(group="attack")
@pytest.mark.parametrize("batch", [1, 8], ids=["one by one", "together"])
def test_searching_for_eight_targets(benchmark, batch):
    """Targets in batches: the ratio of the two is what batching gains (see the benchmark's table)."""
    task = DigitsText("five")
    original = task.pretrained().eval().requires_grad_(False)
    attack = UnlearnDiffAtk(targets=8, batch=batch, timesteps=1, iterations=3)
    outcome = arena(task, original, original, None)
    items = [item._replace(label=4) for item in attack.aims(outcome)]  # not what is drawn, so that all are searched

    def search():
        return [list(attack.looks(outcome, items[start : start + batch])) for start in range(0, len(items), batch)]

    found = benchmark.pedantic(search, rounds=1, warmup_rounds=0)
    assert sum(len(looks[-1].recovered) for looks in found) == 8
    assert not any(looks[0].recovered.any() for looks in found)
    assert {int(looks[-1].spent) for looks in found} == {3}
