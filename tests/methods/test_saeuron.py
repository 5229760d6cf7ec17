"""SAeUron's scores, features and activations against computations of their own, and what it stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.fidelity import Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import shared_text
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods.saeuron import Activations, SAeUron, means
from unlearnbench.techniques.sparse_autoencoder import Rescaled, SparseAutoencoder

CODE = Repository("cywinski/SAeUron", "1a4302a")
FIDELITY = Fidelity(
    method="saeuron",
    paper="Cywiński and Deja, SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders, "
    "ICML 2025; cywinski/SAeUron@1a4302a",
    defects=(
        "The error of the autoencoder is added with the wrong sign, so that what it does not explain is negated "
        f"({CODE.at('utils/hooks.py', 140)}).",
    ),
    departs="The paper and its code train two autoencoders, on UnlearnCanvas's 50 styles and on its 20 objects; here "
    "each erasure has its own, so that there are no presets of either. On Stable Diffusion the code's settings "
    f"({CODE.at('README.MD', 63)} and 144) with fewer vectors; on digits fewer and larger steps.",
)
SHORT = {
    "images": 3,
    "retain_images": 2,
    "steps": 3,
    "batch_size": 16,
    "expansion": 2,
    "k": 4,
    "draw_batch": 2,
    "sampler_steps": 3,
}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request):
    return shared_text(request.param)


@pytest.fixture(scope="module")
def sd1():
    return shared_text()


def test_features_of_the_concept_by_hand():
    """Shares of the mean activation, their difference, the percentile of each step, and what is rescaled by what."""
    method = SAeUron(percentile=75.0, multiplier=-2.0, images=1, retain_images=3)
    added = Rescaled(SparseAutoencoder(4, 5, 2), torch.tensor([9, 1]))
    concept = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0], [0.0, 0.0, 1.0, 1.0, 0.0]])
    others = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 6.0, 2.0, 0.0]])
    method.choose(added, concept, others, method.share)
    # step 1: shares 0.4 0.1 0.3 0 0.2 less 0.2 each; the 75th percentile of 5 is the second highest, 0.1
    # step 2: 0.5 0.5 less 0.75 0.25
    assert added.chosen.tolist() == [[True, False, False, False, False], [False, False, False, True, False]]
    np.testing.assert_allclose(added.scale, -2 * concept)
    np.testing.assert_allclose(added.above, 0.25 * concept + 0.75 * others)


def test_activations_of_the_guided_half_at_every_step(sd1):
    """All positions are kept, in some order; each step of each image as the network makes it, without null rows."""
    method = SAeUron(**SHORT)
    model = method.wrap(sd1.pretrained(), sd1)
    torch.manual_seed(3)
    found = method.prepare(model.eval(), sd1)
    assert found.forget.shape == (3, 3, 64, 16) and found.retain.shape == (2, 3, 64, 16)

    torch.manual_seed(3)
    y = sd1.captions("forget")[torch.randint(3, (3,))][:2]
    seeds = torch.randint(2**62, (2,)).tolist() if len(y) == 2 else []
    seen = []
    block = sd1.original.unet.get_submodule("up_blocks.1.attentions.1")
    hook = block.register_forward_hook(lambda _m, _a, out: seen.append(out[0].detach()))
    sd1.original.sample(y, seeds)
    hook.remove()
    for step in range(3):
        null, own = seen[step].chunk(2)
        for row in range(2):
            ours = np.sort(found.forget[row, step].float().numpy(), axis=0)
            np.testing.assert_allclose(ours, np.sort(own[row].flatten(1).mT.half().float().numpy(), axis=0), atol=2e-3)
        assert not torch.allclose(null, own, atol=1e-2)


def test_fewer_positions_where_vectors_are_few(sd1):
    found = SAeUron(**SHORT, vectors=5 * 3 * 7).prepare(sd1.pretrained().eval(), sd1)
    assert found.forget.shape == (3, 3, 7, 16)


def test_mean_features():
    torch.manual_seed(1)
    sae = SparseAutoencoder(4, 8, 3)
    x = torch.randn(3, 2, 5, 4).half()
    with torch.no_grad():
        every = sae.features(x.float()).numpy()
        np.testing.assert_allclose(means(sae, x).numpy(), every.mean(axis=(0, 2)), atol=1e-6)


def test_nothing_changes_before_and_the_chosen_features_after(task):
    method = SAeUron(**SHORT, percentile=60.0, multiplier=-50.0, lr=1e-2)
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([800, 3])
    torch.manual_seed(0)
    model = method.wrap(task.pretrained(), task)
    y = model.tokens(["a red seven", "cat"])
    with torch.no_grad():
        torch.testing.assert_close(model.eps(x_t, t, y), task.original.eps(x_t, t, y))
        before = {name: value.clone() for name, value in model.state_dict().items()}
    method.unlearn(model, task, method.prepare(model.eval(), task))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(".rescaled." in name for name in moved)
    again = method.wrap(task.pretrained(), task)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed = model.eps(x_t, t, y)
        torch.testing.assert_close(again.eps(x_t, t, y), changed)
        torch.testing.assert_close(model.frozen().eps(x_t, t, y), changed)
        assert not torch.allclose(changed, task.original.eps(x_t, t, y), atol=1e-4)


def test_training_explains_more_of_the_activations(sd1):
    torch.manual_seed(0)
    few = Activations(torch.randn(2, 3, 64, 3) @ torch.randn(3, 16), torch.randn(2, 3, 64, 3) @ torch.randn(3, 16))
    left = []
    for steps in (1, 150):
        torch.manual_seed(1)
        method = SAeUron(**{**SHORT, "steps": steps, "batch_size": 64, "lr": 3e-3})
        model = method.wrap(sd1.pretrained(), sd1)
        method.unlearn(model, sd1, few)
        sae = method.place(model).rescaled.autoencoder
        left.append(sae.loss(few.forget.flatten(0, 2), torch.zeros(32, dtype=torch.bool), 0.0)[0].item())
    assert left[1] < 0.6 * left[0]


def test_blocks_by_name_and_what_does_not_fit(sd1):
    blocks = dict(sd1.original.unet.named_modules())
    for given, place in (("second", "up_blocks.1.attentions.1"), ("last", "up_blocks.1.attentions.1"),
                         ("mid_block.attentions.0", "mid_block.attentions.0")):  # fmt: skip
        assert SAeUron(block=given).place(sd1.original) is blocks[place]
    with pytest.raises(Unsupported, match=r"no block 'up_blocks.9': it has down_blocks.0.attentions.0, "):
        SAeUron(block="up_blocks.9").wrap(sd1.pretrained(), sd1)
    with pytest.raises(Unsupported, match="xattn"):
        SAeUron().wrap(Linear(0), TinyTask())
    for setting in ("percentile=101", "lr=0", "vectors=0", "aux_weight=-1"):
        with pytest.raises(UserError, match=setting):
            SAeUron.configured(dict([setting.split("=")]))


def test_without_prompts_of_a_side_it_says_which(sd1, monkeypatch):
    captions = sd1.captions
    monkeypatch.setattr(sd1, "captions", lambda which: captions(which)[: 3 * (which == "forget")])
    with pytest.raises(
        UserError, match="saeuron needs prompts to retain, of which there are none: give retain_prompts"
    ):
        SAeUron(**SHORT).prepare(sd1.pretrained(), sd1)
