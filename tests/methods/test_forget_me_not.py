"""Forget-Me-Not against attention written out by hand, known answers for its new words, and what it may change."""

from __future__ import annotations

import pytest
import torch

from tests.support.fidelity import Fidelity
from tests.support.tiny_text import TinyText
from unlearnbench.errors import UserError
from unlearnbench.methods.forget_me_not import ForgetMeNot, renamed

FIDELITY = Fidelity(
    method="forget_me_not",
    paper="Zhang, Wang, Xu, Wang and Shi, Forget-Me-Not, CVPR workshops 2024; SHI-Labs/Forget-Me-Not@a4a81e8",
    departs="Paper and code ran it on identities, with photographs, on Stable Diffusion 2.1: no task here is that run, "
    "so there is no other preset. On Stable Diffusion the default has the code's steps, rate and batch.",
)
PLACES = {"seven": 1, "a photo of a seven": 5, "a red seven": 3}
"""Where the concept's token stands, after the start token."""
SMALL = {"steps": 2, "batch_size": 3}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])  # text and attention to it are the same under v-prediction
def task(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("sd1") / "model")


def maps_of(model, x_t, t, y):
    """Softmax of q k^T / sqrt(d) of every cross-attention, from what goes into it."""
    found, hooks = [], []

    def seen(block, args, given):
        heads = block.heads
        q, k = block.to_q(args[0]), block.to_k(given["encoder_hidden_states"])
        q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k))
        found.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1))

    for name, block in model.unet.named_modules():
        if name.endswith("attn2"):
            hooks.append(block.register_forward_pre_hook(seen, with_kwargs=True))
    model(x_t, t, y)
    for hook in hooks:
        hook.remove()
    return found


def by_hand(model, task, size, kind="squares", ends=False):
    """The first step's loss, drawn as the method draws."""
    batch = next(task.batches(1, size, "forget"))
    t = torch.randint(1000, (size,))
    noise = torch.randn(batch.x0.shape)
    alpha_bar = model.alpha_bar[t].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * batch.x0 + (1 - alpha_bar).sqrt() * noise
    places = {tuple(model.tokens([prompt]).flatten().tolist()): place for prompt, place in PLACES.items()}
    total = 0.0
    for b, row in enumerate(batch.y):
        place = places[tuple(row.flatten().tolist())]
        at = [place, *(range(place + 1, 16) if ends else ())]  # the first tokenizer pads by the end token
        for a in maps_of(model, x_t[b : b + 1], t[b : b + 1], batch.y[b : b + 1]):
            total = total + (a[0, :, :, at] ** 2).sum()
    return total**0.5 if kind == "norm" else total / size


@pytest.mark.parametrize(("kind", "ends"), [("squares", False), ("norm", False), ("squares", True)])
def test_loss_by_hand(task, kind, ends):
    model = task.pretrained()
    torch.manual_seed(3)
    found = next(ForgetMeNot(steps=1, batch_size=3, loss=kind, ends=ends).losses(model, task))
    torch.manual_seed(3)
    torch.testing.assert_close(found, by_hand(model, task, 3, kind, ends), rtol=1e-4, atol=0)


def test_loss_of_maps_written_down():
    a = torch.tensor([[[[0.5, 0.5], [0.2, 0.8]]], [[[0.9, 0.1], [0.3, 0.7]]]])  # two images, one head, two positions
    at = torch.tensor([[False, True], [True, False]])
    squares = [0.25 + 0.64, 0.81 + 0.09]
    assert ForgetMeNot().attended([a, a], at).item() == pytest.approx(2 * sum(squares) / 2)
    assert ForgetMeNot(loss="norm").attended([a, a], at).item() == pytest.approx((2 * sum(squares)) ** 0.5)


def test_one_step_is_adamw_on_cross_attention(sd1):
    model, twin = sd1.pretrained(), sd1.pretrained()
    torch.manual_seed(3)
    ForgetMeNot(steps=1, batch_size=3, lr=1e-3).unlearn(model, sd1)
    torch.manual_seed(3)
    part = {name: value for name, value in twin.named_parameters() if "attn2" in name}
    grads = torch.autograd.grad(by_hand(twin, sd1, 3), list(part.values()), allow_unused=True, materialize_grads=True)
    after = dict(model.named_parameters())
    largest = max(g.abs().max() for g in grads)
    for (name, value), g in zip(part.items(), grads, strict=True):
        expected = value * (1 - 1e-3 * 0.01) - 1e-3 * g / (g.abs() + 1e-8)
        sure = (g == 0) | (g.abs() > 1e-4 * largest)  # elsewhere rounding decides
        torch.testing.assert_close(after[name][sure], expected[sure], rtol=0, atol=2e-6)
    assert sum((g.abs() > 1e-4 * largest).sum() for g in grads) > 500


@pytest.mark.parametrize(("part", "inversion_steps"), [(None, 0), ("full", 2), ("noxattn", 2)])
def test_only_the_part_is_trained(task, part, inversion_steps):
    model, before = task.pretrained(), task.pretrained().state_dict()
    torch.manual_seed(0)
    ForgetMeNot(**SMALL, part=part, inversion_steps=inversion_steps).unlearn(model, task)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= set(model.select(part or "xattn"))


def test_attention_to_the_concept_falls(sd1):
    model = sd1.pretrained()
    torch.manual_seed(0)
    ForgetMeNot(steps=30, batch_size=6, lr=1e-2).unlearn(model, sd1)
    x_t, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([50, 300, 600, 900])
    y = sd1.names("forget").expand(4, -1)
    with torch.no_grad():
        after, before = (torch.cat([a[..., 1].flatten() for a in maps_of(m, x_t, t, y)]) for m in (model, sd1.original))
    assert after.mean() < 0.5 * before.mean()


def test_a_clipped_gradient_is_no_more_than_weight_decay(sd1):
    model, before = sd1.pretrained(), sd1.pretrained().state_dict()
    torch.manual_seed(0)
    ForgetMeNot(**SMALL, lr=1e-3, clip=1e-12).unlearn(model, sd1)
    moved = max((value - before[name]).abs().max() for name, value in model.named_parameters())
    assert 0 < moved < 1e-4, "a step of Adam is 1e-3"


def test_the_weights_alone_are_the_result(task):
    model = task.pretrained()
    method = ForgetMeNot(**SMALL, lr=1e-2)
    method.unlearn(model, task)
    again = method.wrap(task.pretrained(), task)
    again.load_state_dict(model.state_dict())
    x_t, t, y = torch.randn(2, 4, 8, 8), torch.tensor([20, 700]), task.captions("forget")[:2]
    with torch.no_grad():
        assert torch.equal(model(x_t, t, y), again(x_t, t, y))
        assert not torch.equal(model(x_t, t, y), task.original(x_t, t, y))


# ---- textual inversion -------------------------------------------------------------------------------------------


def test_new_words_that_are_old_ones_give_the_prompt_that_has_them(task):
    model = task.pretrained()
    y = model.tokens(["a photo of red seven"] * 2)
    words = [row[0, 4:6] for row in model.words(y)]
    with torch.no_grad():
        found, at = renamed(model, words, 2)
        expected = model.embed(y)
    torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-6)
    if expected.pooled is not None:
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-6)
    assert at.nonzero().tolist() == [[b, k] for b in range(2) for k in (4, 5)]


def test_inversion_takes_adamw_steps_on_the_new_words_alone(sd1):
    method = ForgetMeNot(batch_size=3, inversion_steps=1, inversion_tokens=2, inversion_lr=1e-2)
    model, twin = sd1.pretrained(), sd1.pretrained()
    torch.manual_seed(5)
    (found,) = method.inverted(model, sd1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))

    torch.manual_seed(5)
    table = twin.text_encoders[0].get_input_embeddings().weight
    start = table.detach()[torch.randint(len(table), (2,))].clone()
    y = twin.tokens(["a photo of red seven"] * 3)  # two words whose rows of the table are put in place of
    with torch.no_grad():
        table[y[0, 4:6]] = start
    batch = next(sd1.batches(1, 3, "forget"))
    t, noise = torch.randint(1000, (3,)), torch.randn(batch.x0.shape)
    alpha_bar = twin.alpha_bar[t].view(-1, 1, 1, 1)
    loss = (twin(alpha_bar.sqrt() * batch.x0 + (1 - alpha_bar).sqrt() * noise, t, y) - noise).square().mean()
    g = torch.autograd.grad(loss, table)[0][y[0, 4:6]]
    expected = start * (1 - 1e-2 * 0.01) - 1e-2 * g / (g.abs() + 1e-8)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.sign(), expected.sign())
    assert (found - start).abs().min() > 1e-3


def test_the_new_words_are_what_is_forgotten(sd1):
    model = sd1.pretrained()
    y = model.tokens(["a photo of red seven"])
    words = [row[0, 4:6].detach() for row in model.words(y)]
    torch.manual_seed(1)
    found = next(ForgetMeNot(steps=1, batch_size=1).losses(model, sd1, words))
    torch.manual_seed(1)
    batch = next(sd1.batches(1, 1, "forget"))
    t, noise = torch.randint(1000, (1,)), torch.randn(batch.x0.shape)
    alpha_bar = model.alpha_bar[t].view(-1, 1, 1, 1)
    maps = maps_of(model, alpha_bar.sqrt() * batch.x0 + (1 - alpha_bar).sqrt() * noise, t, y)
    torch.testing.assert_close(found, sum((a[..., 4:6] ** 2).sum() for a in maps), rtol=1e-4, atol=0)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_captions_that_never_say_the_name_are_refused(sd1, monkeypatch):
    monkeypatch.setattr(sd1, "names", lambda which: sd1.original.tokens(["nudity"]))
    with pytest.raises(UserError, match=r"no caption .* set inversion_steps=500"):
        ForgetMeNot(**SMALL).unlearn(sd1.pretrained(), sd1)
    ForgetMeNot(**SMALL, inversion_steps=1).unlearn(sd1.pretrained(), sd1)


def test_too_many_new_words_are_refused(sd1):
    with pytest.raises(UserError, match=r"inversion_tokens=12 .* give 11 at most"):
        ForgetMeNot(**SMALL, inversion_steps=1, inversion_tokens=12).unlearn(sd1.pretrained(), sd1)
    ForgetMeNot(**SMALL, inversion_steps=1, inversion_tokens=11).unlearn(sd1.pretrained(), sd1)


@pytest.mark.parametrize("settings", [{"loss": "sum"}, {"inversion_tokens": 0}, {"inversion_steps": -1}, {"lr": "x"}])
def test_bad_settings_are_named(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=f"{key}={value} does not fit forget_me_not: .*(should|must|valid)"):
        ForgetMeNot.configured(settings)


def test_no_task_here_is_what_the_paper_or_its_code_ran():
    default = ForgetMeNot.configured(ForgetMeNot.preset("default", "sd-nudity"))
    assert (default.steps, default.lr, default.batch_size, default.part, default.loss) == (35, 2e-6, 1, None, "squares")
    assert set(ForgetMeNot.offered()) == {"default"}
    assert {"forget images", "concept", "xattn"} == ForgetMeNot.requires
