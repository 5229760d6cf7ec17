"""Each method's weights after a few steps against the paper's formula worked out in NumPy."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    NULL,
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    dot,
    draw,
    dropped,
    eps,
    moved,
    squared,
    weights,
)
from unlearnbench.methods.destroy import Destroy
from unlearnbench.methods.finetune import Finetune
from unlearnbench.methods.gradient_ascent import GradientAscent
from unlearnbench.methods.original import Original
from unlearnbench.methods.random_label import RandomLabel
from unlearnbench.methods.retrain import Retrain
from unlearnbench.methods.salun import SalUn
from unlearnbench.tasks import digits_class
from unlearnbench.verification.conformance import TinyDigits

DDIM = [9, 7, 5, 3, 1]
"""Five steps of a schedule of ten."""


def unlearn(method, task, seed=7):
    torch.manual_seed(seed)
    model = Linear(0)
    return method.unlearn(model, task, method.prepare(model, task))


def test_finetune_descends_the_retain_loss():
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(Finetune(steps=4, lr=0.03, batch_size=5), task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for batch in task.batches(4, 5, "retain"):
        w = adam.step(w, denoising(w, batch)[1])
    assert_weights(model, w)
    assert moved(model, weights(Linear(0))) > 0.05


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradient_ascent_subtracts_the_forget_loss(weight):
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(GradientAscent(steps=4, lr=0.03, batch_size=3, weight=weight), task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 3):
        a = denoising(w, retain)[1]
        w = adam.step(w, combine(a, denoising(w, forget)[1], -weight))
    assert_weights(model, w)


def test_the_teacher_keeps_its_own_embedding():
    model = Linear(0)
    teacher = model.frozen()
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert_weights(teacher, weights(Linear(0)), 0)
    assert not any(value.requires_grad for value in teacher.parameters())


def saliency(w, task, size, guidance):
    """|sum of grad L_f| over one pass, of the guided prediction: its gradient runs through both conditions."""
    total = {name: np.zeros_like(value) for name, value in w.items()}
    for batch in task.batches(-(-6 // size), size, "forget"):
        t, noise, x_t = draw(batch.x0)
        y, null = batch.y.numpy(), np.full(len(t), NULL)
        r = (1 - guidance) * eps(w, x_t, t, null) + guidance * eps(w, x_t, t, y) - noise
        g = 2 * r / r.size
        E = np.zeros_like(w["E"])
        np.add.at(E, y, guidance * g)
        np.add.at(E, null, (1 - guidance) * g)
        total = combine(total, {"W": g.T @ x_t, "E": E, "b": t / 10 @ g}, 1)
    return {name: np.abs(value) for name, value in total.items()}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_salun_masks_the_weights_with_the_largest_summed_gradient(share, guidance):
    torch.manual_seed(7)
    mask = SalUn(batch_size=4, saliency=share, mask_guidance=guidance).prepare(Linear(0), TinyTask())
    torch.manual_seed(7)
    size = saliency(weights(Linear(0)), TinyTask(), 4, guidance)
    least = np.sort(np.concatenate([value.ravel() for value in size.values()]))[-round(36 * share)]
    for name, value in size.items():
        np.testing.assert_array_equal(mask[name], value >= least, err_msg=name)
    assert sum(value.sum() for value in mask.values()) == round(36 * share)


@pytest.mark.parametrize(("clip", "drop"), [(None, 0.0), (0.1, 0.0), (None, 0.4)])
def test_salun_relabels_towards_a_constant_target_within_the_mask(clip, drop):
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(SalUn(steps=4, lr=0.03, batch_size=3, alpha=0.8, saliency=0.4, clip=clip, drop=drop), task)
    torch.manual_seed(7)
    mask = SalUn(batch_size=3, saliency=0.4).prepare(Linear(0), task)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 3):
        t, _, x_t = draw(forget.x0)
        wrong = eps(w, x_t, t, (forget.y.numpy() + 1) % 3)
        g = squared(w, x_t, t, dropped(forget.y, drop), wrong)[1]
        g = combine(g, denoising(w, retain, drop)[1], 0.8)
        length = np.sqrt(sum((value**2).sum() for value in g.values()))
        scale = min(1, clip / length) if clip else 1
        w = adam.step(w, {name: value * scale * mask[name].numpy() for name, value in g.items()})
    assert_weights(model, w)
    for name, value in model.named_parameters():
        changed = value != getattr(Linear(0), name)
        assert torch.equal(changed, mask[name].bool() & changed)
        assert changed.any()


@pytest.mark.parametrize("target", ["substitute", "random", "images"])
@pytest.mark.parametrize(("alpha", "clip", "drop"), [(0.0, None, 0.0), (0.8, None, 0.0), (0.8, 0.1, 0.4)])
def test_random_label_relabels_the_prediction_or_the_images(target, alpha, clip, drop):
    task, w = TinyTask(), weights(Linear(0))
    method = RandomLabel(steps=4, lr=0.03, batch_size=5, alpha=alpha, target=target, clip=clip, drop=drop)
    model = unlearn(method, task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 5):
        t, noise, x_t = draw(retain.x0 if target == "images" else forget.x0)
        other = np.full(5, 2) if target == "substitute" else retain.y.numpy()
        wrong = noise if target == "images" else eps(w, x_t, t, other)
        g = squared(w, x_t, t, dropped(forget.y, drop), wrong)[1]
        g = combine(g, denoising(w, retain, drop)[1], alpha)
        scale = min(1, clip / np.sqrt(dot(g, g))) if clip else 1
        w = adam.step(w, {name: value * scale for name, value in g.items()})
    assert_weights(model, w)
    assert moved(model, weights(Linear(0))) > 0.05


def test_original_changes_nothing():
    model = Linear(0)
    assert Original().unlearn(model, TinyTask()) is model
    assert_weights(model, weights(Linear(0)), 0)


def test_destroy_draws_every_weight_anew_and_not_the_original_ones():
    model = Destroy().unlearn(Linear(0), TinyTask())
    again, other = Destroy().unlearn(Linear(0), TinyTask()), Destroy().unlearn(Linear(0), TinyTask(seed=4))
    assert_weights(again, weights(model), 0)
    for name, value in model.named_parameters():
        assert (value != getattr(Linear(0), name)).all()
        assert (value != getattr(other, name)).all()


def trained(monkeypatch, run):
    """The labels and the number of the batches that a training run takes."""
    seen = []
    plain = TinyDigits._stream
    monkeypatch.setattr(digits_class, "STEPS", 12)

    def spied(self, *arguments):
        for batch in plain(self, *arguments):
            seen.append(batch.y)
            yield batch

    monkeypatch.setattr(TinyDigits, "_stream", spied)
    model = run(TinyDigits("3", limit=None))
    return model, torch.cat(seen), len(seen)


def test_retrain_sees_retained_digits_alone_for_the_originals_number_of_steps(monkeypatch):
    with monkeypatch.context() as patch:
        _, labels, steps = trained(patch, lambda task: task.train(0))
    assert (labels == 3).any()
    assert steps == 12
    with monkeypatch.context() as patch:
        model, labels, steps = trained(patch, lambda task: Retrain().unlearn(task.pretrained(), task))
    assert not (labels == 3).any()
    assert set(labels.tolist()) == set(range(10)) - {3}
    assert steps == 12
    before = TinyDigits().pretrained().state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_retrain_depends_on_the_unlearning_seed_and_on_nothing_else():
    def run(seed, outer):
        torch.manual_seed(outer)
        task = TinyDigits(seed=seed)
        return Retrain().unlearn(task.pretrained(), task).state_dict()

    one, same, other = run(1, 0), run(1, 99), run(2, 0)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(one["unet.conv_in.weight"], other["unet.conv_in.weight"])
