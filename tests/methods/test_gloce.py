"""GLoCE's gates against moments of outputs that were read and worked out beside it, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_text import shared_text
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.method import run_prepare, run_unlearn
from unlearnbench.methods.gloce import GLoCE
from unlearnbench.techniques.adapters import adapters
from unlearnbench.training import seeded

CODE = Repository("Hyun1A/GLoCE", "95e48ef")
UPDATE, GENERATE = "shell_scripts/explicit/update_gloce.sh", "shell_scripts/explicit/generate_by_gloce.sh"
TARGETS = "configs/train_explicit/prompt_train_gloce_target.yaml"
NAMES = ("nudity of woman", "naked woman", "erotic depictions of a woman")
NAMES += ("nudity of man", "naked man", "erotic depictions of a man")
KEPT = ("a man in modest clothing", "a woman in modest clothing")
RELEASED = {
    "images": (8, CODE.at(UPDATE, 12)),
    "sampler_steps": (50, CODE.at("src/engine/train_util.py", 851)),
    "start_guidance": (7.5, CODE.at("src/engine/train_util.py", 850)),
    "start": (0.2, CODE.at(UPDATE, 10), "10 of 50 steps"),
    "end": (0.4, CODE.at(UPDATE, 11), "20 of 50 steps"),
    "rank": (2, CODE.at(UPDATE, 8), "DEGEN_RANK"),
    "remove_rank": (16, CODE.at(UPDATE, 7), "UPDATE_RANK_LIST"),
    "gate_rank": (1, CODE.at(UPDATE, 6)),
    "deviations": (1.5, CODE.at(UPDATE, 9), "THRESH"),
    "anchors": (2, CODE.at(UPDATE, 32)),
    "eta": (5.0, CODE.at(GENERATE, 15)),
    "template": ("{}", CODE.at("src/engine/gloce_util.py", 190)),
    "erase": (NAMES, CODE.at(TARGETS, 10)),
    "replace_with": (
        ("a person in modest clothing",),
        CODE.at("configs/train_explicit/prompt_train_gloce_update.yaml", 10),
        "the targets' `neutral` too",
    ),
    "keep": (KEPT, CODE.at("configs/train_explicit/prompt_train_gloce_anchor.yaml", 10)),
}
FIDELITY = Fidelity(
    method="gloce",
    paper="Lee, Lim and Chun, CVPR 2025; Hyun1A/GLoCE@95e48ef",
    constants=tuple(Constant("released", "sd-nudity", field, *read) for field, read in RELEASED.items()),
    differences=(
        Difference("released", "gates", 1.2e-15, "test_gates_are_found_as_by_hand",
                   "register_sum_buffer_avg_spatial, register_norm_buffer_avg_spatial and the layer of gloce.py with "
                   "two concepts beside ours in float64: moments, bases, peaks, outputs"),
    ),
    defects=(
        f"The script asks for 12 names ({CODE.at(UPDATE, 16)}), of which its file has six ({TARGETS}): the other six "
        "runs stop",
        f"Gates count forward passes, and begin again at the 51st ({CODE.at('src/models/gloce.py', 126)}), which fits "
        "PNDM at 50 steps alone; here they act by the timestep",
    ),
    departs="In the digits' small world gates act from the first step on, since the first steps settle which digit it "
    "is, and they have fewer directions, since its layers are 48 to 96 wide. x_t is drawn by the model's own sampler.",
)  # fmt: skip

SHORT = {"images": 2, "sampler_steps": 4, "start": 0.25, "end": 0.75, "remove_rank": 3}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request):
    return shared_text(request.param)


@pytest.fixture(scope="module")
def sd1():
    return shared_text()


def wrapped(method, task):
    with seeded(1):
        model = method.wrap(task.pretrained(), task)
        return model, run_prepare(method, model, task)


def outputs(task, prompt, seeds, steps, guidance):
    """What each cross-attention's output layer gives for the prompt, at these steps of four: name -> (n, places, D)."""
    model, found = task.original, {}
    sampler, y = Scheduled(steps=4, guidance=guidance), model.tokens([prompt]).repeat_interleave(len(seeds), dim=0)
    named = {name: layer for name, layer in model.named_modules() if name.endswith("attn2.to_out.0")}
    with torch.no_grad():
        for i in steps:
            x_t = model.sample(y, seeds, sampler=sampler, until=4 - i)
            hooks = [
                layer.register_forward_hook(
                    lambda m, args, out, name=name: found.setdefault(name, []).append(out.double().numpy())
                )
                for name, layer in named.items()
            ]
            model(x_t, model.timesteps(sampler)[i].expand(len(y)), y)
            for hook in hooks:
                hook.remove()
    return {name: np.concatenate(values) for name, values in found.items()}


def moments(x):
    """Mean and covariance of outputs (n, places, D) at their own size and averaged over squares."""
    side, levels = int(np.sqrt(x.shape[1])), [x]
    image = x.reshape(len(x), side, side, -1)
    while side > 1 and len(levels) < 4:
        side //= 2
        image = image.reshape(len(x), side, 2, side, 2, -1).mean(axis=(2, 4))
        levels.append(image.reshape(len(x), side * side, -1))
    rows = np.concatenate([level.reshape(-1, x.shape[2]) for level in levels])
    return rows.mean(axis=0), np.cov(rows.T, bias=True)


def top(matrix, rank):
    return np.linalg.svd(matrix)[0][:, :rank].T


def test_gates_are_found_as_by_hand(task):
    method = GLoCE(**SHORT, anchors=2, start_guidance=2.0, deviations=2.0)
    model, prepared = wrapped(method, task)
    with seeded(1):
        method.wrap(task.pretrained(), task)
        seeds = torch.randint(2**62, (2,)).tolist()
    steps = (2, 3)  # after one of four, up to three
    seven, one, *anchors = (outputs(task, prompt, seeds, steps, 2.0) for prompt in ("seven", "one", "three", "cat"))
    run_unlearn(method, model, task, prepared)
    assert set(seven) == set(adapters(model))
    for name, gate in adapters(model).items():
        (m_t, C_t), (m_n, C_n) = moments(seven[name]), moments(one[name])
        V_t, V_s = top(C_t, 3), top(C_n, 2)
        V_g = top(C_t + np.outer(m_t - m_n, m_t - m_n), 1)
        u = np.concatenate([other[name] for other in anchors]) - m_n
        peaks = (((u / np.linalg.norm(u, axis=2, keepdims=True)) @ V_g.T) ** 2).sum(axis=2).max(axis=1)
        found = {key: value[0].double().numpy() for key, value in gate.state_dict().items()}
        np.testing.assert_allclose(found["basis"].T @ found["basis"], V_g.T @ V_g, atol=1e-3)
        np.testing.assert_allclose(found["origin"], m_n, atol=1e-5)
        np.testing.assert_allclose(found["target"], m_n, atol=1e-5)
        np.testing.assert_allclose(found["source"], m_t, atol=1e-5)
        off = V_s.T @ V_s @ (np.eye(len(m_t)) - V_t.T @ V_t)
        np.testing.assert_allclose(found["up"].T @ found["down"], off, atol=1e-3)
        np.testing.assert_allclose(found["threshold"], peaks.mean() + 2 * peaks.std(ddof=1), rtol=1e-4)
        np.testing.assert_allclose(found["slope"], np.log(99) / 0.002, rtol=1e-6)


@pytest.fixture(scope="module")
def gated(sd1):
    method = GLoCE(**SHORT, deviations=0.5)
    model, prepared = wrapped(method, sd1)
    return method, run_unlearn(method, model, sd1, prepared)


def test_the_originals_weights_stay_and_what_it_draws_does_not(sd1, gated):
    method, model = gated
    before, after = sd1.original.state_dict(), model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(".adapter." in name for name in after.keys() - before.keys())
    again = method.wrap(sd1.pretrained(), sd1)
    again.load_state_dict(after)
    y = sd1.captions("forget")
    with torch.no_grad():
        found, same, copied, plain = (m.sample(y, [1, 2, 3]) for m in (model, again, model.frozen(), sd1.original))
    assert torch.equal(found, same) and torch.equal(found, copied) and not torch.equal(found, plain)


def test_gates_act_late_alone(sd1, gated):
    _, model = gated
    x_t, y = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), sd1.original.tokens(["seven"] * 2)
    with torch.no_grad():
        found, plain = (m.eps(x_t, torch.tensor([751, 749]), y) for m in (model, sd1.original))
    assert torch.equal(found[0], plain[0]) and not torch.equal(found[1], plain[1])


def test_anchors_are_the_likest_names(task):
    model, kept = task.original, task.original.tokens(["three", "cat", "one", "red"])
    (name,) = model.tokens(["seven"]).split(1)
    with torch.no_grad():
        states = model.embed(torch.cat([name, kept])).states.double().numpy()[:, 1:9]
        own = states / np.linalg.norm(states, axis=2, keepdims=True)
        likeness = (own[1:] * own[0]).sum(axis=2).mean(axis=1)
        found = GLoCE(anchors=2).likest(model, name, kept)
        assert torch.equal(found, kept[np.argsort(-likeness)[:2].copy()])
        assert len(GLoCE(anchors=9).likest(model, name, kept)) == 4


def test_names_stand_in_a_template(task):
    model = task.original
    method = GLoCE(template="a photo of a {}")
    names = model.tokens(["seven", "red cat"])
    assert torch.equal(method.prompts(model, names), model.tokens(["a photo of a seven", "a photo of a red cat"]))
    assert torch.equal(GLoCE().prompts(model, names), names)


def test_every_name_has_a_gate_of_its_own(sd1, monkeypatch):
    monkeypatch.setattr(sd1, "words", ("seven", "red"))
    method = GLoCE(**{**SHORT, "images": 1})
    model, prepared = wrapped(method, sd1)
    run_unlearn(method, model, sd1, prepared)
    for gate in adapters(model).values():
        assert len(gate.source) == 2 and not torch.equal(*gate.source)


def test_what_cannot_work_is_refused(sd1, monkeypatch):
    with pytest.raises(UserError, match=r"start=0.5 leaves no step up to end=0.5: give a smaller start"):
        GLoCE(start=0.5, end=0.5)
    with pytest.raises(UserError, match="template='a photo' has no place for a name"):
        GLoCE(template="a photo")
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        GLoCE().wrap(Linear(0), TinyTask())
    names = sd1.names
    monkeypatch.setattr(sd1, "names", lambda which: names("forget")[: which == "forget"])
    with pytest.raises(UserError, match="gloce needs a name to keep"):
        wrapped(GLoCE(**SHORT), sd1)
