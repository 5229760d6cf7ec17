"""The optimisation loop that every method goes through, against torch.optim and formulas written out."""

import copy

import pytest
import torch
from torch import nn

from unlearnbench import Diverged, gradients, minimise
from unlearnbench.training import NEW_SEED, inner, kth_largest, norm, seeded

OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": nn.Parameter(torch.randn(3, 2, generator=generator)),
        "bias": nn.Parameter(torch.randn(2, generator=generator)),
    }


def quadratic(values, step=0):
    """A loss whose minimum moves with the step, steep enough to be clipped."""
    return ((values["weight"] - step) ** 2).sum() * 2 + (values["bias"] * values["weight"][0]).sum() ** 2


def stream(values, steps=5):
    return (quadratic(values, step) for step in range(steps))


def reference(values, engine, steps=5, change=None, rate=None):
    """A plain training loop; `change` edits the gradients before each step."""
    for step in range(steps):
        if rate is not None:
            engine.param_groups[0]["lr"] = rate(step)
        engine.zero_grad()
        quadratic(values, step).backward()
        if change:
            change()
        engine.step()
        yield {name: value.detach().clone() for name, value in values.items()}


def final(values, engine, **settings):
    return list(reference(values, engine, **settings))[-1]


def assert_equal(values, expected, tolerance=1e-6):
    for name, value in values.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_are_torchs_own(name):
    values, other = parameters(), parameters()
    minimise(stream(values), values, 0.02, optimiser=name)
    assert_equal(values, final(other, OPTIMISERS[name](other.values(), lr=0.02)))
    assert not torch.equal(values["bias"], parameters()["bias"])


def test_optimisers_differ():
    results = []
    for name in OPTIMISERS:
        values = parameters()
        minimise(stream(values), values, 0.02, optimiser=name)
        results.append(values["weight"].detach())
    assert not any(torch.equal(results[i], results[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_mask_leaves_its_zeros_bitwise_untouched(name):
    mask = {"weight": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), "bias": torch.tensor([0.0, 1.0])}
    values, other = parameters(), parameters()

    def masked():
        for key, value in other.items():
            value.grad *= mask[key]

    minimise(stream(values), values, 0.02, optimiser=name, mask=mask)
    assert_equal(values, final(other, OPTIMISERS[name](other.values(), lr=0.02), change=masked))
    for key, start in parameters().items():
        assert torch.equal(values[key][mask[key] == 0], start[mask[key] == 0])
        assert (values[key] != start)[mask[key] == 1].all()


def test_gradients_are_clipped_together_and_before_the_mask():
    mask = {"weight": torch.zeros(3, 2), "bias": torch.ones(2)}
    values, other = parameters(), parameters()

    def clipped_then_masked():
        nn.utils.clip_grad_norm_(other.values(), 0.5)
        other["weight"].grad.zero_()

    minimise(stream(values), values, 0.1, optimiser="sgd", mask=mask, clip=0.5)
    right = final(other, torch.optim.SGD(other.values(), lr=0.1), change=clipped_then_masked)
    assert_equal(values, right)

    other = parameters()

    def masked_then_clipped():
        other["weight"].grad.zero_()
        nn.utils.clip_grad_norm_(other.values(), 0.5)

    wrong = final(other, torch.optim.SGD(other.values(), lr=0.1), change=masked_then_clipped)
    assert (wrong["bias"] - right["bias"]).abs().max() > 1e-3


def test_short_gradients_are_not_clipped():
    values, other = parameters(), parameters()
    minimise(stream(values), values, 0.01, optimiser="sgd", clip=1e6)
    minimise(stream(other), other, 0.01, optimiser="sgd")
    assert_equal(values, other, 0)


@pytest.mark.parametrize("ema", [0.995, 0.3, 0.0])
def test_the_running_mean_warms_up_as_its_formula_says(ema):
    values, other = parameters(), parameters()
    mean = {name: value.detach().clone() for name, value in other.items()}
    minimise(stream(values, 6), values, 0.05, ema=ema)
    for n, now in enumerate(reference(other, torch.optim.Adam(other.values(), lr=0.05), steps=6)):
        decay = min(ema, (1 + n) / (10 + n))
        mean = {name: decay * mean[name] + (1 - decay) * now[name] for name in mean}
    assert_equal(values, mean, 3e-6)


def test_the_running_mean_continues_pretrainings_at_its_own_pace():
    """The papers' EMAHelper: shadow = mu shadow + (1 - mu) theta, from the shadow in the file, without a warm-up."""
    values, other = parameters(), parameters()
    before = [torch.full((3, 2), 5.0), torch.full((2,), -5.0)]
    mean = dict(zip(other, before, strict=True))
    minimise(stream(values, 6), values, 0.05, ema=0.9, average=[value.clone() for value in before])
    for now in reference(other, torch.optim.Adam(other.values(), lr=0.05), steps=6):
        mean = {name: 0.9 * mean[name] + 0.1 * now[name] for name in mean}
    assert_equal(values, mean, 3e-6)


def test_the_running_mean_does_not_disturb_training():
    seen = {}
    for ema in (None, 0.9):
        values = parameters()

        def watched(values=values, ema=ema):
            for step in range(4):
                seen.setdefault(ema, []).append(values["weight"].detach().clone())
                yield quadratic(values, step)

        minimise(watched(), values, 0.05, ema=ema)
    assert all(torch.equal(a, b) for a, b in zip(seen[None], seen[0.9], strict=True))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_rate_may_be_a_function_of_the_step(name):
    def rate(step):
        return 0.05 / (1 + step) ** 2

    values, other = parameters(), parameters()
    minimise(stream(values), values, rate, optimiser=name)
    assert_equal(values, final(other, OPTIMISERS[name](other.values(), lr=99.0), rate=rate))


def test_gradients_ready_made_do_as_the_losses_they_come_from():
    values, other = parameters(), parameters()
    minimise(stream(values), values, 0.02, clip=3.0, ema=0.5)
    minimise((gradients(loss, other) for loss in stream(other)), other, 0.02, clip=3.0, ema=0.5)
    assert_equal(values, other, 0)


def test_gradients_may_come_in_any_order_of_names():
    values, other = parameters(), parameters()
    minimise(stream(values), values, 0.02)
    minimise((dict(reversed(gradients(loss, other).items())) for loss in stream(other)), other, 0.02)
    assert_equal(values, other, 0)


def test_the_stream_sees_what_the_step_before_left():
    values, seen = parameters(), []

    def watched():
        for _ in range(3):
            seen.append(values["bias"].detach().clone())
            yield values["bias"].sum()
        seen.append(values["bias"].detach().clone())

    minimise(watched(), values, 0.25, optimiser="sgd")
    start = parameters()["bias"].detach()
    for step, value in enumerate(seen):
        torch.testing.assert_close(value, start - 0.25 * step)
    assert len(seen) == 4


def test_an_empty_stream_changes_nothing():
    values = parameters()
    minimise(iter(()), values, 0.1, ema=0.9)
    assert_equal(values, parameters(), 0)


def test_other_parameters_are_left_alone_and_no_gradient_stays_behind():
    values = parameters()
    bias = copy.deepcopy(values["bias"].data)
    minimise((quadratic(values) for _ in range(3)), {"weight": values["weight"]}, 0.1)
    assert torch.equal(values["bias"], bias)
    assert all(value.grad is None for value in values.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_is_not_finite_stops_at_its_step(bad, at):
    values = parameters()
    losses = (quadratic(values) * (bad if step == at else 1.0) for step in range(9))
    with pytest.raises(Diverged, match=f"loss is not finite at step {at}") as caught:
        minimise(losses, values, 0.01)
    assert caught.value.step == at
    assert values["weight"].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_it_is_applied(bad):
    values, steps = parameters(), []

    def made():
        for step in range(9):
            steps.append(values["weight"].detach().clone())
            yield {"weight": torch.full((3, 2), 0.1), "bias": torch.tensor([0.1, bad if step == 2 else 0.1])}

    with pytest.raises(Diverged, match="gradient is not finite at step 2") as caught:
        minimise(made(), values, 0.01)
    assert caught.value.step == 2
    assert torch.equal(values["weight"], steps[2])


def test_a_finite_loss_with_an_infinite_slope_is_caught():
    values = {"x": nn.Parameter(torch.zeros(1))}
    with pytest.raises(Diverged, match="gradient"):
        minimise((values["x"].sqrt().sum() for _ in range(2)), values, 0.1)


def test_gradients_are_those_of_autograd_and_zero_where_unused():
    values = parameters()
    grads = gradients((values["weight"] ** 2).sum(), values)
    torch.testing.assert_close(grads["weight"], 2 * values["weight"].detach())
    assert torch.equal(grads["bias"], torch.zeros(2))
    assert values["weight"].grad is None


def test_inner_and_norm_run_over_all_parameters_together():
    a = {"one": torch.tensor([1.0, 2.0]), "two": torch.tensor([[3.0], [-1.0]])}
    b = {"two": torch.tensor([[2.0], [4.0]]), "one": torch.tensor([-1.0, 0.5])}
    assert inner(a, b).item() == pytest.approx(-1 + 1 + 6 - 4)
    assert norm(a).item() == pytest.approx(15**0.5)


def test_a_seed_holds_within_its_block_alone():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeded(1):
        one = torch.rand(3)
    assert torch.equal(torch.rand(4), expected)
    with seeded(1):
        assert torch.equal(torch.rand(3), one)
    with seeded(2):
        assert not torch.equal(torch.rand(3), one)


def test_a_seed_is_given_back_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), seeded(1):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.rand(4), expected)


def test_a_gpu_that_nothing_used_is_not_opened_for_a_seed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the GPU was opened"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    after = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", after.append)
        with seeded(1):
            assert after == [1]
    assert after == [1, NEW_SEED], "what is seeded when the GPU is used must not outlive the block"
    assert torch.Generator().initial_seed() == NEW_SEED


@pytest.mark.filterwarnings("error")
def test_the_state_of_every_gpu_in_use_is_given_back_without_a_warning(monkeypatch):
    states, back = {0: "a", 1: "b"}, {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: back.update({device: state}))
    with seeded(1):
        pass
    assert back == states


@pytest.mark.parametrize("kept", [1, 7, 50, 99, 100])
def test_the_kth_largest_is_the_least_of_the_k_largest_bit_for_bit_ties_included(kept):
    torch.manual_seed(0)
    rough = torch.randint(0, 9, (100,)).float() / 3  # each value about eleven times
    for values in (torch.randn(100).abs(), rough, torch.zeros(100)):
        found = kth_largest(values, kept)
        assert torch.equal(found, values.topk(kept).values.min())
        assert torch.equal(values >= found, values >= values.sort(descending=True).values[kept - 1])
