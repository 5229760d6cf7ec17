"""SPM's adapters, loss, anchors and gates against computations of their own, on tiny Stable Diffusions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods.spm import SPM, noise
from unlearnbench.techniques.adapters import adapters, trained

SHORT = {"steps": 2, "batch_size": 2, "sampler_steps": 3, "lr": 1e-2}


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def task(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("plain") / "model")


@torch.no_grad()
def filled(method, task, scale=0.3):
    """A wrapped model whose adapters add something."""
    model = method.wrap(task.pretrained(), task)
    generator = torch.Generator().manual_seed(5)
    for value in trained(model).values():
        value.copy_(scale * torch.randn(value.shape, generator=generator))
    return model


@torch.no_grad()
def merged(task, model, gate=1.0):
    """The original with gate x up x down added to each weight."""
    plain, state = task.pretrained(), model.state_dict()
    for name in adapters(model):
        up, down = (state[f"{name}.adapter.{half}.weight"].flatten(1) for half in ("up", "down"))
        weight = plain.get_submodule(name).weight
        weight += float(gate) * (up @ down).view_as(weight)
    return plain


def inputs(n=3):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, 8, 8, generator=generator), torch.tensor([3, 400, 981, 600][:n])


def gated(task, model, x_t, t, y, gates):
    """What the model should predict where each row's adapters are scaled by its gate: one merged copy a row."""
    rows = [slice(b, b + 1) for b in range(len(gates))]
    with torch.no_grad():
        found = [
            merged(task, model, gate).eps(x_t[b], t[b], y[b]) if gate else task.original.eps(x_t[b], t[b], y[b])
            for b, gate in zip(rows, gates, strict=True)
        ]
    return torch.cat(found)


def expected_gates(task, prompts, metric):
    """Cosine of all text states, share of words in common, or the larger, in NumPy."""
    model = task.original
    with torch.no_grad():
        E = [model.embed(model.tokens([text])).states.double().numpy().ravel() for text in [*prompts, *task.words]]
    found = []
    for text, p in zip(prompts, E, strict=False):
        scores = []
        for name, c in zip(task.words, E[len(prompts) :], strict=True):
            words = set(name.split())
            if "clipcos" in metric:
                scores.append(p @ c / np.linalg.norm(p) / np.linalg.norm(c))
            if "tokenuni" in metric:
                scores.append(len(words & set(text.split())) / len(words))
        found.append(max(0.0, *scores))
    return torch.tensor(np.array(found)).float()


def test_adapters_sit_on_every_layer_of_the_transformers_and_nothing_is_changed_by_them_at_first(task):
    model = SPM().wrap(task.pretrained(), task)
    plain = {name for name, value in task.original.unet.named_parameters() if value.dim() > 1}
    assert set(adapters(model)) == {f"unet.{name.removesuffix('.weight')}" for name in plain if "attentions" in name}
    x_t, t = inputs()
    y = task.captions("forget")
    with torch.no_grad():
        torch.testing.assert_close(model.eps(x_t, t, y), task.original.eps(x_t, t, y))
    assert len(adapters(SPM(rank=2).wrap(task.pretrained(), task))) == len(adapters(model))


@pytest.mark.parametrize(("eta", "weight", "count"), [(1.0, 10.0, 1), (2.5, 0.0, 1), (0.5, 3.0, 2)])
def test_the_loss_is_the_papers(task, eta, weight, count):
    method = SPM(eta=eta, anchor_weight=weight, anchor_count=count)
    model, original = filled(method, task), task.original
    theta = merged(task, model)
    x_t, t = inputs(2)
    y = original.tokens(["seven", "a red seven"])
    anchors = original.tokens(["cat", "three", "a red cat", "one"][: 2 * count])
    index = [b for b in range(2) for _ in range(count)]
    with torch.no_grad():
        null = original.eps(x_t, t, original.null(2))
        target = null - eta * (original.eps(x_t, t, y) - null)
        erase = (theta.eps(x_t, t, y) - target).square().mean()
        kept = theta.eps(x_t[index], t[index], anchors) - original.eps(x_t[index], t[index], anchors)
        expected = erase + weight * kept.square().mean()
        assert kept.square().mean() > 1e-4 * erase
    model.transport.fixed = 1.0
    loss = method.loss(model, x_t, t, y, original.embed(anchors))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    assert all(value.grad is not None for name, value in trained(model).items() if ".up." in name)


@pytest.mark.parametrize("metric", ["clipcos", "tokenuni", "none"])
def test_the_gate_of_each_metric(sd1, metric):
    prompts = ["a red seven", "a photo of a cat", "", "seven"]
    gates = torch.ones(4) if metric == "none" else expected_gates(sd1, prompts, metric)
    model, (x_t, t) = filled(SPM(metric=metric), sd1), inputs(4)
    y = model.tokens(prompts)
    with torch.no_grad():
        torch.testing.assert_close(model.eps(x_t, t, y), gated(sd1, model, x_t, t, y, gates), rtol=1e-3, atol=2e-4)
    if metric == "tokenuni":
        assert gates.tolist() == [1, 0, 0, 1]


def test_each_prompt_opens_its_own_gate(task):
    prompts = ["a red seven", "a photo of a cat", ""]
    gates = expected_gates(task, prompts, "clipcos_tokenuni")
    assert gates[0] == 1
    assert 0 < gates[1] < 0.99
    model, (x_t, t) = filled(SPM(), task), inputs()
    y = model.tokens(prompts)
    with torch.no_grad():
        by_tokens, by_condition = model.eps(x_t, t, y), model.eps(x_t, t, model.embed(y))
    torch.testing.assert_close(by_tokens, gated(task, model, x_t, t, y, gates), rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(by_condition, by_tokens)
    with torch.no_grad():  # without tokens, everything acts
        hidden = model.eps(x_t, t, model.embed(y)._replace(ids=None))
        torch.testing.assert_close(hidden, gated(task, model, x_t, t, y, [1, 1, 1]), rtol=1e-3, atol=2e-4)
        twin = model.frozen()
        torch.testing.assert_close(twin.eps(x_t, t, y), by_tokens)
        twin.transport.fixed = 0.0
        torch.testing.assert_close(twin.eps(x_t, t, y), task.original.eps(x_t, t, y), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.eps(x_t, t, y), by_tokens)  # the copy is on its own


def test_the_gate_is_the_nearest_names_and_counts_each_of_its_words(tmp_path):
    several = TinyText(tmp_path / "model", names=("seven", "red cat"))
    model = SPM(metric="tokenuni").wrap(several.pretrained(), several)
    y = model.tokens(["a red red person", "cat in red", "seven", "three", "red seven"])
    assert model.transport.gamma(model, model.embed(y)).tolist() == [0.5, 1, 1, 0, 1]
    both = SPM().wrap(several.pretrained(), several)
    texts = ["a red person", "seven", "three"]
    found = both.transport.gamma(both, both.embed(both.tokens(texts)))
    torch.testing.assert_close(found, expected_gates(several, texts, "clipcos_tokenuni"), rtol=1e-4, atol=1e-5)
    opposite = both.embed(several.names("forget")[:1])
    turned = opposite._replace(states=-opposite.states)
    only = SPM(metric="clipcos").wrap(several.pretrained(), several)
    assert 0 <= only.transport.gamma(only, turned).item() < 0.5


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("anchors", ["names", "captions"])
def test_anchors_unlike_the_concept_are_likelier(sd1, anchors, power):
    texts, chance = SPM(anchors=anchors, power=power).candidates(sd1.original, sd1)
    assert torch.equal(texts, sd1.names("retain") if anchors == "names" else sd1.captions("retain"))
    with torch.no_grad():
        E = sd1.original.embed(torch.cat([texts, sd1.names("forget")])).states.double().flatten(1).numpy()
    E = E / np.linalg.norm(E, axis=1, keepdims=True)
    np.testing.assert_allclose(chance.numpy(), (1 - np.abs(E[:-1] @ E[-1])) ** power, rtol=1e-3)


def test_anchors_of_noise_have_about_the_concepts_norm(task):
    condition = task.original.embed(task.captions("forget"))
    torch.manual_seed(0)
    for old in (condition.states, condition.pooled):
        if old is None:
            continue
        new = noise(old)
        assert new.shape == old.shape
        ratio = new.flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
        assert ratio.min() >= 0.799
        assert ratio.max() <= 1.201
        assert ratio.std() > 0
        assert torch.cosine_similarity(new.flatten(1), old.flatten(1)).abs().max() < 0.7


@pytest.mark.parametrize("settings", [{"anchors": "noise", "anchor_count": 2}, {"cycles": 1}])
def test_training_moves_the_adapters_alone_and_its_weights_load(task, settings):
    method = SPM(**SHORT, **settings)
    torch.manual_seed(0)
    model = method.wrap(task.pretrained(), task)
    start = copy.deepcopy(model.state_dict())
    assert method.unlearn(model, task) is model
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == set(trained(model))
    assert model.transport.fixed is None
    again = method.wrap(task.pretrained(), task)
    again.load_state_dict(model.state_dict())
    x_t, t = inputs()
    y = task.captions("forget")
    with torch.no_grad():
        predicted = model.eps(x_t, t, y)
        torch.testing.assert_close(again.eps(x_t, t, y), predicted)
        assert not torch.allclose(predicted, task.original.eps(x_t, t, y), rtol=0, atol=1e-6)


def test_a_step_is_adamw_on_the_loss_at_x_t_of_the_models_own_making(sd1):
    method = SPM(**{**SHORT, "steps": 1}, anchors="captions", anchor_weight=2.0)
    start, model = filled(method, sd1, 0.1), filled(method, sd1, 0.1)
    torch.manual_seed(3)
    method.unlearn(model, sd1)

    torch.manual_seed(3)
    y = sd1.names("forget").expand(2, -1)
    done, seeds = torch.randint(3, (2,)), torch.randint(2**62, (2,)).tolist()
    sampler = Scheduled(steps=3, guidance=3.0)
    start.transport.fixed = 1.0
    with torch.no_grad():
        x_t = merged(sd1, start).sample(y, seeds, sampler=sampler, until=3 - done)
        texts, chance = method.candidates(sd1.original, sd1)
        anchor = start.embed(texts[torch.multinomial(chance, 2, replacement=True)])
    loss = method.loss(start, x_t, start.timesteps(sampler)[done], y, anchor)
    values = list(trained(start).values())
    grads = torch.autograd.grad(loss, values)
    expected = [0.9999 * value - 1e-2 * grad / (grad.abs() + 1e-8) for value, grad in zip(values, grads, strict=True)]
    off = total = 0
    for value, wanted, grad in zip(trained(model).values(), expected, grads, strict=True):
        clear = grad.abs() > 1e-3 * grad.abs().max()  # Adam's first step is a sign, which rounding may turn
        off += int(((value - wanted).abs() > 1e-4)[clear].sum())
        total += int(clear.sum())
    assert total > 500
    assert off <= 0.01 * total


def test_the_learning_rate_rises_and_follows_cosines():
    method = SPM(lr=2.0, warmup=4, cycles=2)
    assert [method.rate(step, 12) for step in (0, 1, 3)] == [0.0, 0.5, 1.5]
    assert method.rate(4, 12) == method.rate(8, 12) == 2.0
    assert method.rate(6, 12) == pytest.approx(1.0)
    assert method.rate(7, 12) == pytest.approx(1 - math.cos(math.pi / 4))
    assert {SPM(lr=0.5).rate(step, 60) for step in range(60)} == {0.5}


def test_what_does_not_fit_is_refused(sd1):
    for name in ("rank", "anchor_count"):
        with pytest.raises(UserError, match=f"{name}=0 does not fit spm: input should be greater than 0"):
            SPM.configured({name: "0"})

    class Bare(TinyText):
        def names(self, which):
            return super().names(which)[: 0 if which == "retain" else None]

    bare = copy.copy(sd1)
    bare.__class__ = Bare
    with pytest.raises(UserError, match="anchors=names, but tiny-text retains nothing by name: give anchors=noise"):
        SPM(**SHORT).unlearn(SPM().wrap(bare.pretrained(), bare), bare)
    model = SPM().wrap(bare.pretrained(), bare)
    SPM(**SHORT, anchors="noise").unlearn(model, bare)
    assert max(value.abs().max() for name, value in trained(model).items() if ".up." in name) > 0
    with pytest.raises(Unsupported, match="xattn"):
        SPM().wrap(Linear(), TinyTask())
