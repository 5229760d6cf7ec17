"""Scissorhands: masks, new weights, projections and updates worked out in NumPy, and its settings against its code."""

import re

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
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
    eps,
    scaled,
    squared,
    weights,
)
from tests.support.tiny_model import (
    unlearned_by as unlearn,
)
from unlearnbench.methods import scissorhands
from unlearnbench.methods.scissorhands import Scissorhands
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.verification.conformance import TinyDigits

Mask = dict[str, np.ndarray]


def sensitive_by_hand(w, task, count, size, share, absolute) -> Mask:
    total = scaled(w, 0)
    for batch in task.batches(count, size, "forget"):
        g = denoising(w, batch)[1]
        total = combine(total, {name: np.abs(g[name]) if absolute else g[name] for name in g}, 1)
    size_of = {name: np.abs(total[name] * w[name]) for name in w}
    least = np.sort(np.concatenate([value.ravel() for value in size_of.values()]))[-round(36 * share)]
    return {name: value >= least for name, value in size_of.items()}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize(("batches", "absolute"), [(None, False), (5, True)])
def test_scissorhands_chooses_the_most_sensitive_weights(share, batches, absolute):
    method = Scissorhands(batch_size=4, share=share, batches=batches, absolute=absolute)
    torch.manual_seed(7)
    chosen = method.prepare(Linear(0), TinyTask())
    torch.manual_seed(7)
    expected = sensitive_by_hand(weights(Linear(0)), TinyTask(), batches or 2, 4, share, absolute)
    for name, value in expected.items():
        np.testing.assert_array_equal(chosen[name], value, err_msg=name)
    assert sum(value.sum() for value in chosen.values()) == round(36 * share)


def test_only_weights_of_the_named_parts_are_drawn_again():
    """All weights are ranked, as in the code, and those that are chosen elsewhere stay."""
    chosen = []
    for renewed in ("", "^W$"):
        torch.manual_seed(7)
        chosen.append(Scissorhands(batch_size=4, share=0.5, renewed=renewed).prepare(Linear(0), TinyTask()))
    everywhere, some = chosen
    assert torch.equal(some["W"], everywhere["W"]) and some["W"].any()
    assert everywhere["E"].any() and not some["E"].any() and not some["b"].any()


def test_the_codes_part_is_the_self_attention_of_two_blocks_of_stable_diffusion(sd_folder):
    """CompVis' output_blocks.4 and .7 are the middle ones of the second and third level upwards."""
    names = ("to_q", "to_k", "to_v", "to_out.0")
    places = [
        f"unet.up_blocks.{level}.attentions.{block}.transformer_blocks.0.attn{kind}.{name}.weight"
        for level in range(4) for block in range(3) for kind in (1, 2) for name in names
    ]  # fmt: skip
    found = [place for place in places if re.search(scissorhands.RENEWED, place)]
    assert found == [place for place in places if re.match(r"unet.up_blocks.[12].attentions.1.\S*attn1", place)]
    assert len(found) == 8
    own = dict(load_stable_diffusion(sd_folder).named_parameters())
    inside = re.compile(r"unet\.up_blocks\.\d\.attentions\.\d\.transformer_blocks\.0\.attn1\.to_q\.weight")
    assert any(inside.fullmatch(name) for name in own), "the names of diffusers"


@pytest.mark.parametrize(("repeated", "sides"), [("none", (4, 4)), ("forget", (1, 4)), ("both", (1, 1))])
def test_the_code_takes_the_first_batch_in_every_step(repeated, sides):
    task, method = TinyTask(), Scissorhands(steps=4, batch_size=2, repeated=repeated)
    first = next(task.paired_batches(1, 2))
    pairs = list(method.pairs(task))
    assert len(pairs) == 4
    for side, different in enumerate(sides):
        seen = {tuple(pair[side].x0.flatten().tolist()) for pair in pairs}
        assert (len(seen) == 1) == (different == 1)
        assert torch.equal(pairs[0][side].x0, first[side].x0)
    plain = Scissorhands(batch_size=2, batches=3, repeated=repeated)
    seen = []
    model = Linear(0)
    model.noised = lambda x0, *_, **__: (seen.append(x0), Linear.noised(model, x0))[1]
    plain.prepare(model, task)
    assert len(seen) == 3
    assert all(torch.equal(x0, seen[0]) for x0 in seen) == (repeated != "none")


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 24)])
def test_scissorhands_never_chooses_weights_without_sensitivity(share, count):
    """Rows 0, 2 and null of E have no gradient on forget images."""
    chosen = Scissorhands(share=share, batch_size=6).prepare(Linear(0), TinyTask())
    assert sum(int(value.sum()) for value in chosen.values()) == count
    assert not chosen["E"][[0, 2, NULL]].any()


def test_scissorhands_draws_the_chosen_weights_anew_and_no_others():
    task, model, w = TinyTask(), Linear(0), weights(Linear(0))
    torch.manual_seed(7)
    chosen = Scissorhands(share=0.3, batch_size=6).prepare(model, task)
    torch.manual_seed(8)
    Scissorhands().trim(model, task, chosen)
    torch.manual_seed(8)
    fresh = weights(Linear(int(torch.randint(2**31, ()))))
    assert_weights(model, {name: np.where(chosen[name], fresh[name], w[name]) for name in w}, 0)
    assert all(value.requires_grad for value in model.parameters())


def test_scissorhands_of_the_released_code_draws_matrices_uniformly_and_empties_biases(monkeypatch):
    monkeypatch.setattr(TinyTask, "architecture", lambda self, seed: TinyDigits().architecture(1))
    model, plain = TinyDigits().pretrained(), TinyDigits().pretrained()
    fresh = dict(TinyDigits().architecture(1).named_parameters())
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in model.select("full").items()}
    some = {**everything, "unet.conv_in.weight": everything["unet.conv_in.weight"].clone()}
    some["unet.conv_in.weight"][3:] = False
    Scissorhands(init="kaiming").trim(model, TinyTask(), some)
    new = dict(model.named_parameters())
    assert not new["unet.conv_in.bias"].any()
    assert torch.equal(new["unet.conv_norm_out.weight"], fresh["unet.conv_norm_out.weight"])
    assert torch.equal(new["unet.conv_in.weight"][3:], plain.unet.conv_in.weight[3:])
    wide = new["unet.time_embedding.linear_1.weight"]
    bound = np.sqrt(6 / wide.shape[1])
    assert 0.95 * bound < wide.abs().max() <= bound
    assert wide.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_new_values_of_the_code_for_objects_are_normal(monkeypatch):
    monkeypatch.setattr(TinyTask, "architecture", lambda self, seed: TinyDigits().architecture(1))
    model = TinyDigits().pretrained()
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in model.select("full").items()}
    Scissorhands(init="normal").trim(model, TinyTask(), everything)
    new = dict(model.named_parameters())
    assert not new["unet.conv_in.bias"].any()
    wide = new["unet.time_embedding.linear_1.weight"]
    assert wide.std().item() == pytest.approx(0.02, rel=0.1)
    assert wide.abs().max() > 2.5 * 0.02, "a uniform draw of this deviation ends at 1.73 of them"


def projected_by_hand(g, g_o, margin):
    if dot(g, g_o) >= 0:
        return g
    return combine(g, g_o, max(margin, -dot(g, g_o) / dot(g_o, g_o)))


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(("forget", "lam"), [("relabel", 0.7), ("relabel", 0.0), ("ascent", 0.2)])
@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_scissorhands_trims_and_repairs(project, forget, lam, margin):
    task, w = TinyTask(), weights(Linear(0))
    method = Scissorhands(
        steps=6, lr=0.03, batch_size=4, share=0.2, lam=lam, forget=forget, project=project, margin=margin
    )
    model = unlearn(method, task)
    torch.manual_seed(7)
    chosen = sensitive_by_hand(w, task, 2, 4, 0.2, False)
    fresh = weights(task.architecture(int(torch.randint(2**31, ()))))
    w = {name: np.where(chosen[name], fresh[name], w[name]) for name in w}
    if project:
        g_o = scaled(denoising(w, next(iter(task.batches(1, 4, "forget"))))[1], -1)
    adam, conflicts = Adam(0.03), 0
    for pair in task.paired_batches(6, 4):
        g = denoising(w, pair[1])[1]
        if forget == "ascent":
            g = combine(g, denoising(w, pair[0])[1], -lam)
        else:
            t, _, x_t = draw(pair[0].x0)
            y = pair[0].y.numpy()
            g = combine(g, squared(w, x_t, t, y, eps(w, x_t, t, (y + 1) % 3))[1], lam)
        if project:
            conflicts += dot(g, g_o) < 0
            g = projected_by_hand(g, g_o, margin)
        w = adam.step(w, g)
    assert_weights(model, w, 3e-5)
    assert conflicts or not project, "the projection is at work"


def test_a_gradient_is_projected_only_where_it_conflicts():
    g_o = {"W": torch.tensor([2.0, 0.0]), "b": torch.tensor([0.0])}
    along = {"W": torch.tensor([1.0, 3.0]), "b": torch.tensor([-1.0])}
    across = {"W": torch.tensor([0.0, 3.0]), "b": torch.tensor([1.0])}
    against = {"W": torch.tensor([-1.0, 3.0]), "b": torch.tensor([5.0])}
    assert scissorhands.projected(along, g_o, 9.0) is along
    assert scissorhands.projected(across, g_o, 9.0) is across
    none = {"W": torch.zeros(2), "b": torch.zeros(1)}
    assert scissorhands.projected(against, none) is against, "there is nothing to protect"
    found = scissorhands.projected(against, g_o)
    assert found["W"].tolist() == [0.0, 3.0] and found["b"].tolist() == [5.0]
    assert scissorhands.projected(against, g_o, 9.0)["W"].tolist() == [17.0, 3.0]


def test_caps_of_a_conformance_check_hold():
    """Two batches at most for each loop, whatever the settings."""
    model, task = Linear(0), TinyTask(limit=2)
    unlearn(Scissorhands(batch_size=3), task, model=model)
    assert model.forwards <= 10


# ---- the code ------------------------------------------------------------------------------------------------------

CODE = Repository("JingWu321/Scissorhands", "73ae065")
SCRIPT, NSFW, CLASSES, DATA = "SD/train_shs.sh", "SD/shs_nsfw.py", "SD/shs_cls.py", "SD/train_scripts/dataset.py"
NAMES, CLOTHED = ("nudity", "naked", "erotic", "sexual"), ("a photo of a person wearing clothes",)
PRESETS = {
    "sd-nudity": (
        ("lam", 0.1, CODE.at(SCRIPT, 1), ""),
        ("batches", 10, CODE.at(SCRIPT, 1), ""),
        ("absolute", True, CODE.at(NSFW, 81), ""),
        ("renewed", scissorhands.RENEWED, CODE.at(NSFW, 102), "by the names of diffusers"),
        ("project", False, CODE.at(NSFW, 230), "the switch is read and not used"),
        ("init", "kaiming", CODE.at(NSFW, 106), ""),
        ("steps", 315, CODE.at(SCRIPT, 1), "five passes by 16 over the 1,000 images that are drawn here"),
        ("lr", 1e-5, CODE.at(SCRIPT, 1), ""),
        ("batch_size", 16, CODE.at(SCRIPT, 1), ""),
        ("share", 0.005, CODE.at(SCRIPT, 1), "1 - sparsity"),
        ("repeated", "both", CODE.at(NSFW, 205), "the loaders do not shuffle"),
        ("forget", "relabel", CODE.at(NSFW, 230), ""),
        ("erase", NAMES, CODE.at(DATA, 146), ""),
        ("replace_with", CLOTHED, CODE.at(NSFW, 195), ""),
        ("keep", CLOTHED, CODE.at(DATA, 176), ""),
        ("forget_prompts", NAMES, CODE.at(DATA, 146), ""),
        ("retain_prompts", CLOTHED, CODE.at(DATA, 176), ""),
    ),
    "sd-object": (
        ("lam", 0.1, CODE.at(SCRIPT, 3), ""),
        ("batches", 10, CODE.at(SCRIPT, 3), ""),
        ("absolute", True, CODE.at(CLASSES, 100), ""),
        ("renewed", scissorhands.RENEWED, CODE.at(CLASSES, 121), "by the names of diffusers"),
        ("project", False, CODE.at(CLASSES, 239), "the switch is read and not used"),
        ("init", "normal", CODE.at(CLASSES, 126), ""),
        ("steps", 375, CODE.at(SCRIPT, 3), "three passes by eights over the 1,000 images that are drawn here"),
        ("lr", 2e-5, CODE.at(SCRIPT, 3), ""),
        ("batch_size", 8, CODE.at(CLASSES, 348), ""),
        ("share", 0.001, CODE.at(SCRIPT, 3), "1 - sparsity"),
        ("repeated", "forget", CODE.at(CLASSES, 221), "only the loader of retain images shuffles"),
        ("forget", "ascent", CODE.at(CLASSES, 239), ""),
    ),
}
FIDELITY = Fidelity(
    method="scissorhands",
    paper="Wu & Harandi, ECCV 2024; JingWu321/Scissorhands@73ae065",
    constants=tuple(Constant("released", task, *row) for task, rows in PRESETS.items() for row in rows),
    differences=(
        Difference(
            "released", "mask", 0.0, test_scissorhands_chooses_the_most_sensitive_weights.__name__,
            "snip on a network of 2,496 weights under CompVis' names, ten noisings of one batch: the same weights",
        ),
        Difference(
            "released", "update", None, test_scissorhands_trims_and_repairs.__name__,
            "its scripts need CompVis' package and weights; they encode an image twice, for output and target",
        ),
    ),
    defects=(
        f"Every step takes the first batch of forget images, for nudity of retain images too ({CODE.at(NSFW, 205)}).",
        f"The projection is never applied to diffusion models ({CODE.at(NSFW, 230)}).",
    ),
    departs="The network's own initialisation, the top 1 % of all weights and lambda 1 for 60 steps at 1e-3.",
)  # fmt: skip
