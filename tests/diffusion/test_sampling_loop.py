"""Guidance, hooks, beginning and stopping anywhere, and images that do not depend on the others of their batch."""

import pytest
import torch

from tests.support.tiny_outcome import Smooth
from unlearnbench import Guidance, Sampler
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.conformance import TinyDigits

Y, SEEDS = torch.tensor([0, 1, 2, 1]), [10, 11, 12, 13]
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# ---- guidance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [0.0, 1.0, 1.25, 3.0, -1.0])
def test_guidance_is_in_the_standard_notation(w):
    model = Smooth()
    x, t = torch.randn(4, 1, 4, 4), torch.tensor([0, 300, 600, 999])
    eps_null, eps_c = model.eps(x, t, model.null(4)), model.eps(x, t, Y)
    guided = model.guidance(model, x, t, 0, model.embed(Y), model.null(4), w)
    torch.testing.assert_close(guided, eps_null + w * (eps_c - eps_null), **CLOSE)
    assert (eps_null - eps_c).abs().max() > 0.01


@pytest.mark.parametrize(("w", "rows"), [(1.0, 4), (3.0, 8)])
def test_only_guidance_pays_for_the_null_condition(w, rows):
    model = Smooth()
    model.sample(Y, SEEDS, sampler=Sampler(5, guidance=w))
    assert model.rows == [rows] * 5


def test_weight_zero_is_unconditional():
    model = Smooth()
    free = model.sample(Y, SEEDS, sampler=Sampler(10, guidance=0.0))
    torch.testing.assert_close(free, model.sample(model.null(4), SEEDS, sampler=Sampler(10)), **CLOSE)
    assert (free - model.sample(Y, SEEDS, sampler=Sampler(10))).abs().max() > 0.01


def test_guided_sampling_is_plain_sampling_of_the_guided_prediction():
    class Guided(Smooth):
        def eps(self, x_t, t, y):
            eps_null = super().eps(x_t, t, self.null(len(t)))
            return eps_null + 3 * (super().eps(x_t, t, y) - eps_null)

    expected = Guided().sample(Y, SEEDS, sampler=Sampler(10, 1.0))
    torch.testing.assert_close(Smooth().sample(Y, SEEDS, sampler=Sampler(10, 1.0, 3.0)), expected, **CLOSE)


class Counting(Guidance):
    """Keeps a list between steps that `start` empties."""

    def __init__(self):
        self.starts, self.steps, self.null_ids = [], ["left over"], None

    def start(self, n):
        self.starts.append(n)
        self.steps = []

    def __call__(self, model, x_t, t, i, condition, null, w):
        self.steps.append((i, t.tolist(), w))
        self.null_ids = null.ids
        return torch.zeros_like(x_t)


def test_a_method_can_replace_guidance_and_is_told_of_each_start():
    model = Smooth()
    model.guidance = guidance = Counting()
    for _ in range(2):
        x = model.sample(Y, SEEDS, sampler=Sampler(2, guidance=7.0))
    assert guidance.starts == [4, 4]
    assert guidance.steps == [(0, [999] * 4, 7.0), (1, [499] * 4, 7.0)]
    assert guidance.null_ids.tolist() == [3] * 4
    assert model.rows == []
    torch.testing.assert_close(x, gaussian_noise(SEEDS, START, (1, 4, 4)) / model.alpha_bar[999].sqrt())


# ---- hooks, beginning, stopping ------------------------------------------------------------------------------------


def test_the_hook_hears_index_timestep_and_image_before_each_step():
    model, heard = Smooth(), []
    final = model.sample(Y, SEEDS, sampler=Sampler(4), hook=lambda i, t, x: heard.append((i, t, x.clone())))
    assert [(i, t) for i, t, _ in heard] == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert torch.equal(heard[0][2], gaussian_noise(SEEDS, START, (1, 4, 4)))
    for i in range(1, 4):
        assert torch.equal(heard[i][2], model.sample(Y, SEEDS, sampler=Sampler(4), until=4 - i))
    assert not torch.equal(final, heard[3][2])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_until_for_each_image_is_stopping_each_separately(eta):
    model, sampler, until = Smooth(), Sampler(6, eta, 2.0), [0, 6, 1, 4]
    together = model.sample(Y, SEEDS, sampler=sampler, until=torch.tensor(until))
    for b, k in enumerate(until):
        assert torch.equal(together[b], model.sample(Y, SEEDS, sampler=sampler, until=k)[b])
    assert torch.equal(together[1], gaussian_noise(SEEDS, START, (1, 4, 4))[1])


def test_no_step_is_taken_that_no_image_needs():
    model = Smooth()
    model.sample(Y, SEEDS, sampler=Sampler(6), until=torch.tensor([3, 5, 4, 6]))
    assert len(model.rows) == 3
    model.sample(Y, SEEDS, sampler=Sampler(6), until=6)
    assert len(model.rows) == 3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("left", [0, 1, 3, 7])
def test_a_stopped_run_goes_on_exactly_where_it_was(left, eta):
    model, sampler = Smooth(), Sampler(7, eta, 1.5)
    x_t = model.sample(Y, SEEDS, sampler=sampler, until=left)
    t = model.timesteps(sampler).tolist()[-left] if left else -1
    model.rows.clear()
    resumed = model.sample(Y, SEEDS, sampler=sampler, start=(x_t, t))
    assert torch.equal(resumed, model.sample(Y, SEEDS, sampler=sampler))
    assert len(model.rows) == left + 7


@pytest.mark.parametrize(("t", "first"), [(999, 999), (998, 749), (749, 749), (600, 499), (10, None)])
def test_a_start_between_timesteps_begins_at_the_next_below(t, first):
    model, heard, x_t = Smooth(), [], torch.randn(4, 1, 4, 4)
    x = model.sample(Y, SEEDS, sampler=Sampler(4), start=(x_t, t), hook=lambda i, t, x: heard.append(t))
    assert heard == [every for every in (999, 749, 499, 249) if first is not None and every <= first]
    assert torch.equal(x, x_t) == (first is None)


def test_start_and_until_make_an_interval():
    model, sampler, heard = Smooth(), Sampler(5), []
    x_t = model.sample(Y, SEEDS, sampler=sampler, until=4)
    part = model.sample(Y, SEEDS, sampler=sampler, start=(x_t, 799), until=2, hook=lambda i, t, x: heard.append(i))
    assert heard == [1, 2]
    assert torch.equal(part, model.sample(Y, SEEDS, sampler=sampler, until=2))


def test_the_models_own_sampler_is_the_default():
    model = Smooth()
    model.sampler = Sampler(3, 1.0, 2.0)
    assert torch.equal(model.sample(Y, SEEDS), model.sample(Y, SEEDS, sampler=Sampler(3, 1.0, 2.0)))
    assert not torch.equal(model.sample(Y, SEEDS), model.sample(Y, SEEDS, sampler=Sampler(3)))


def test_a_condition_in_place_of_integers():
    model = Smooth()
    assert torch.equal(model.sample(model.embed(Y), SEEDS), model.sample(Y, SEEDS))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_no_images_at_all(eta):
    assert Smooth().sample(Y[:0], [], sampler=Sampler(3, eta)).shape == (0, 1, 4, 4)


# ---- independence of the batch -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def network(request):
    return {"tiny": TinyDigits, "shipped": DigitsClass}[request.param]("3").pretrained().eval()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_does_not_depend_on_the_others_of_its_batch(network, eta):
    sampler, y = Sampler(4, eta, 1.25), torch.tensor([3, 1, 4, 1, 5, 9])
    one = network.sample(y, [1, 2, 3, 4, 5, 6], sampler=sampler)
    other = network.sample(torch.tensor([7, 1, 0, 1, 8, 8]), [90, 2, 91, 4, 92, 93], sampler=sampler)
    assert torch.equal(one[[1, 3]], other[[1, 3]])
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], one[3])


def test_an_image_hardly_depends_on_the_size_of_its_batch(network):
    sampler, y, seeds = Sampler(4, 0.0, 1.25), torch.tensor([3, 1, 4, 1, 5, 9]), [1, 2, 3, 4, 5, 6]
    together = network.sample(y, seeds, sampler=sampler)
    for size in (1, 2, 5):
        parts = [
            network.sample(some, seeds[i * size : (i + 1) * size], sampler=sampler)
            for i, some in enumerate(y.split(size))
        ]
        torch.testing.assert_close(torch.cat(parts), together, rtol=0, atol=1e-4)
