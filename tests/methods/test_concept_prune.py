"""ConceptPrune's scores and masks against NumPy, its prompts, and its presets against the released code."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import shared_text
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods.concept_prune import ConceptPrune
from unlearnbench.techniques.neurons import skilled

CODE = Repository("ruchikachavhan/concept-prune", "72927d9")
BEST, PROMPTS = "utils/load_models.py", "utils/prompts.py"
RELEASED = ConceptPrune.presets["released"]
PAIRS = {task: RELEASED[task]["pairs"] for task in ("sd-object", "sd-style")}
FIDELITY = Fidelity(
    method="concept_prune",
    paper="Chavhan, Li and Hospedales, ConceptPrune: Concept Editing in Diffusion Models via Skilled Neuron Pruning, "
    "ICLR 2025; ruchikachavhan/concept-prune@72927d9",
    constants=(
        Constant("released", "sd-nudity", "share", 0.01, CODE.at(BEST, 36)),
        Constant("released", "sd-nudity", "first_steps", 9, CODE.at(BEST, 36)),
        Constant("released", "sd-nudity", "overlap", 0.0, CODE.at(BEST, 36)),
        Constant("released", "sd-nudity", "erase", ("naked",), CODE.at(PROMPTS, 154)),
        Constant("released", "sd-nudity", "replace_with", ("",), CODE.at(PROMPTS, 153)),
        Constant("released", "sd-nudity", "forget_prompts", RELEASED["sd-nudity"]["forget_prompts"],
                 CODE.at(PROMPTS, 154), "with the 18 words of datasets/humans.txt"),
        Constant("released", "sd-object", "share", 0.02, CODE.at(BEST, 37)),
        Constant("released", "sd-object", "first_steps", 10, CODE.at(BEST, 37)),
        Constant("released", "sd-object", "overlap", 0.0, CODE.at(BEST, 37)),
        Constant("released", "sd-object", "pairs", PAIRS["sd-object"], CODE.at(PROMPTS, 163),
                 "with the 12 words of datasets/common_scenes.txt; church and garbage truck have scenes of their own"),
        Constant("released", "sd-style", "share", 0.01, CODE.at(BEST, 31)),
        Constant("released", "sd-style", "first_steps", 10, CODE.at(BEST, 31)),
        Constant("released", "sd-style", "overlap", 0.0, CODE.at(BEST, 31)),
        Constant("released", "sd-style", "pairs", PAIRS["sd-style"], CODE.at(PROMPTS, 158),
                 "with the 20 words of datasets/things.txt"),
    ),
    differences=(
        Difference("released", "norms", 2.6e-6, "test_the_weights_that_the_concept_uses_most_are_zero",
                   "Wanda.hook_fn and TimeLayerColumnNorm on a tiny Stable Diffusion in float32, three steps."),
        Difference("released", "mask", 0.0, "test_skilled_weights_by_hand",
                   "The lines of wanda.py that sort and compare scores, on these norms, with two shares."),
    ),
    defects=(
        "select_ratio has no default, so that the README's own command for the union stops "
        f"({CODE.at('wanda/save_union_over_time.py', 104)}).",
    ),
    departs="The task's own forget captions beside those with the substitute on digits, fewer steps for a shorter "
    "sampler, and twice the share of weights; on Stable Diffusion the code's.",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request):
    return shared_text(request.param)


def gated(model, y, seed):
    """What leaves every GEGLU, by layer a list over the steps of (rows * positions, neurons), for images from one
    noise."""
    found, hooks = defaultdict(list), []
    for name, module in model.unet.named_modules():
        if type(module).__name__ == "GEGLU":
            hooks.append(module.register_forward_hook(
                lambda _m, _i, out, name=name: found[name].append(out.detach().flatten(0, -2).double().numpy())
            ))  # fmt: skip
    model.sample(y, [seed] * len(y))
    for hook in hooks:
        hook.remove()
    return found


def norms(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.sqrt((unit**2).sum(axis=0))


@pytest.mark.parametrize(("first", "overlap"), [(2, 0.0), (3, 0.4)])
def test_the_weights_that_the_concept_uses_most_are_zero(task, first, overlap):
    method = ConceptPrune(share=0.1, first_steps=first, overlap=overlap, batch_size=2)
    torch.manual_seed(4)
    pruned = method.unlearn(task.pretrained(), task)
    torch.manual_seed(4)
    seed = int(torch.randint(2**62, (1,)))
    target = task.original.tokens(["seven", "a photo of a seven", "a red seven"])
    base = task.original.tokens(["one", "a photo of a one", "a red one"])
    with_it, without = gated(task.original, target, seed), gated(task.original, base, seed)
    cut = 0
    for name in with_it:
        layer = name.removesuffix(".0") + ".2"
        W = task.original.unet.get_submodule(layer).weight.detach().double().numpy()
        count = np.zeros(W.shape)
        for i in range(first):
            S, S_0 = (np.abs(W) * norms(side[name][i]) for side in (with_it, without))
            for row in range(len(W)):
                top = np.argsort(-S[row])[: int(0.1 * W.shape[1])]
                count[row, top] += S[row, top] > S_0[row, top]
        expected = np.where(count > overlap * first, 0, W)
        found = pruned.unet.get_submodule(layer).weight.detach().numpy()
        different = (found == 0) != (expected == 0)
        assert different.mean() < 2e-3, "but for scores that are equal to rounding"
        np.testing.assert_array_equal(found[~different], expected.astype(np.float32)[~different])
        cut += (expected == 0).sum()
    assert cut > 0


def test_no_other_weight_changes(task):
    before = task.original.state_dict()
    after = ConceptPrune(share=0.1).unlearn(task.pretrained(), task).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith("ff.net.2.weight") for name in changed)
    assert all((after[name][after[name] != before[name]] == 0).all() for name in changed)


def test_skilled_weights_by_hand():
    W = torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 1.0, 1.0, 1.0]])
    target, base = torch.tensor([2.0, 2.0, 1.0, 9.0]), torch.tensor([1.0, 3.0, 0.5, 1.0])
    # scores of the target: 2 4 3 4.5 and 8 2 1 9; of the base: 1 6 1.5 0.5 and 4 3 0.5 1
    assert skilled(W, target, base, 0.5).tolist() == [[False, False, False, True], [True, False, False, True]]
    assert skilled(W, target, base, 0.75).tolist() == [[False, False, True, True], [True, False, False, True]]
    assert skilled(W, target, base, 0.01).sum() == 2, "one a row at least"
    assert not skilled(W, target, target, 1.0).any()


def test_pairs_of_prompts_stand_beside_one_another():
    task = shared_text(names=("seven", "red cat"))
    model = task.pretrained()
    pairs = ("a photo -> a {} in a photo", "a person->the {}")
    base, target = ConceptPrune(pairs=pairs).prompts(model, task)
    told = ["a photo", "a person"] * 2
    assert torch.equal(base, model.tokens(told))
    asked = ["a seven in a photo", "the seven", "a red cat in a photo", "the red cat"]
    assert torch.equal(target, model.tokens(asked))
    for wrong in ("a photo", "a -> b -> c"):
        with pytest.raises(UserError, match=f"'{wrong}' is no pair"):
            ConceptPrune.configured({"pairs": wrong})
    with pytest.raises(UserError, match="pairs of concept_prune is empty"):
        ConceptPrune.configured({"pairs": ()})


def test_what_does_not_fit_is_refused():
    with pytest.raises(Unsupported, match="no transformer blocks"):
        ConceptPrune().unlearn(Linear(0), TinyTask())
    for setting in ("share=0", "share=1.5", "overlap=1", "first_steps=0"):
        name, value = setting.split("=")
        with pytest.raises(UserError, match=setting):
            ConceptPrune.configured({name: value})
    with pytest.raises(Unsupported, match="no settings for sdxl-nudity"):
        ConceptPrune.preset("released", "sdxl-nudity")
