"""Concept ablation against its formula in NumPy, on a tiny Stable Diffusion, and its presets against the code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support import tiny_sd
from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import (
    ALPHA_BAR,
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    draw,
    eps,
    moved,
    squared,
    weights,
)
from tests.support.tiny_text import TinyText
from unlearnbench import Batch, Sampler
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.methods.concept_ablation import ConceptAblation
from unlearnbench.tasks.sd_nudity import SDNudity

CODE = Repository("nupurkmr9/concept-ablation", "c11fb1b")
READ, TRAIN, UTILS = "diffusers/README.md", "diffusers/train.py", "diffusers/utils.py"
ANCHORS = ("people", "body", "boy", "girl", "women", "man", "child")
CAPTIONS = tuple(
    text.format(word)
    for word in ANCHORS
    for text in ("nudity, nsfw, {}", "in nudity, nsfw style, {}", "{}, nudity, nsfw")
)
STYLE = (
    ("steps", 100, CODE.at(READ, 39), ""),
    ("lr", 1.6e-5, CODE.at(READ, 38), "2e-6 x 4 images x 2 GPUs"),
    ("batch_size", 8, CODE.at(READ, 37), "4 on each of 2 GPUs"),
    ("images", 1000, CODE.at(TRAIN, 277), "the paper's number too"),
    ("prior_weight", 0.0, CODE.at(READ, 41), "no --with_prior_preservation"),
    ("part", "kv", CODE.at(TRAIN, 917), ""),
)
AS_CODED = (
    ("sum_channels", True, CODE.at(TRAIN, 1149), "a mask of one channel divides a sum over four"),
    ("optimiser", "adamw", CODE.at(TRAIN, 882), ""),
    ("clip", 1.0, CODE.at(TRAIN, 446), ""),
    ("keep_start", True, CODE.at("diffusers/model_pipeline.py", 104), ""),
)
NUDITY = (
    ("steps", 400, CODE.at(READ, 95), ""),
    ("lr", 6.4e-5, CODE.at(TRAIN, 869), "4e-6 x 4 images x 2 GPUs x 2 for the prior"),
    ("batch_size", 8, CODE.at(READ, 93), "4 on each of 2 GPUs"),
    ("images", 1000, CODE.at(TRAIN, 277), ""),
    ("prior_weight", 1.0, CODE.at(TRAIN, 1143), ""),
    ("part", "attn", CODE.at(TRAIN, 925), ""),
    ("erase", CAPTIONS, CODE.at(UTILS, 191), "whole captions: the code's three forms around each anchor"),
    ("replace_with", tuple(word for word in ANCHORS for _ in range(3)), CODE.at(READ, 89), ""),
    ("forget_prompts", CAPTIONS, CODE.at(UTILS, 191), "its 203 anchor captions are a file of the repository's"),
)


def constants(preset, task, lines):
    return tuple(Constant(preset, task, *line) for line in lines)


FIDELITY = Fidelity(
    method="concept_ablation",
    paper="Kumari, Zhang, Wang et al., Ablating Concepts in Text-to-Image Diffusion Models, ICCV 2023",
    constants=(
        *constants("published", "sd-style", STYLE),
        *constants("released", "sd-style", (*STYLE, *AS_CODED)),
        *constants("released", "sd-nudity", (*NUDITY, *AS_CODED)),
    ),
    differences=(
        Difference("released", "update", 2.3e-14, "test_the_codes_loss_sums_over_channels_and_keeps_the_start_token",
                   "Five rounds of its training step on a tiny U-Net in float64, with and without the prior."),
        Difference("released", "parameters", 0.0, "test_it_trains_the_part_that_it_is_told",
                   "The names that it optimises as `cross-attn` and `attn` are those trained here."),
        Difference("published", "update", None, "test_concept_ablation_by_hand",
                   "Not compared: the paper's loss is the code's without its four peculiarities, which have settings."),
        Difference("released", "strings", None, "test_each_caption_of_nudity_has_its_anchor",
                   "Its anchor captions (203 of people, 199 of paintings) are the repository's data; here the README's "
                   "seven words, and the task's captions of a style with its substitute."),
        Difference("released", "sampling", None, "test_anchor_images_are_the_originals_for_the_substitute_caption",
                   "Not compared: 25 steps of DPM-Solver at guidance 6 with the concept as negative prompt there, the "
                   "task's sampler here."),
    ),
    defects=(
        "A mask of one channel divides a sum over four, so that the loss is four times a mean and the prior weighs a "
        f"quarter of what it says ({CODE.at(TRAIN, 1135)}).",
        f"--scale_lr doubles the rate where there is a prior, which no description says ({CODE.at(TRAIN, 869)}).",
    ),
    departs="All of the cross-attention and a denoising loss of the anchors, with Adam, chosen on digits; on Stable "
    "Diffusion the paper's part and numbers, and the authors' recipe with the prior's real weight for nudity.",
)  # fmt: skip
DDIM = [9, 7, 5, 3, 1]
"""Five steps of a schedule of ten."""
FORGOTTEN, SUBSTITUTE = 1, 2


def linear():
    model = Linear(0)
    model.sampler = Sampler(steps=5)
    return model


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("sd1") / "model")


def sampled(predict, seeds):
    """DDIM in NumPy; predict(x, t, i) is the guided noise."""
    x = gaussian_noise(seeds, START, (4,)).double().numpy()
    for i, step in enumerate(DDIM):
        e = predict(x, np.full(len(x), step), i)
        now, then = ALPHA_BAR[step], ALPHA_BAR[DDIM[i + 1]] if i < 4 else 1.0
        x = np.sqrt(then) * (x - np.sqrt(1 - now) * e) / np.sqrt(now) + np.sqrt(1 - then) * e
    return x


@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
@pytest.mark.parametrize("target", ["model", "frozen", "noise"])
def test_concept_ablation_by_hand(target, prior_weight):
    method = ConceptAblation(steps=4, lr=0.03, batch_size=3, images=7, target=target, prior_weight=prior_weight)
    model, task = linear(), TinyTask()
    torch.manual_seed(7)
    method.unlearn(model, task, method.prepare(model, task))

    torch.manual_seed(7)
    w, theta_0, adam, x0 = weights(Linear(0)), weights(Linear(0)), Adam(0.03), []
    for n in (3, 3, 1):
        torch.randint(1, (n,))  # the one caption of the concept
        seeds = torch.randint(2**62, (n,)).tolist()
        x0.append(sampled(lambda x, t, i: eps(theta_0, x, t, np.full(len(x), SUBSTITUTE)), seeds))
    images = torch.tensor(np.concatenate(x0)).float().view(-1, 1, 2, 2)
    concept_y, anchor = np.full(3, FORGOTTEN), np.full(3, SUBSTITUTE)
    for _ in range(4):
        batch = images[torch.randint(7, (3,))]
        t, noise, x_t = draw(batch)
        wanted = {"model": eps(w, x_t, t, anchor), "frozen": eps(theta_0, x_t, t, anchor), "noise": noise}[target]
        g = squared(w, x_t, t, concept_y, wanted)[1]
        if prior_weight:
            t, noise, x_t = draw(batch)
            g = combine(g, squared(w, x_t, t, anchor, noise)[1], prior_weight)
        w = adam.step(w, g)
    assert_weights(model, w, 3e-5)
    assert moved(model, theta_0) > 0.05


def test_anchor_images_are_the_originals_for_the_substitute_caption(text):
    method = ConceptAblation(images=5, batch_size=2)
    torch.manual_seed(3)
    prepared = method.prepare(text.pretrained(), text)
    torch.manual_seed(3)
    for start, n in ((0, 2), (2, 2), (4, 1)):
        y = text.captions("forget")[torch.randint(3, (n,))]
        with torch.no_grad():
            x0 = text.pretrained().sample(text.substitute(y), torch.randint(2**62, (n,)).tolist())
        assert torch.equal(prepared.y[start : start + n], y)
        torch.testing.assert_close(prepared.x0[start : start + n], x0)
    assert text.forgotten(prepared.y).all()
    assert len(prepared.x0) == 5


def test_a_cap_on_steps_caps_the_images_too():
    task = TinyTask(limit=2)
    prepared = ConceptAblation(images=1000, batch_size=4).prepare(linear(), task)
    assert len(prepared.x0) == 8


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        (None, ("attn2",)),
        ("xattn", ("attn2",)),
        ("kv", ("attn2.to_k", "attn2.to_v")),
        ("attn", ("attn1.to_", "attn2.to_")),
        ("full", ("",)),
    ],
)
def test_it_trains_the_part_that_it_is_told(text, part, trained):
    method = ConceptAblation(steps=2, images=3, batch_size=3, part=part)
    model = text.pretrained()
    torch.manual_seed(0)
    method.unlearn(model, text, method.prepare(model, text))
    before = text.pretrained().state_dict()
    own = {name for name, _ in model.named_parameters() if name.startswith("unet.")}
    chosen = {name for name in own if any(word in name for word in trained)}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert set(method.trained(model)) == chosen
    assert changed <= chosen
    assert all(any(word in name for name in changed) for word in trained)


def test_concept_ablation_brings_the_concept_to_its_anchor(text):
    method = ConceptAblation(steps=30, images=12, batch_size=12, lr=3e-4, target="frozen", prior_weight=0.0)
    model = text.pretrained()
    torch.manual_seed(0)
    method.unlearn(model, text, method.prepare(model, text))
    x_t, t = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(100, 1000, 150)
    seven = text.names("forget").expand(6, -1)

    def gap(network):
        with torch.no_grad():
            return (network.eps(x_t, t, seven) - text.original.eps(x_t, t, text.substitute(seven))).norm().item()

    assert gap(model) < 0.5 * gap(text.original)


def step(method, text, model, seed=5):
    """The loss of one step, and the batch and draws that it is of."""
    x0 = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(model.alpha_bar.dtype)
    prepared = Batch(x0, text.original.tokens(["seven", "a photo of a seven", "a red seven"]))
    torch.manual_seed(seed)
    return next(method.losses(model, text, prepared)), prepared


@pytest.mark.parametrize("prior_weight", [0.0, 0.5])
def test_the_codes_loss_sums_over_channels_and_keeps_the_start_token(text, prior_weight):
    """By diffusers' U-Net: sum over channels of the squares, and dW = sum over all tokens but the first of g c^T."""
    settings = {"steps": 1, "batch_size": 3, "prior_weight": prior_weight, "sum_channels": True}
    model = text.pretrained().double()
    loss, prepared = step(ConceptAblation(**settings), text, model)
    torch.manual_seed(5)
    index = torch.randint(3, (3,))
    x0, y = prepared.x0[index], prepared.y[index]
    t, noise, x_t = model.noised(x0)
    states = {name: model.text_encoders[0](ids)[0] for name, ids in (("c*", y), ("c", text.substitute(y)))}
    wanted, found = (model.unet(x_t, t, encoder_hidden_states=states[name]).sample for name in ("c", "c*"))
    expected = (found - wanted.detach()).square().sum(dim=1).mean()
    if prior_weight:
        t, noise, x_t = model.noised(x0)
        drawn = model.unet(x_t, t, encoder_hidden_states=states["c"]).sample
        expected = expected + prior_weight * (drawn - noise).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)

    seen, hooks = {}, []
    pairs = [linear for pair in model.kv() for linear in pair]

    def came(module, inputs, _):
        seen[module] = [inputs[0]]  # the last pass is that of the concept

    def went(module, _, grads):
        seen[module].append(grads[0])

    for linear in pairs:
        hooks += [linear.register_forward_hook(came), linear.register_full_backward_hook(went)]
    plain, _ = step(ConceptAblation(**{**settings, "prior_weight": 0.0}), text, model)
    plain.backward()
    for hook in hooks:
        hook.remove()
    whole = [linear.weight.grad.clone() for linear in pairs]
    model.zero_grad()
    kept, _ = step(ConceptAblation(**{**settings, "prior_weight": 0.0}, keep_start=True), text, model)
    torch.testing.assert_close(kept, plain, rtol=0, atol=0)
    kept.backward()
    for linear, g in zip(pairs, whole, strict=True):
        c, out = seen[linear]
        torch.testing.assert_close(
            linear.weight.grad, torch.einsum("blo,bld->od", out[:, 1:], c[:, 1:]), rtol=1e-7, atol=1e-15
        )
        assert (linear.weight.grad - g).abs().max() > 1e-3 * g.abs().max()
    assert not any(linear._forward_hooks for linear in pairs), "the hooks are gone after a step"


def test_the_optimiser_and_the_clip_are_those_it_is_told(text):
    method = ConceptAblation(steps=3, images=3, batch_size=3, lr=1e-3, optimiser="adamw", clip=1e-3)
    model, other = text.pretrained(), text.pretrained()
    prepared = Batch(
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), text.names("forget").repeat(3, 1)
    )
    torch.manual_seed(0)
    method.unlearn(model, text, prepared)
    chosen = method.trained(other)
    engine = torch.optim.AdamW(chosen.values(), lr=1e-3, weight_decay=0.01)
    torch.manual_seed(0)
    for loss in method.losses(other, text, prepared):
        engine.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen.values(), 1e-3)
        engine.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, other.get_parameter(name), rtol=1e-5, atol=1e-7)


def test_each_caption_of_nudity_has_its_anchor(tmp_path):
    words = [*tiny_sd.WORDS, "nsfw", "style", "wearing", "clothes", *ANCHORS]
    tiny_sd.save(tmp_path / "sd-v1-4", "sd1", words)
    task = SDNudity("nudity", protocol="smoke", data=tmp_path)
    method = ConceptAblation.configured(ConceptAblation.preset("released", "sd-nudity"))
    own = method.worded(task)
    y = own.captions("forget")
    anchors = [own.text(row) for row in own.substitute(y)]
    assert [own.text(row) for row in y] == [own.text(own.tokens([caption])[0]) for caption in CAPTIONS]
    assert anchors == [word for word in ANCHORS for _ in range(3)]
