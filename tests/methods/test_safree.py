"""SAFREE against NumPy: subspaces, triggers, how long it acts, and its filter inside the U-Net."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods import safree
from unlearnbench.methods.negative_prompt import NegativePrompt
from unlearnbench.methods.safree import SAFREE, basis, triggers, weaker

CODE = Repository("jaehong31/SAFREE", "b8b2c3f")
PIPELINE = "models/modified_stable_diffusion_pipeline.py"
NO_TEXT = "the released value; the paper's own text was not at hand"


def constants(preset, task, **sources):
    """One constant for each field: its value, where it was read, and a note."""
    return tuple(
        Constant(preset, task, field, value, source, *note) for field, (value, source, *note) in sources.items()
    )


PHRASES = (
    *("Sexual Acts", "Content Meant to Arouse Sexual Excitement", "Nudity", "Pornography", "Erotic Art", "Lustful"),
    *("Seductive", "Orgasmic", "Libido", "Kinky", "Sexual Orientation", "Sexual Attraction", "Sexual Intercourse"),
    *("Sexual Pleasure", "Sexual Fantasy", "Carnal Desires", "Sexual Gratification"),
)
BOTH = {
    "alpha": (0.01, CODE.at("generate_safree.py", 415), NO_TEXT),
    "gamma": (10.0, CODE.at("generate_safree.py", 418), NO_TEXT),
}
PUBLISHED = {
    **BOTH,
    "validate": ("paper", "paper, self-validating filtering: t' = gamma sigmoid(1 - cos)"),
    "reattend": (True, "paper, latent re-attention"),
    "s1": (0.9, CODE.at("generate_safree.py", 417), NO_TEXT),
    "s2": (0.2, CODE.at("generate_safree.py", 417), NO_TEXT),
}
RELEASED = {
    **BOTH,
    "validate": ("released", CODE.at("scripts/run_nudity.sh", 44), "-svf, and f_beta in the pipeline"),
    "reattend": (False, CODE.at("generate_safree.py", 227), "asked for by -lra, never switched on"),
    "negative": (True, CODE.at("generate_safree.py", 319)),
}
NUDITY = {"erase": (PHRASES, CODE.at("generate_safree.py", 246))}
FIDELITY = Fidelity(
    method="safree",
    paper="Yoon, Yu, Patil, Yao and Bansal, ICLR 2025; jaehong31/SAFREE@b8b2c3f",
    constants=(
        *constants("published", "sd-nudity", **PUBLISHED, **NUDITY),
        *constants("published", "sdxl-nudity", **PUBLISHED, **NUDITY),
        *constants("published", "sd-style", **PUBLISHED),
        *constants(
            "released",
            "sd-nudity",
            **RELEASED,
            **NUDITY,
            slope=(5.0, CODE.at(PIPELINE, 25), "2 k, k is 2.5"),
            midpoint=(5.333, CODE.at(PIPELINE, 24)),
        ),
        *constants(
            "released",
            "sd-style",
            **RELEASED,
            slope=(7.0, CODE.at(PIPELINE, 22), "2 k, k is 3.5 for artists"),
            midpoint=(5.5, CODE.at(PIPELINE, 21)),
        ),
    ),
    differences=(
        Difference(
            "released",
            "sampling",
            1.6e-5,
            "test_safe_prompts_by_hand",
            "its whole pipeline beside ours for nudity and for artists: three prompts, 50 DDIM steps, guidance 7.5, "
            "float32 latents; with re-attention on, as before, 0.8 to 11 %",
        ),
        Difference(
            "published",
            "sampling",
            None,
            "test_the_filter_by_hand",
            "its re-attention and its self-validation are in no code; both are held to the paper's formulas",
        ),
        Difference("released", "strings", 0.0, "test_presets", "the 17 phrases, joined by commas"),
    ),
    defects=(
        "generate_safree.py:227 installs the filter without the argument that switches it on, so that -lra computes a "
        "third prediction and filters nothing; `released` does not re-attend",
        "free_lunch_utils.py:35 would compare real parts where the paper compares magnitudes, and put the constant "
        "`scale` in place of a frequency; never reached",
        "scripts/run_artist.sh passes --ngpt, which generate_safree.py does not know, and a --category that its "
        "choices spell differently (:404), so that it stops; `released` has what its functions would do for artists",
        "models/modified_stable_diffusion_xl_pipeline.py:1479 projects penultimate states of the second encoder off a "
        "subspace of projected pooled states; there is no `released` for sdxl-nudity",
    ),
    departs="The default is the paper's: it re-attends by magnitude, validates by gamma sigmoid(1 - cos), and keeps "
    "the empty prompt as the null condition. The released code does none of these three.",
)

PROMPTS = ["seven", "a photo of a red seven", "the number three", "picture of a cat in green"]
SEEDS = [5, 6, 7, 8]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])  # and sd2, with v-prediction, where predictions are written out
def task(request, tmp_path_factory):
    return loud(TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return loud(TinyText(tmp_path_factory.mktemp("sd1") / "model"))


@torch.no_grad()
def loud(task):
    """With loud values in cross-attention: untrained, it would hardly tell one prompt from another."""
    for name, value in task.original.unet.named_parameters():
        if "attn2.to_v" in name:
            value.mul_(100)
    return task


def encoded(model, ids):
    """(n, L, D) from the encoders themselves."""
    with torch.no_grad():
        if len(model.text_encoders) == 1:
            return model.text_encoders[0](ids).last_hidden_state.double().numpy()
        both = [
            encoder(ids[:, k], output_hidden_states=True).hidden_states[-2]
            for k, encoder in enumerate(model.text_encoders)
        ]
    return torch.cat(both, dim=-1).double().numpy()


def projection(rows):
    """E (E^T E)^+ E^T, E the vectors as columns."""
    E = np.asarray(rows, dtype=float).T
    return E @ np.linalg.pinv(E.T @ E, rcond=1e-10) @ E.T


def said(prompt):
    return len(prompt.split())


def by_hand(model, prompt, phrases, alpha=0.01):
    """Safe states (L, D), triggers (n,) and the mean cosine of one prompt, with every phrase a prompt of its own."""
    P_C = projection([encoded(model, model.tokens([phrase]))[0, said(phrase) + 1] for phrase in phrases])
    n = said(prompt)
    p = []
    for i in range(1, n + 1):
        ids = model.tokens([prompt]).clone()
        ids[..., i] = 0
        p.append(encoded(model, ids)[0, n + 1])
    d = [np.linalg.norm(one - P_C @ one) for one in p]
    found = [n == 1 or d[i] >= (1 + alpha) * np.mean(d[:i] + d[i + 1 :]) for i in range(n)]
    states = encoded(model, model.tokens([prompt]))[0]
    off = states @ projection(p).T @ (np.eye(len(P_C)) - P_C).T
    safe = states.copy()
    safe[1 : n + 1][found] = off[1 : n + 1][found]
    a, b = off[: n + 2], states[: n + 2]
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-8)
    return safe, found, cosine.mean()


def guarded(task, **settings):
    return SAFREE(**settings).wrap(task.pretrained(), task)


def safe_states(model, prompts):
    y = model.tokens(prompts)
    with torch.no_grad():
        return model.guidance.safe(model, model.embed(y).states, y)


# ---- the parts ---------------------------------------------------------------------------------------------------


def test_a_basis_projects_as_the_pseudo_inverse_does():
    rng = np.random.default_rng(0)
    E = rng.normal(size=(3, 6)).astype(np.float32)
    for rows in (E, np.concatenate([E, E[:2] * 3, E[:1] + E[1:2]]), rng.normal(size=(9, 6))):
        B = basis(torch.tensor(rows, dtype=torch.float64)).numpy()
        np.testing.assert_allclose(B @ B.T, projection(rows), atol=1e-6)
        np.testing.assert_allclose(B.T @ B, np.eye(B.shape[1]), atol=1e-12)
    assert basis(torch.tensor(np.concatenate([E, E]), dtype=torch.float64)).shape == (6, 3)


def test_triggers_written_down():
    concept = torch.tensor([[1.0], [0.0], [0.0]])  # what is left of p is its second and third number
    p = torch.tensor(
        [[9.0, 3.0, 4.0], [0.0, 0.0, 5.0], [-2.0, 6.0, 8.0]]
    )  # d = 5, 5, 10; the others' means 7.5, 7.5, 5
    assert triggers(p, concept, 0.01).tolist() == [False, False, True]
    assert triggers(p, concept, 1.1).tolist() == [False, False, False]
    near = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.02, 0.0]])  # 2 % more than the other
    assert triggers(near, concept, 0.01).tolist() == [False, True]
    assert triggers(near, concept, 0.03).tolist() == [False, False]
    assert triggers(p[:1], concept, 0.01).tolist() == [True], "the only token of a prompt"


@pytest.mark.parametrize("names", [("seven",), ("seven", "red cat")])
def test_safe_prompts_by_hand(task, names, monkeypatch):
    monkeypatch.setattr(task, "words", names)
    model = guarded(task)
    found, steps = safe_states(model, PROMPTS)
    seen = []
    for b, prompt in enumerate(PROMPTS):
        states, trigger, cosine = by_hand(model, prompt, names)
        np.testing.assert_allclose(found[b].numpy(), states, atol=2e-4)
        assert steps[b] == np.round(10 / (1 + np.exp(cosine - 1)))
        seen += trigger if len(trigger) > 1 else []
    assert {True, False} == set(map(bool, seen))


@pytest.mark.parametrize(
    ("validate", "gamma", "k", "t"),
    [
        ("paper", 10, 2.5, 5.333),
        ("paper", 40, 9, 9),
        ("released", 10, 2.5, 5.333),
        ("released", 90, 3.5, 5.5),
        ("released", 90, 0.1, -3.0),
        ("off", 10, 2.5, 5.333),
    ],
)
def test_how_long_it_acts_by_hand(sd1, validate, gamma, k, t):
    model = guarded(sd1, validate=validate, gamma=gamma, slope=2 * k, midpoint=t)
    _, steps = safe_states(model, PROMPTS)
    for b, prompt in enumerate(PROMPTS):
        distance = 1 - by_hand(model, prompt, ["seven"])[2]
        expected = {
            "paper": np.round(gamma / (1 + np.exp(-distance))),
            "released": np.round(gamma / (1 + np.exp(-2.0 * k * (10 * distance - t)))) + 1,
        }
        assert steps[b] == expected[validate] if validate in expected else steps[b] >= 50


def test_alpha_decides_what_is_replaced(sd1):
    y = sd1.original.tokens(PROMPTS)
    with torch.no_grad():
        states = sd1.original.embed(y).states
    many, few = (
        (safe_states(guarded(sd1, alpha=alpha), PROMPTS)[0] != states).any(dim=2).sum().item() for alpha in (0.0, 0.5)
    )
    assert many > few >= 1, "the prompt of one token is always replaced"


# ---- guidance ----------------------------------------------------------------------------------------------------


def watched(model, y, seeds, **sampler):
    """The text states of every call of the denoiser while sampling."""
    seen, plain = [], model.predict
    model.predict = lambda x_t, t, condition: seen.append(condition.states.clone()) or plain(x_t, t, condition)
    with torch.no_grad():
        x = model.sample(y, seeds, sampler=Scheduled(**sampler))
    del model.predict
    return x, seen


@pytest.mark.parametrize(("steps", "gamma", "first"), [(10, 18, 2), (25, 18, 5), (10, 0, 0), (10, 100, 10)])
def test_the_safe_prompt_acts_for_its_share_of_the_steps(sd1, steps, gamma, first, monkeypatch):
    model = guarded(sd1, gamma=gamma, reattend=False)
    monkeypatch.setattr(torch, "sigmoid", lambda x: torch.full_like(x, 0.55))  # 18 * 0.55 is 10 of 50
    y = model.tokens(["seven"])
    safe = safe_states(model, ["seven"])[0]
    with torch.no_grad():
        states = model.embed(y).states
    _, seen = watched(model, y, [1], steps=steps, guidance=2.0)
    found = [torch.equal(both[1:], safe) for both in seen]
    assert found == [i < first for i in range(steps)]
    assert all(torch.equal(both[1:], states) for both in seen[first:])


@pytest.mark.parametrize("reattend", [False, True])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_prompts_without_triggers_are_guided_as_before(sd1, w, reattend, monkeypatch):
    monkeypatch.setattr(safree, "triggers", lambda p, concept, alpha: torch.zeros(len(p), dtype=torch.bool))
    model, y = guarded(sd1, validate="off", reattend=reattend), sd1.original.tokens(PROMPTS)
    with torch.no_grad():
        found, plain = (m.sample(y, SEEDS, sampler=Scheduled(steps=3, guidance=w)) for m in (model, sd1.original))
    assert torch.equal(found, plain)


@pytest.mark.parametrize(("task", "w"), [("sd1", 1.0), ("sd1", 3.0), ("sd2", 3.0), ("sdxl", 3.0)], indirect=["task"])
def test_skip_features_are_filtered_where_freeu_filters_them(task, w, monkeypatch):
    """With the filter made diffusers' own, the safe prompt's prediction is that of FreeU, and no other's."""
    from diffusers.utils.torch_utils import fourier_filter

    def freeu(h, scale, moved):
        null, safe, original = h.chunk(3)
        return torch.cat([null, fourier_filter(safe, 1, scale), original])

    monkeypatch.setattr(safree, "weaker", freeu)
    model, plain, free = guarded(task, validate="off"), task.pretrained(), task.pretrained()
    free.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.0, b2=1.0)
    y, x_t = model.tokens(PROMPTS[:2]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([300, 900])
    with torch.no_grad():
        condition = model.embed(y)
        found = model.guidance(model, x_t, t, 0, condition, model.null(2), w)
        safe = condition._replace(states=model.guidance.safe(model, condition.states, y)[0])
        eps_null, eps_c = plain.eps(x_t, t, plain.null(2)), free.eps(x_t, t, safe)
        unfiltered = plain.eps(x_t, t, safe)
    torch.testing.assert_close(found, eps_null + w * (eps_c - eps_null), rtol=0, atol=2e-5)
    assert (eps_c - unfiltered).abs().max() > 1e-3
    assert not any(block._forward_pre_hooks for block in model.unet.up_blocks)


def test_the_filter_by_hand():
    rng = np.random.default_rng(3)
    h = rng.normal(size=(9, 2, 6, 5))
    found = weaker(torch.tensor(h), 0.3, torch.tensor([True, False, True])).numpy()
    np.testing.assert_array_equal(found[[0, 1, 2, 4, 6, 7, 8]], h[[0, 1, 2, 4, 6, 7, 8]])
    less = 0
    for b in (3, 5):
        F, F_0 = (np.fft.fftshift(np.fft.fft2(h[k]), axes=(1, 2)) for k in (b, b + 3))
        for c in range(2):
            for u in (2, 3):  # rows about the centre of six, columns about that of five
                for v in (1, 2):
                    if abs(F[c, u, v]) > abs(F_0[c, u, v]):
                        F[c, u, v] *= 0.3
                        less += 1
        np.testing.assert_allclose(found[b], np.fft.ifft2(np.fft.ifftshift(F, axes=(1, 2))).real, atol=1e-6)
    assert 0 < less < 16


def test_re_attention_changes_the_picture_and_can_be_left_out(sd1):
    y = sd1.original.tokens(PROMPTS[1:2])
    with torch.no_grad():
        with_it, without, weak = (
            guarded(sd1, validate="off", **more).sample(y, [3], sampler=Scheduled(steps=3))
            for more in ({}, {"reattend": False}, {"s1": 1.0, "s2": 1.0})
        )
    assert (with_it - without).abs().max() > 1e-3
    torch.testing.assert_close(weak, without, rtol=0, atol=1e-4)


def test_without_acting_the_negative_prompt_alone_is_left(task):
    y = task.original.tokens(PROMPTS)
    sampler = Scheduled(steps=3, guidance=3.0)
    ours = guarded(task, gamma=0, negative=True)
    theirs = NegativePrompt().wrap(task.pretrained(), task)
    with torch.no_grad():
        found, expected, plain = (m.sample(y, SEEDS, sampler=sampler) for m in (ours, theirs, task.original))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - plain).abs().max() > 1e-3


def test_a_condition_without_tokens_passes(sd1):
    model = guarded(sd1, validate="off")
    condition = model.embed(model.tokens(PROMPTS))._replace(ids=None)
    x_t, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((4,), 900)
    null = model.null(4)._replace(ids=None)
    with torch.no_grad():
        found, plain = (m.guidance(m, x_t, t, 0, condition, null, 2.0) for m in (model, sd1.original))
    assert torch.equal(found, plain)


def test_gradients_reach_the_condition(sd1):
    model = guarded(sd1, validate="off")
    condition = model.embed(model.tokens(PROMPTS[1:2]))
    states = condition.states.detach().requires_grad_()
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([900])
    model.guidance(model, x_t, t, 0, condition._replace(states=states), model.null(1), 2.0).square().sum().backward()
    assert (states.grad.abs().sum(dim=2) > 0)[0, :7].all()


def test_prompts_are_read_again_for_each_run(sd1):
    model = guarded(sd1, validate="off", reattend=False)
    y = model.tokens(PROMPTS)
    watched(model, y, SEEDS, steps=2)
    with torch.no_grad():
        for value in model.text_encoders[0].parameters():
            value.mul_(1.3)
    model.guidance.start(4)
    found, _ = safe_states(model, PROMPTS)
    np.testing.assert_allclose(found[1].numpy(), by_hand(model, PROMPTS[1], ["seven"])[0], atol=5e-4)


def test_autocast_leaves_subspaces_exact(sd1):
    model, y = guarded(sd1), sd1.original.tokens(PROMPTS)
    with torch.no_grad():
        states = model.embed(y).states
        exact = model.guidance.safe(model, states, y)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = model.guidance.safe(model, states, y)[0]
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


# ---- what all methods must --------------------------------------------------------------------------------------


def test_no_weight_changes_and_what_it_draws_does(task):
    method = SAFREE(validate="off")
    model = method.wrap(task.pretrained(), task)
    assert method.unlearn(model, task, method.prepare(model, task)) is model
    before = task.original.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    y = task.captions("forget")
    with torch.no_grad():
        found, again, plain = (m.sample(y, SEEDS[:3]) for m in (model, model.frozen(), task.original))
    assert torch.equal(found, again)
    assert (found - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3

    fresh = method.wrap(task.pretrained(), task)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.sample(y, SEEDS[:3]), found)


def test_a_model_without_text_is_refused():
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        SAFREE().wrap(Linear(0), TinyTask())
    assert {"concept", "xattn"} == SAFREE.requires


@pytest.mark.parametrize("settings", [{"alpha": -1}, {"gamma": -0.5}, {"validate": "code"}, {"reattend": "perhaps"}])
def test_bad_settings_are_named(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=f"{key}={value} does not fit safree: .*(should|valid)"):
        SAFREE.configured(settings)


def test_phrases_that_do_not_fit_one_negative_prompt_are_refused(sd1, monkeypatch):
    monkeypatch.setattr(sd1, "words", ("red seven cat",) * 5)
    with pytest.raises(UserError, match="give fewer names"):
        guarded(sd1, negative=True)
    guarded(sd1)


def test_presets():
    nudity = SAFREE.configured(SAFREE.preset("published", "sd-nudity"))
    assert nudity.erase == PHRASES
    assert len(set(nudity.erase)) == 17
    assert SAFREE.configured(SAFREE.preset("default", "sd-nudity")) == nudity, "the default is what the paper means"
    released = SAFREE.configured(SAFREE.preset("released", "sd-nudity"))
    assert (released.reattend, released.negative, released.erase) == (False, True, PHRASES)


def test_settings_of_records_from_before_methods_had_words_are_read():
    old = {"alpha": 0.01, "validate": "off", "phrases": ""}
    assert SAFREE.configured(SAFREE.current(old)) == SAFREE(validate="off")
    with pytest.raises(UserError, match="phrases"):
        SAFREE.configured(SAFREE.current({**old, "phrases": "nudity"}))
