"""The model as methods see it: noise, targets, loss, conditions, parts, the teacher; against diffusers and by hand."""

import copy
import math

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from tests.support.tiny_outcome import Smooth
from unlearnbench import Batch, Diffusion
from unlearnbench.diffusion.model import Condition
from unlearnbench.errors import Unsupported
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.training import seeded

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def made_of(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.randn(n, 1, 4, 4, generator=generator)


@pytest.fixture
def unet():
    with seeded(0):
        return ClassUNet(classes=10, size=8, widths=(8, 16))


# ---- noise, targets, eps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noise_and_targets_are_diffusers(prediction, schedule):
    model, scheduler = Smooth(schedule, prediction), DDPMScheduler(1000, beta_schedule=schedule)
    (x0, noise), t = made_of(0), torch.tensor([0, 1, 250, 500, 998, 999])
    torch.testing.assert_close(model.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
    expected = {"epsilon": noise, "v_prediction": scheduler.get_velocity(x0, noise, t), "sample": x0}[prediction]
    torch.testing.assert_close(model.target(x0, noise, t), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eps_of_a_network_that_is_right_is_the_noise(prediction):
    model = Smooth("linear", prediction)
    (x0, noise), t = made_of(1), torch.tensor([20, 100, 250, 500, 700, 999])
    model.predict = lambda x_t, t, condition: model.target(x0, noise, t)
    eps = model.eps(model.add_noise(x0, noise, t), t, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(eps, noise, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eps_from_the_raw_output_by_its_formula(prediction):
    model, y = Smooth("linear", prediction), torch.tensor([0, 1, 2, 3, 0, 1])
    (x_t, _), t = made_of(2), torch.tensor([5, 100, 250, 500, 700, 999])
    output, alpha_bar = model(x_t, t, y), model.alpha_bar[t].view(-1, 1, 1, 1)
    a, b = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    expected = {"epsilon": output, "v_prediction": a * output + b * x_t, "sample": (x_t - a * output) / b}[prediction]
    torch.testing.assert_close(model.eps(x_t, t, y), expected)


def test_unknown_predictions_are_refused():
    with pytest.raises(ValueError, match=r"prediction='velocity' is none of epsilon, v_prediction, sample"):
        Smooth(prediction="velocity")


def test_noised_draws_timesteps_then_noise_and_repeats_with_its_generator():
    model, (x0, _) = Smooth(), made_of(3, 500)
    t, noise, x_t = model.noised(x0, torch.Generator().manual_seed(4))
    replay = torch.Generator().manual_seed(4)
    assert torch.equal(t, torch.randint(1000, (500,), generator=replay))
    assert torch.equal(noise, torch.randn(x0.shape, generator=replay))
    torch.testing.assert_close(x_t, model.scheduler.add_noise(x0, noise, t))
    assert t.min() < 20 and t.max() > 979
    with seeded(4):
        assert torch.equal(model.noised(x0)[0], t)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_timesteps_come_in_pairs_on_request(n):
    model, (x0, _), y = Smooth(), made_of(3, n), torch.arange(n) % 3
    t, noise, x_t = model.noised(x0, torch.Generator().manual_seed(4), paired=True)
    replay = torch.Generator().manual_seed(4)
    drawn = torch.randint(1000, (n // 2 + 1,), generator=replay).tolist()
    assert t.tolist() == (drawn + [999 - each for each in drawn])[:n]
    assert torch.equal(noise, torch.randn(x0.shape, generator=replay))
    torch.testing.assert_close(x_t, model.scheduler.add_noise(x0, noise, t))
    loss = model.loss(Batch(x0, y), torch.Generator().manual_seed(4), paired=True)
    assert loss.item() == pytest.approx((model(x_t, t, y) - noise).square().mean().item(), rel=1e-5)


# ---- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_a_mean_over_elements_on_replayed_draws(prediction):
    model, y = Smooth("linear", prediction), torch.tensor([0, 1, 2, 0, 1, 2])
    x0, _ = made_of(5)
    loss = model.loss(Batch(x0, y), torch.Generator().manual_seed(6))
    replay = torch.Generator().manual_seed(6)
    t, noise = torch.randint(1000, (6,), generator=replay), torch.randn(x0.shape, generator=replay)
    a, b = (model.alpha_bar[t] ** 0.5).view(-1, 1, 1, 1), ((1 - model.alpha_bar[t]) ** 0.5).view(-1, 1, 1, 1)
    output = model(a * x0 + b * noise, t, y)
    target = {"epsilon": noise, "v_prediction": a * noise - b * x0, "sample": x0}[prediction]
    assert loss.item() == pytest.approx(((output - target) ** 2).sum().item() / (6 * 16), rel=1e-5)
    assert loss.shape == () and loss.requires_grad


def test_the_loss_drops_conditions_on_replayed_draws():
    model, y = Smooth(), torch.tensor([0, 1, 2, 0, 1, 2])
    x0, _ = made_of(7)
    loss = model.loss(Batch(x0, y), torch.Generator().manual_seed(8), drop=0.5)
    replay = torch.Generator().manual_seed(8)
    t, noise = torch.randint(1000, (6,), generator=replay), torch.randn(x0.shape, generator=replay)
    shown = torch.where(torch.rand(6, generator=replay) >= 0.5, y, 3)
    assert 0 < (shown == 3).sum() < 6
    expected = (model(model.add_noise(x0, noise, t), t, shown) - noise).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 1.0])
def test_conditions_are_dropped_at_the_rate_asked_for(drop):
    model, n, shown = Smooth(), 4000, []
    plain = model.predict
    model.predict = lambda x_t, t, condition: (shown.append(condition), plain(x_t, t, condition))[1]
    model.loss(Batch(torch.zeros(n, 1, 4, 4), torch.ones(n, dtype=torch.long)), torch.Generator().manual_seed(9), drop)
    (condition,) = shown
    dropped = condition.ids == 3
    assert abs(dropped.float().mean().item() - drop) <= 4 * math.sqrt(drop * (1 - drop) / n)
    assert torch.equal(condition.states[dropped], model.E[3].expand(int(dropped.sum()), -1))
    assert torch.equal(condition.states[~dropped], model.E[1].expand(int((~dropped).sum()), -1))


# ---- conditions ----------------------------------------------------------------------------------------------------


def rich(start, n):
    return Condition(
        torch.arange(start, start + n * 6.0).view(n, 2, 3),
        torch.arange(start, start + n * 4.0).view(n, 4),
        {"size": torch.arange(start, start + n * 2.0).view(n, 2), "crop": torch.arange(start, start + n)},
        torch.arange(start, start + n * 2).view(n, 2),
    )


def leaves(condition):
    return [condition.states, condition.pooled, *condition.extra.values(), condition.ids]


def test_join_is_along_the_batch_in_order():
    a, b = rich(0, 2), rich(100, 3)
    for joined, one, other in zip(leaves(a.join(b)), leaves(a), leaves(b), strict=True):
        assert torch.equal(joined[:2], one) and torch.equal(joined[2:], other) and len(joined) == 5


def test_where_chooses_whole_rows():
    a, b, mask = rich(0, 3), rich(100, 3), torch.tensor([True, False, True])
    for chosen, one, other in zip(leaves(a.where(mask, b)), leaves(a), leaves(b), strict=True):
        for row in range(3):
            assert torch.equal(chosen[row], (one if mask[row] else other)[row])


def test_what_a_condition_lacks_stays_lacking():
    a, b = Condition(torch.zeros(2, 3)), Condition(torch.ones(2, 3))
    for made in (a.join(b), a.where(torch.tensor([True, False]), b)):
        assert made.pooled is made.extra is made.ids is None
    assert a.where(torch.tensor([True, False]), b).states.tolist() == [[0.0] * 3, [1.0] * 3]


# ---- the class-conditional U-Net -----------------------------------------------------------------------------------


@torch.no_grad()
def test_predictions_are_those_of_a_plain_diffusers_network(unet):
    settings = {key: value for key, value in unet.unet.config.items() if not key.startswith("_")}
    plain = UNet2DModel(**{**settings, "class_embed_type": None, "num_class_embeds": 11})
    plain.load_state_dict({**unet.unet.state_dict(), "class_embedding.weight": unet.embedding.weight})
    x_t, t, y = torch.randn(11, 1, 8, 8), torch.linspace(0, 999, 11).long(), torch.arange(11)
    expected = plain(x_t, t, class_labels=y).sample
    torch.testing.assert_close(unet(x_t, t, y), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(unet.eps(x_t[10:], t[10:], unet.null(1)), expected[10:], rtol=0, atol=1e-5)
    assert (expected - plain(x_t, t, class_labels=y.flip(0)).sample).abs().max() > 1e-3


def test_the_network_is_pixels_in_epsilon_with_diffusers_cosine_schedule(unet):
    assert (unet.shape, unet.clip, unet.prediction) == ((1, 8, 8), True, "epsilon")
    expected = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.equal(unet.alpha_bar, expected)
    assert len(ClassUNet(2, 8, widths=(8, 16), T=50).alpha_bar) == 50
    assert "alpha_bar" not in unet.state_dict()


def test_null_is_the_extra_row(unet):
    assert unet.embedding.weight.shape[0] == 11
    null = unet.null(3)
    assert torch.equal(null.states, unet.embedding.weight[10].expand(3, -1)) and null.ids.tolist() == [10] * 3
    assert unet.null(0).states.shape[0] == 0


def test_parts_by_name(unet):
    every = {name: value for name, value in unet.named_parameters()}
    full, net, embedding = (unet.select(part) for part in ("full", "unet", "embedding"))
    assert list(full) == list(every) and all(full[name] is every[name] for name in every)
    assert set(net) == {name for name in every if name.startswith("unet.")} and len(net) > 20
    assert set(embedding) == {"embedding.weight"}
    assert set(net) | set(embedding) == set(full)


def test_an_unknown_part_names_those_there_are(unet):
    with pytest.raises(Unsupported, match=r"no part 'xattn': it has embedding, full, unet"):
        unet.select("xattn")


def test_gradient_reaches_the_embedding_through_labels_and_through_a_condition(unet):
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 900])
    unet.eps(x_t, t, torch.tensor([2, 2, 7])).square().sum().backward()
    rows = unet.embedding.weight.grad.abs().sum(dim=1)
    assert (rows > 0).nonzero().flatten().tolist() == [2, 7]
    free = unet.embed(torch.tensor([2, 2, 7])).states.detach().clone().requires_grad_()
    unet.eps(x_t, t, Condition(free)).square().sum().backward()
    assert (free.grad.abs().sum(dim=1) > 0).all()


def test_the_teacher_is_independent_and_needs_no_gradient(unet):
    x_t, t, y = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 900]), torch.tensor([2, 2, 7])
    unet.train()
    before = unet.eps(x_t, t, y).detach()
    teacher = unet.frozen()
    assert isinstance(teacher, Diffusion) and not teacher.training and unet.training
    assert not any(value.requires_grad for value in teacher.parameters())
    assert all(value.requires_grad for value in unet.parameters())
    own = {value.data_ptr() for value in unet.parameters()}
    assert not own & {value.data_ptr() for value in teacher.parameters()}
    with torch.no_grad():
        for value in unet.parameters():
            value.add_(0.1)
    assert torch.equal(teacher.eps(x_t, t, y), before)
    assert not torch.allclose(unet.eps(x_t, t, y), before, atol=1e-3)


def test_a_copy_keeps_sampler_and_guidance_of_its_own(unet):
    twin = copy.deepcopy(unet)
    assert twin.sampler == unet.sampler and twin.guidance is not unet.guidance
