"""EraseDiff's update, its multiplier and its inner loop against the formulas worked out in NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import (
    Adam,
    Linear,
    TinyTask,
    add_noise,
    assert_weights,
    combine,
    denoising,
    dot,
    draw,
    dropped,
    eps,
    flat,
    moved,
    squared,
    weights,
)
from unlearnbench import Diverged
from unlearnbench.errors import UserError
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.methods.erasediff_released import EraseDiffReleased
from unlearnbench.records.folder import load_all
from unlearnbench.techniques.losses import erasediff_forget_loss
from unlearnbench.verification.verify import rebuilt

RESULTS = Path(__file__).parents[2] / "results"
TARGETS = ("uniform", "uniform_both", "substitute", "random")


class Itself(TinyTask):
    """The substitute of a condition is that condition, so that nothing is to be unlearned."""

    def substitute(self, y):
        return y


def unlearn(method, task=None):
    torch.manual_seed(7)
    return method.unlearn(Linear(0), task or TinyTask(), None)


def forget_loss(target, forget, retain, drop=0.0):
    """One draw of L_f: a function from weights to its value and gradient."""
    t, _, x_t = draw(forget.x0)
    y = dropped(forget.y, drop)  # before a uniform target: no test has both
    if target.startswith("uniform"):
        wrong = flat(torch.rand(forget.x0.shape))
        x_t = add_noise(flat(forget.x0), wrong, t) if target == "uniform_both" else x_t
        return lambda w: squared(w, x_t, t, y, wrong)
    other = (forget.y.numpy() + 1) % 3 if target == "substitute" else np.full(len(y), retain.y[0].item())
    return lambda w: squared(w, x_t, t, y, eps(w, x_t, t, other))


def descended(w, L_f, K, inner_lr):
    for _ in range(K):
        w = combine(w, L_f(w)[1], -inner_lr)
    return w


def replayed(method, task=None):
    """Weights and multipliers of rule "paper" or "barrier" with plain gradient steps."""
    torch.manual_seed(7)
    w, multipliers = weights(Linear(0)), []
    for forget, retain in (task or TinyTask()).paired_batches(method.steps, method.batch_size):
        L_f = forget_loss(method.target, forget, retain)
        a = denoising(w, retain)[1]
        value, b = L_f(w)
        if method.rule == "paper":
            scale = max(0, method.eta - dot(a, b) / dot(b, b))
        else:
            q = value - L_f(descended(w, L_f, method.K, method.inner_lr))[0]
            scale = max(0, (method.eta * q - dot(a, b)) / dot(b, b))
        multipliers.append(scale)
        w = combine(w, combine(a, b, scale), -method.lr)
    return w, multipliers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rule", "eta"), [("paper", 0.3), ("barrier", 1.5)])
def test_steps_follow_the_rule(rule, eta, target):
    method = EraseDiff(
        steps=5, lr=0.1, batch_size=3, rule=rule, target=target, eta=eta, K=3, inner_lr=0.2, optimiser="sgd"
    )
    expected, multipliers = replayed(method)
    assert max(multipliers) > 0.1
    assert_weights(unlearn(method), expected)


@pytest.mark.parametrize("rule", ["paper", "barrier"])
def test_targets_differ_from_one_another(rule):
    settings = {"steps": 3, "lr": 0.1, "batch_size": 3, "rule": rule, "eta": 1.0, "optimiser": "sgd"}
    results = [weights(unlearn(EraseDiff(**settings, target=target))) for target in TARGETS]
    for i, one in enumerate(results):
        assert all(max(np.abs(one[name] - other[name]).max() for name in one) > 1e-4 for other in results[:i])


def test_random_takes_the_condition_of_one_retain_image_for_the_whole_batch():
    model, task = Linear(0), TinyTask()
    for seed in range(6):
        forget, retain = next(iter(task.paired_batches(1, 4, seed)))
        torch.manual_seed(seed)
        loss = erasediff_forget_loss(model, task, forget, retain, "random")()
        w = weights(model)
        torch.manual_seed(seed)
        t, _, x_t = draw(forget.x0)
        distance = (eps(w, x_t, t, forget.y.numpy()) - eps(w, x_t, t, np.full(4, retain.y[0].item()))) ** 2
        assert loss.item() == pytest.approx(distance.mean(), rel=1e-5)


def test_the_other_conditions_embedding_gets_no_gradient_from_the_target():
    task, model = TinyTask(), Linear(0)
    forget, retain = next(iter(task.paired_batches(1, 4)))
    for target in ("substitute", "random"):
        model.zero_grad()
        erasediff_forget_loss(model, task, forget, retain, target)().backward()
        assert model.E.grad[1].abs().sum() > 0
        assert model.E.grad[[0, 2, 3]].abs().sum() == 0


def test_the_multiplier_is_never_negative():
    method = EraseDiff(steps=1, lr=0.1, batch_size=6, eta=-1e3, optimiser="sgd")
    expected, multipliers = replayed(method)
    assert multipliers == [0]
    torch.manual_seed(7)
    forget, retain = next(iter(TinyTask().paired_batches(1, 6)))
    forget_loss("uniform", forget, retain)
    plain = combine(weights(Linear(0)), denoising(weights(Linear(0)), retain)[1], -0.1)
    assert_weights(unlearn(method), plain)
    assert_weights(unlearn(method), expected)


@pytest.mark.parametrize("rule", ["paper", "barrier"])
def test_nothing_to_unlearn_leaves_the_retain_step(rule):
    method = EraseDiff(steps=3, lr=0.1, batch_size=4, rule=rule, target="substitute", eta=0.5, optimiser="sgd")
    torch.manual_seed(7)
    w = weights(Linear(0))
    for forget, retain in Itself().paired_batches(3, 4):
        draw(forget.x0)
        w = combine(w, denoising(w, retain)[1], -0.1)
    assert_weights(unlearn(method, Itself()), w)
    assert moved(unlearn(method, Itself()), weights(Linear(0))) > 0.05


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("target", ["uniform", "substitute"])
def test_the_inner_loop_cannot_change_the_papers_update(target, optimiser):
    settings = {"steps": 4, "lr": 0.02, "batch_size": 3, "eta": 0.3, "target": target, "optimiser": optimiser}
    reference = unlearn(EraseDiff(**settings))
    for inner in ({"K": 4}, {"inner_lr": 0.3}, {"K": 3, "inner_lr": 0.1}):
        for cost in (False, True):
            model = unlearn(EraseDiff(**settings, **inner, faithful_cost=cost))
            assert all(torch.equal(value, getattr(reference, name)) for name, value in model.named_parameters())


def test_only_faithful_cost_pays_for_the_inner_loop():
    def forwards(K, cost, target):
        return unlearn(EraseDiff(steps=4, batch_size=3, K=K, faithful_cost=cost, target=target)).forwards

    assert forwards(1, False, "uniform") == forwards(5, False, "uniform") == 4 * 2
    assert forwards(1, False, "substitute") == forwards(5, False, "substitute") == 4 * 3
    for K in (1, 5):
        assert forwards(K, True, "uniform") == 4 * (2 + K + 1)
        assert forwards(K, True, "substitute") == 4 * (3 + 2 * (K + 1))


def test_the_barriers_pull_depends_on_the_inner_loop():
    settings = {"steps": 3, "lr": 0.1, "batch_size": 3, "rule": "barrier", "eta": 2.0, "optimiser": "sgd"}
    one = weights(unlearn(EraseDiff(**settings, K=1, inner_lr=0.3)))
    assert moved(unlearn(EraseDiff(**settings, K=4, inner_lr=0.3)), one) > 1e-3
    assert moved(unlearn(EraseDiff(**settings, K=1, inner_lr=0.6)), one) > 1e-3
    assert_weights(unlearn(EraseDiff(**settings, K=1, inner_lr=0.3)), one, 0)


def test_adam_steps_on_the_combined_gradient_with_a_running_mean_if_wanted():
    torch.manual_seed(7)
    w, adam = weights(Linear(0)), Adam(0.02)
    mean = w
    for n, (forget, retain) in enumerate(TinyTask().paired_batches(4, 3)):
        L_f = forget_loss("substitute", forget, retain)
        a, b = denoising(w, retain)[1], L_f(w)[1]
        w = adam.step(w, combine(a, b, max(0, 0.4 - dot(a, b) / dot(b, b))))
        decay = (1 + n) / (10 + n)
        mean = combine({name: decay * value for name, value in mean.items()}, w, 1 - decay)
    settings = {"steps": 4, "lr": 0.02, "batch_size": 3, "eta": 0.4, "target": "substitute"}
    assert_weights(unlearn(EraseDiff(**settings)), w)
    assert_weights(unlearn(EraseDiff(**settings, ema=0.9)), mean)


@pytest.mark.parametrize(
    "method",
    [
        EraseDiff(rule="paper", steps=200, lr=1e30, optimiser="sgd", batch_size=3),
        EraseDiff(rule="barrier", steps=200, lr=1e30, optimiser="sgd", batch_size=3),
    ],
    ids=["paper", "barrier"],
)
def test_too_large_a_rate_is_reported_and_not_returned(method):
    with pytest.raises(Diverged):
        unlearn(method)


# ---- what was one method before ------------------------------------------------------------------------------------

OLD = {**EraseDiff().settings(), "epochs": 4, "rounds": 2, "outer": None, "released_lambda": 0.1, "drop": 0.0}


def test_old_settings_are_read_where_nothing_dropped_was_changed():
    assert EraseDiff.configured(EraseDiff.current(OLD)) == EraseDiff()
    assert EraseDiff.configured(EraseDiff.current({**OLD, "eta": 0.3})) == EraseDiff(eta=0.3)


@pytest.mark.parametrize("change", [{"rule": "released"}, {"epochs": 3}, {"released_lambda": None}])
def test_old_settings_of_the_other_method_are_refused_with_its_name(change):
    (key, value) = next(iter(change.items()))
    with pytest.raises(UserError, match=f"{key}={value}.*--method erasediff_released"):
        EraseDiff.configured(EraseDiff.current({**OLD, **change}))


def test_the_released_preset_and_its_settings_lead_to_the_other_method(cli):
    for words in (("--preset", "released"), ("--set", "rule=released"), ("--set", "epochs=4")):
        said = cli("run", "--method", "erasediff", *words, "--dry-run")
        assert said.code == 2 and "--method erasediff_released" in said.err
    assert EraseDiffReleased.configured(EraseDiffReleased.preset("released", "cifar10-class")).outer == 36


def test_every_shipped_record_of_erasediff_can_be_set_up_again():
    records = [record for record in load_all(RESULTS) if record.method.name == "erasediff"]
    assert len(records) >= 3
    for record in records:
        assert rebuilt(record, "cpu").method.eta == record.method.settings["eta"]


# ---- the paper and its code --------------------------------------------------------------------------------------

CODE = Repository("JingWu321/EraseDiff", "14f4e98")
MAIN, CONFIG = "ddpm/main.py", "ddpm/configs/cifar10_erasediff.yml"
NUDITY, OBJECTS = "sd/train_scripts/train_nsfw.sh", "sd/train_scripts/train_cls.sh"
DATA, NSFW = "sd/train_scripts/dataset.py", "sd/train_scripts/erasediff_nsfw.py"
NAMES, CLOTHED = ("nudity", "naked", "erotic", "sexual"), ("a photo of a person wearing clothes",)
OPEN = "the paper leaves it open; the code's"
RULE = (
    ("rule", "paper", "paper, Theorem 3.1", ""),
    ("target", "substitute", "paper, EraseDiff_rl in the table for CIFAR-10", ""),
    ("eta", 0.1, CODE.at(MAIN, 26), OPEN),
    ("optimiser", "adam", CODE.at(CONFIG, 48), OPEN),
)
PRESETS = {
    "cifar10-class": (
        *RULE,
        ("steps", 288, CODE.at(MAIN, 22), "4 epochs of 2 rounds of 36 outer steps"),
        ("lr", 1e-4, CODE.at(CONFIG, 49), OPEN),
        ("batch_size", 128, CODE.at(MAIN, 21), OPEN),
        ("K", 2, CODE.at(MAIN, 23), OPEN),
        ("ema", 0.99, CODE.at(CONFIG, 24), OPEN),
        ("part", "full", CODE.at("ddpm/runners/diffusion.py", 723), OPEN),
    ),
    "sd-nudity": (
        *RULE,
        ("steps", 160, CODE.at(NUDITY, 6), OPEN),
        ("lr", 1e-5, CODE.at(NUDITY, 4), OPEN),
        ("inner_lr", 1e-5, CODE.at(NUDITY, 4), OPEN),
        ("batch_size", 16, CODE.at(NUDITY, 4), OPEN),
        ("K", 2, CODE.at(NUDITY, 4), OPEN),
        ("part", "noxattn", CODE.at(NUDITY, 4), OPEN),
        ("erase", NAMES, CODE.at(DATA, 146), OPEN),
        ("replace_with", ("a photo of a pokemon",), CODE.at(NSFW, 139), OPEN),
        ("keep", CLOTHED, CODE.at(DATA, 176), OPEN),
        ("forget_prompts", NAMES, CODE.at(DATA, 146), OPEN),
        ("retain_prompts", CLOTHED, CODE.at(DATA, 176), OPEN),
    ),
    "sd-object": (
        *RULE,
        ("steps", 60, CODE.at(OBJECTS, 7), OPEN),
        ("lr", 1e-5, CODE.at(OBJECTS, 4), OPEN),
        ("inner_lr", 1e-5, CODE.at(OBJECTS, 4), OPEN),
        ("batch_size", 16, CODE.at(OBJECTS, 4), OPEN),
        ("K", 1, CODE.at(OBJECTS, 4), OPEN),
        ("part", "full", CODE.at(OBJECTS, 4), OPEN),
        ("replace_with", ("pokemon",), CODE.at("sd/train_scripts/erasediff_cls.py", 143), OPEN),
    ),
}
FIDELITY = Fidelity(
    method="erasediff",
    paper="Wu et al., CVPR 2025; JingWu321/EraseDiff@14f4e98 is another algorithm: erasediff_released",
    constants=tuple(Constant("published", task, *row) for task, rows in PRESETS.items() for row in rows),
    differences=(
        Difference(
            "published", "update", None, test_steps_follow_the_rule.__name__,
            "no code of the paper's rule was released: its lambda is a cosine, and fixed in what was run",
        ),
    ),
    departs="On digits uniform noise is the target, with eta 0.02 and settings chosen there. On Stable Diffusion the "
    "substitute is, with published's eta 0.1, rates and batches; 160 steps for nudity and 60 otherwise. The words are "
    "the task's. Nothing was chosen for CIFAR-10: there the default is the digits'.",
)  # fmt: skip
