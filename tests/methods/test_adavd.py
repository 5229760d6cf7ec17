"""AdaVD's values against NumPy, for prompts alone and beside the null condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import shared_text
from tests.techniques.test_closed_form import text_states
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods.adavd import AdaVD

CODE = Repository("WYuan1001/AdaVD", "c2d2962")
NOTEBOOK = "demo.ipynb"
FIDELITY = Fidelity(
    method="adavd",
    paper="Wang, Li, Mu, Hao, Liu, Wang and He, CVPR 2025; WYuan1001/AdaVD@c2d2962",
    constants=(
        Constant("released", "sd-style", "shift", True, CODE.at(NOTEBOOK, 49)),
        Constant("released", "sd-style", "steepness", 100.0, CODE.at(NOTEBOOK, 50)),
        Constant("released", "sd-style", "midpoint", 0.93, CODE.at(NOTEBOOK, 51)),
        Constant("released", "sd-style", "strength", 2.0, CODE.at(NOTEBOOK, 52)),
        Constant("released", "sd-style", "with_null", True, CODE.at("src/main.py", 59), "both halves of a batch"),
    ),
    differences=(
        Difference(
            "released",
            "values",
            7.5e-6,
            "test_values_by_hand",
            "record_ortho_decomp beside ours, relative to what it changes, for one and for two names: three prompts of "
            "77 tokens, eight heads, ours in float32",
        ),
    ),
    defects=(
        f"The command line has the shift off unless --token_sim is given ({CODE.at('src/main.py', 316)}); `released` "
        "is the notebook, which has it on",
        "Values are flattened with those of the null condition, which are in every cosine and product and change too "
        f"({CODE.at('src/main.py', 59)}); `released` has with_null",
        f"Gram-Schmidt projects on the concepts' own values, not on the orthogonal ones ({CODE.at('src/main.py', 133)}"
        "), so that three or more are not orthogonal: not reproduced, `released` has one name",
    ),
    departs="The default on Stable Diffusion is the notebook's. In the digits' small world prompts count alone, and "
    "epsilon is 0.35: there the end tokens draw the digit too, and theirs have a cosine of 0.35 to 0.5.",
)

PROMPTS = ["a red seven", "seven", "three"]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request):
    return shared_text(request.param)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(v, n, targets, *, shift=True, p=100.0, epsilon=0.93, s=2.0, with_null=False):
    """New values and null values (L, D) of one prompt, token by token; n are those of the null condition."""
    v, n = v.copy(), n.copy()
    for j in range(1, len(v)):
        u = np.concatenate([n[j], v[j]]) if with_null else v[j]
        T = np.stack([np.concatenate([n[j], t]) if with_null else t for t in targets])
        a = np.linalg.lstsq(T.T, u, rcond=None)[0]
        cos = T @ u / np.linalg.norm(T, axis=1) / np.linalg.norm(u)
        a = a * (s * sigmoid(p * (cos - epsilon)) if shift else 1)
        left = u - a @ T
        v[j] = left[-len(v[j]) :]
        n[j] = left[: len(n[j])] if with_null else n[j]
    return v, n


def values_of(model, call):
    """What every value projection gives while `call` runs, after the method's hooks, in the order of `kv`."""
    seen = {}
    layers = [to_v for _, to_v in model.kv()]
    hooks = [to_v.register_forward_hook(lambda m, args, out: seen.update({m: out.double().numpy()})) for to_v in layers]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return [seen[to_v] for to_v in layers]


def inputs(model, prompts, w):
    x_t = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, condition = torch.full((len(prompts),), 900), model.embed(model.tokens(prompts))
    return lambda: model.guidance(model, x_t, t, 0, condition, model.null(len(prompts)), w)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("seven",), {"epsilon": 0.5, "p": 5.0}),
        (("seven",), {"with_null": True}),
        (("seven", "cat"), {"epsilon": 0.5, "p": 5.0, "with_null": True}),
        (("seven", "cat"), {"shift": False}),
    ],
    ids=["one", "notebook", "two", "plain"],
)
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_values_by_hand(task, names, settings, w, monkeypatch):
    monkeypatch.setattr(task, "words", names)
    ours = {"p": "steepness", "epsilon": "midpoint", "s": "strength"}
    method = AdaVD(**{ours.get(name, name): value for name, value in settings.items()})
    model = method.wrap(task.pretrained(), task)
    with torch.no_grad():
        call, plain = inputs(model, PROMPTS, w), task.original
        states = text_states(plain, PROMPTS)
        null = plain.null(1).states[0].double().numpy()
    c = text_states(plain, names)[:, 1]  # each is one token, at 1
    found = values_of(model, call)
    assert len(found) == len(plain.kv())
    for (_, to_v), values in zip(plain.kv(), found, strict=True):
        W = to_v.weight.detach().double().numpy()
        new = [by_hand(prompt @ W.T, null @ W.T, c @ W.T, **settings) for prompt in states]
        prompts, nulls = (np.stack(side) for side in zip(*new, strict=True))
        np.testing.assert_allclose(values[-len(PROMPTS) :], prompts, atol=5e-5)
        if w != 1:
            np.testing.assert_allclose(values[: len(PROMPTS)], nulls, atol=5e-5)
        assert np.abs(prompts - states @ W.T).max() > 1e-2


def test_without_shift_what_is_left_is_orthogonal_to_the_concept(task):
    model = AdaVD(shift=False).wrap(task.pretrained(), task)
    c = text_states(task.original, ["seven"])[0, 1]
    for (_, to_v), values in zip(model.kv(), values_of(model, inputs(model, PROMPTS, 1.0)), strict=True):
        np.testing.assert_allclose(values[:, 1:] @ (to_v.weight.detach().double().numpy() @ c), 0, atol=1e-5)


def test_no_weight_changes_and_what_it_draws_does(task):
    method = AdaVD(shift=False)
    model = method.wrap(task.pretrained(), task)
    assert method.unlearn(model, task, method.prepare(model, task)) is model
    before, y = task.original.state_dict(), task.captions("forget")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        found, again, plain = (m.sample(y, [1, 2, 3]) for m in (model, model.frozen(), task.original))
    assert torch.equal(found, again) and not torch.equal(found, plain)


def test_gradients_reach_the_prompt(task):
    model = AdaVD(midpoint=0.0, steepness=1.0).wrap(task.pretrained(), task)
    condition = model.embed(model.tokens(["a red seven"]))
    states = condition.states.detach().requires_grad_()
    model.eps(torch.randn(1, 4, 8, 8), torch.tensor([900]), condition._replace(states=states)).square().sum().backward()
    assert (states.grad.abs().sum(dim=2) > 0).all()


def test_a_model_without_text_is_refused():
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        AdaVD().wrap(Linear(0), TinyTask())
    with pytest.raises(UserError, match="steepness=0 does not fit adavd"):
        AdaVD.configured({"steepness": 0})
