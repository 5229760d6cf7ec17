"""Receler's erasers, masks, attack and losses against computations of their own, on tiny Stable Diffusions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, linear

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods.receler import Receler, masks
from unlearnbench.techniques.adapters import adapters, trained
from unlearnbench.techniques.compvis_steps import draw_stop

SHORT = {"steps": 2, "batch_size": 2, "sampler_steps": 3, "attack_steps": 2, "lr": 1e-2}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])  # and sd2, with v-prediction, where predictions are written out
def task(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("plain") / "model")


@torch.no_grad()
def filled(method, task):
    """A wrapped model whose erasers add something."""
    model = method.wrap(task.pretrained(), task)
    generator = torch.Generator().manual_seed(5)
    for value in trained(model).values():
        value.copy_(0.4 * torch.randn(value.shape, generator=generator))
    return model


def learned(method, model, task):
    """The learned tokens as they start, and what trains them."""
    soft = method.soft(model, task.names("forget"))
    return soft, torch.optim.Adam(soft, lr=method.attack_lr, weight_decay=method.attack_decay)


def erased(task, model):
    """The original with o = up(gelu(down(x))) added behind each cross-attention by hooks, and the last o of each."""
    plain, state, outputs = task.pretrained(), model.state_dict(), {}

    def add(name):
        def hook(module, args, x):
            half = {key: state[f"unet.{name}.adapter.{key}"] for key in ("down.weight", "down.bias", "up.weight")}
            hidden = gelu(linear(x, half["down.weight"], half["down.bias"]))
            outputs[name] = linear(hidden, half["up.weight"], state[f"unet.{name}.adapter.up.bias"])
            return x + outputs[name]

        return hook

    for name, block in plain.unet.named_modules():
        if name.endswith("attn2"):
            block.register_forward_hook(add(name))
    return plain, outputs


def inputs(n=2):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, 8, 8, generator=generator), torch.tensor([400, 3, 981][:n])


def penalty(outputs, inside):
    """mean over layers and rows of sum over positions of (1 - M) mean over channels of o^2, by the count of 1 - M."""
    rows = []
    for name, o in outputs.items():
        for each, M in zip(o.detach().double().numpy(), inside[name].double().numpy(), strict=True):
            rows.append(((each * (1 - M)[:, None]) ** 2).mean(axis=1).sum() / (1 - M).sum())
    return np.mean(rows)


def test_an_eraser_behind_each_cross_attention_and_no_change_at_first(task):
    model = Receler().wrap(task.pretrained(), task)
    assert set(adapters(model)) == {
        f"unet.{name.removesuffix('.to_q.weight')}"
        for name in task.original.unet.state_dict()
        if name.endswith("attn2.to_q.weight")
    }
    widths = {eraser.down.weight.shape for eraser in adapters(model).values()}
    assert widths == {(16, 16), (32, 32)}, "no wider than the layer"
    narrow = adapters(Receler(rank=4).wrap(task.pretrained(), task)).values()
    assert {eraser.down.weight.shape for eraser in narrow} == {(4, 16), (4, 32)}
    x_t, t = inputs()
    y = model.tokens(["a red seven", "cat"])
    with torch.no_grad():
        torch.testing.assert_close(model.eps(x_t, t, y), task.original.eps(x_t, t, y))
        loud = filled(Receler(), task)
        torch.testing.assert_close(loud.eps(x_t, t, y), erased(task, loud)[0].eps(x_t, t, y), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(loud.eps(x_t, t, y), task.original.eps(x_t, t, y), atol=1e-2)


@pytest.mark.parametrize(
    ("task", "weight"), [("sd1", 0.0), ("sd1", 0.7), ("sd2", 0.7), ("sdxl", 0.7)], indirect=["task"]
)
def test_the_loss_is_the_papers(task, weight):
    method = Receler(reg_weight=weight)
    model, (x_t, t) = filled(method, task), inputs()
    c = model.embed(model.tokens(["a red seven", "seven"]))
    target = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theta, outputs = erased(task, model)
    with torch.no_grad():
        prediction = theta.eps(x_t, t, c)
    generator = torch.Generator().manual_seed(4)
    inside = {k: (torch.rand(o.shape[:2], generator=generator) > 0.6).float() for k, o in outputs.items()}
    expected = (prediction - target).square().mean().item() + weight * penalty(outputs, inside)
    found = method.loss(model, x_t, t, c, target, inside)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    grads = torch.autograd.grad(found, list(trained(model).values()))
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert not any(eraser._forward_hooks for eraser in adapters(model.unet).values()), "no hook is left behind"


def test_masks_by_hand():
    """Two layers of 2x2 (a quarter of 8) and one of 4x4; two of five tokens are the concept."""
    generator = torch.Generator().manual_seed(0)
    maps = {name: [torch.rand(2, 3, n, 5, generator=generator)] for name, n in (("a", 4), ("b", 16), ("c", 4))}
    words = torch.tensor([[False, True, True, False, False], [False, True, False, False, False]])
    found = masks(maps, words, (4, 8, 8), 0.4)
    for row, chosen in ((0, [1, 2]), (1, [1])):
        look = np.zeros((2, 2))
        for name in ("a", "c"):
            values = maps[name][0][row].double().numpy()
            for place in range(4):
                look[place // 2, place % 2] += values[:, place, chosen].mean() / 2
        M = ((look - look.min()) / (look.max() - look.min()) >= 0.4).astype(float)
        assert 0 < M.sum() < 4
        np.testing.assert_array_equal(found["a"][row].view(2, 2), M)
        np.testing.assert_array_equal(found["c"][row].view(2, 2), M)
        np.testing.assert_array_equal(found["b"][row].view(4, 4), np.kron(M, np.ones((2, 2))))


def test_masks_at_the_thresholds_ends_and_of_oblong_images():
    maps = {"a": [torch.arange(8.0).view(1, 1, 8, 1)]}
    words = torch.tensor([[True]])
    assert masks(maps, words, (4, 8, 16), 0.0)["a"].tolist() == [[1.0] * 8]
    assert masks(maps, words, (4, 8, 16), 1.0)["a"].tolist() == [[0.0] * 7 + [1.0]]
    both = {**maps, "b": [torch.zeros(1, 1, 32, 1)]}
    assert masks(both, words, (4, 8, 16), 1.0)["b"].nonzero()[:, 1].tolist() == [22, 23, 30, 31]


def test_the_originals_predictions_and_its_attention_to_the_concept(task):
    method = Receler(threshold=0.5)
    model, (x_t, t) = filled(method, task), inputs()
    y = model.tokens(["seven", "seven"])
    eps_null, eps_c, inside = method.original(model, x_t, t, y)
    with torch.no_grad():
        torch.testing.assert_close(eps_null, task.original.eps(x_t, t, task.original.null(2)), rtol=1e-4, atol=1e-5)
        with task.original.attention() as maps:
            torch.testing.assert_close(eps_c, task.original.eps(x_t, t, y), rtol=1e-4, atol=1e-5)
    token = torch.zeros(2, model.length, dtype=torch.bool)
    token[:, 1] = True
    expected = masks(maps, token, (4, 8, 8), 0.5)
    assert {name: value.tolist() for name, value in inside.items()} == {k: v.tolist() for k, v in expected.items()}
    assert all(eraser.gate == 1 for eraser in adapters(model).values()), "they are switched on again"


def test_learnt_words_stand_behind_the_name(task):
    """Put the embeddings of real words there, and it must be the prompt with those words."""
    model = task.original
    y = model.tokens(["seven", "a red seven"])
    soft = [words[:, 1].expand(2, -1, -1) for words in model.words(model.tokens(["red", "cat"]))]
    with torch.no_grad():
        found = Receler(attack_tokens=2).attacked(model, y, soft)
        expected = model.embed(model.tokens(["seven red cat", "a red seven red cat"]))
    torch.testing.assert_close(found.states, expected.states)
    if expected.pooled is not None:
        torch.testing.assert_close(found.pooled, expected.pooled)
        assert not torch.allclose(found.pooled, model.embed(y).pooled)


def test_learnt_states_stand_behind_the_name(task):
    model = task.original
    y = model.tokens(["seven", "a red seven"])
    plain = model.embed(y)
    new = torch.randn(2, 3, plain.states.shape[2])
    found = Receler(where="states", attack_tokens=3).attacked(model, y, [new])
    expected = plain.states.detach().clone()
    expected[0, 2:5], expected[1, 4:7] = new[0], new[1]
    torch.testing.assert_close(found.states.detach(), expected)
    assert found.pooled is None or torch.equal(found.pooled, plain.pooled)


@pytest.mark.parametrize("where", ["words", "states"])
def test_the_attack_and_the_step_after_it(tmp_path, where):
    """The first loss: x_t of the model's own, two Adam steps of the learnt tokens of each name, then the paper's."""
    task = TinyText(tmp_path / "model", names=("seven", "red cat"))
    method = Receler(**SHORT, where=where, attack_tokens=2, attack_lr=0.05, attack_decay=0.3, eta=2.0)
    model = filled(method, task)
    torch.manual_seed(11)
    found = next(method.losses(model, task, *learned(method, model, task))).item()

    torch.manual_seed(11)
    original, (theta, outputs) = task.original, erased(task, model)
    width = 16
    if where == "states":
        soft = torch.rand(2, 2, width)
    else:
        table = original.text_encoders[0].get_input_embeddings().weight.detach()
        soft = table[torch.randint(len(table), (2, 2))]
    y = next(task.conditions("forget", 1, 2))
    done, seeds = torch.randint(3, (2,)), torch.randint(2**62, (2,)).tolist()
    sampler = Scheduled(steps=3, guidance=3.0)
    with torch.no_grad():
        x_t = theta.sample(y, seeds, sampler=sampler, until=3 - done)
    t = original.timesteps(sampler)[done]
    eps_null, eps_c, inside = method.original(model, x_t, t, y)
    whose = [0 if row[1] == task.token("seven") else 1 for row in y]
    last = [2 if name else 1 for name in whose]

    def condition(value):
        if where == "states":
            states = theta.embed(y).states
            rows = [torch.cat([s[: i + 1], value[k], s[i + 3 :]]) for s, i, k in zip(states, last, whose, strict=True)]
            return theta.embed(y)._replace(states=torch.stack(rows))
        texts = [["seven", "red cat"][k] + " one one" for k in whose]
        ids = theta.tokens(texts)
        rows = [
            torch.cat([w[: i + 1], value[k], w[i + 3 :]])
            for w, i, k in zip(theta.words(ids)[0], last, whose, strict=True)
        ]
        return theta.embed(ids, [torch.stack(rows)])

    m = v = torch.zeros_like(soft)
    for n in (1, 2):
        soft = soft.clone().requires_grad_()
        attack = (theta.eps(x_t, t, condition(soft)) - eps_c).square().mean()
        (g,) = torch.autograd.grad(attack, soft)
        with torch.no_grad():
            g = g + 0.3 * soft
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            soft = soft - 0.05 * (m / (1 - 0.9**n)) / ((v / (1 - 0.999**n)).sqrt() + 1e-8)
    with torch.no_grad():
        erase = (theta.eps(x_t, t, condition(soft)) - (eps_null - 2.0 * (eps_c - eps_null))).square().mean().item()
        assert found == pytest.approx(erase + 0.1 * penalty(outputs, inside), rel=1e-4)
        plain = (theta.eps(x_t, t, y) - (eps_null - 2.0 * (eps_c - eps_null))).square().mean().item()
        assert abs(plain - erase) > 1e-3 * erase, "the attack would be seen to be missing"


def test_the_attack_brings_the_concept_nearer(sd1):
    """On a fixed x_t, more steps leave the erased model nearer to what the original predicts for the concept."""
    gaps = {}
    for steps in (0, 20):
        method = Receler(where="states", attack_steps=steps, attack_lr=0.1, attack_decay=0.0, eta=-1.0, reg_weight=0.0)
        torch.manual_seed(1)  # with eta = -1 the target is the original's own prediction for the concept
        method = Receler(**{**method.settings(), "batch_size": 4, "sampler_steps": 3})
        model = filled(method, sd1)
        gaps[steps] = next(method.losses(model, sd1, *learned(method, model, sd1))).item()
    assert gaps[20] < gaps[0]


@pytest.mark.parametrize(  # "words" has tokens for each text encoder; the others do not ask how many there are
    ("task", "settings"),
    [("sd1", {}), ("sdxl", {}), ("sdxl", {"where": "states"}), ("sd1", {"attack_steps": 0})],
    indirect=["task"],
)
def test_training_moves_the_erasers_alone_and_its_weights_load(task, settings):
    method = Receler(**{**SHORT, **settings})
    torch.manual_seed(0)
    model = method.wrap(task.pretrained(), task)
    start = copy.deepcopy(model.state_dict())
    assert method.unlearn(model, task) is model
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == set(trained(model))
    again = method.wrap(task.pretrained(), task)
    again.load_state_dict(model.state_dict())
    x_t, t = inputs()
    y = model.tokens(["a red seven", "cat"])
    with torch.no_grad():
        predicted = model.eps(x_t, t, y)
        torch.testing.assert_close(again.eps(x_t, t, y), predicted)
        torch.testing.assert_close(model.frozen().eps(x_t, t, y), predicted)
        assert not torch.allclose(predicted, task.original.eps(x_t, t, y), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused(sd1):
    for name, least in (("rank", 0), ("attack_tokens", 0), ("attack_steps", -1)):
        with pytest.raises(UserError, match=f"{name}={least} does not fit receler: input should be greater than"):
            Receler.configured({name: str(least)})
    model = Receler().wrap(sd1.pretrained(), sd1)
    with pytest.raises(UserError, match="attack_tokens=14 do not fit behind the name: give 13 or fewer"):
        Receler(**SHORT, attack_tokens=14).unlearn(model, sd1)
    Receler(**{**SHORT, "steps": 1}, attack_tokens=13).unlearn(model, sd1)
    Receler(**{**SHORT, "steps": 1, "attack_steps": 0}, attack_tokens=14).unlearn(model, sd1)
    with pytest.raises(Unsupported, match="xattn"):
        Receler().wrap(Linear(), TinyTask())


# ---- what the released code does -----------------------------------------------------------------------------------


def test_released_trains_on_the_name_at_a_timestep_above_its_latents(sd1):
    """x_t comes from the erasers' own network; predictions, masks and the loss are those of the code's t."""
    method = Receler(**{**SHORT, "attack_steps": 0}, t_above=True, threshold=0.5)
    model = filled(method, sd1)
    torch.manual_seed(12)
    soft = method.soft(model, sd1.names("forget"))
    found = next(method.losses(model, sd1, soft, torch.optim.Adam(soft))).item()

    torch.manual_seed(12)
    original, (theta, outputs) = sd1.original, erased(sd1, model)
    method.soft(model, sd1.names("forget"))  # learnt tokens are drawn, though no attack uses them
    y = next(sd1.conditions("forget", 1, 2))
    stop = draw_stop(3, 1000)
    seeds = torch.randint(2**62, (2,)).tolist()
    with torch.no_grad():
        x_t = theta.sample(y, seeds, sampler=Scheduled(steps=3, guidance=3.0), until=stop.left)
        t = torch.full((2,), stop.t)
        eps_null, eps_c, inside = method.original(model, x_t, t, y)
        assert torch.allclose(eps_c, original.eps(x_t, t, y), atol=1e-5)
        erase = (theta.eps(x_t, t, y) - (2 * eps_null - eps_c)).square().mean().item()
    assert found == pytest.approx(erase + 0.1 * penalty(outputs, inside), rel=1e-4)


def test_the_released_preset_is_for_nudity_alone():
    released = Receler.configured(Receler.preset("released", "sd-nudity"))
    assert (released.steps, released.attack_steps, released.t_above, released.erase) == (500, 0, True, ("nudity",))
    for task in ("digits-text", "sd-style", "sd-object", "sdxl-nudity"):
        with pytest.raises(Unsupported, match="no settings for"):
            Receler.preset("released", task)


CODE = Repository("jasper0314-huang/Receler", "3ccedc9")
SCRIPT = "train_receler.py"


def constant(field, value, source, note=""):
    return Constant("released", "sd-nudity", field, value, source, note)


FIDELITY = Fidelity(
    method="receler",
    paper="Huang et al., ECCV 2024; jasper0314-huang/Receler@3ccedc9",
    constants=(
        constant("erase", ("nudity",), CODE.at("evaluation/README.md", 28), "the model that erases `nudity`"),
        constant("steps", 500, CODE.at(SCRIPT, 236)),
        constant("lr", 3e-4, CODE.at(SCRIPT, 237)),
        constant("batch_size", 1, CODE.at(SCRIPT, 132), "one start code"),
        constant("eta", 1.0, CODE.at(SCRIPT, 255)),
        constant("rank", 128, CODE.at(SCRIPT, 256)),
        constant("reg_weight", 0.1, CODE.at(SCRIPT, 240)),
        constant("threshold", 0.1, CODE.at(SCRIPT, 241)),
        constant("attack_steps", 0, CODE.at(SCRIPT, 149), "50, without effect: they change a copy of the prompt"),
        constant("start_guidance", 3.0, CODE.at(SCRIPT, 254)),
        constant("sampler_steps", 50, CODE.at(SCRIPT, 261)),
        constant("t_above", True, CODE.at(SCRIPT, 130)),
    ),
    differences=(
        Difference(
            "released", "mask", 0.0, "test_masks_by_hand",
            "get_mask on the shapes of v1.4's eight kinds of layers, thresholds 0.1 and 0.5",
        ),
        Difference(
            "released", "loss", 2.2e-16, "test_the_loss_is_the_papers", "L_reg on random outputs of erasers, in float64"
        ),
        Difference(
            "released", "update", None, "test_released_trains_on_the_name_at_a_timestep_above_its_latents",
            "its network is CompVis's, whose weights could not be had; its loss was followed line by line",
        ),
    ),
    defects=(
        "The learned tokens are assigned to a copy of the prompt, so that the attack has no effect "
        "(train_receler.py:149).",
        "t is drawn 39 to 58 above the level of x_t (train_receler.py:126-130).",
        "train_receler's own default is 1,000 iterations where the command line's is 500 (train_receler.py:31, 236).",
    ),
    departs="On Stable Diffusion the default has the code's settings with the attack that it means, the task's names, "
    "and t at the level of x_t. There is no published preset: the paper's settings are not checked yet.",
)  # fmt: skip
