"""An unlearning that was stopped goes on at a step: the same weights bit for bit, and the time of all processes."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.support.small_world import write_method
from tests.support.tiny_model import TinyTask
from unlearnbench import Diffusion, Method, Sampler, registry
from unlearnbench.errors import Failed
from unlearnbench.method import can_resume
from unlearnbench.methods.advunlearn import AdvUnlearn
from unlearnbench.methods.ant import ANT
from unlearnbench.methods.blindspot import BlindSpot
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.esd_u import ESDU
from unlearnbench.methods.finetune import Finetune
from unlearnbench.methods.forget_me_not import ForgetMeNot
from unlearnbench.methods.saeuron import SAeUron
from unlearnbench.methods.salun import SalUn
from unlearnbench.methods.scissorhands import Scissorhands
from unlearnbench.methods.selective_amnesia import SelectiveAmnesia
from unlearnbench.methods.sfron import SFRon
from unlearnbench.methods.trce import TRCE
from unlearnbench.pipeline import checkpoints as module
from unlearnbench.pipeline import runner
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.checkpoints import RunCheckpoints
from unlearnbench.pipeline.monitor import Watch
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.reporting import told_by
from unlearnbench.storage import purge
from unlearnbench.storage.store import Store
from unlearnbench.training import Diverged, seeded
from unlearnbench.verification.conformance import TinyWords, stopped_and_resumed

SMALL = {"steps": 7, "batch_size": 3}


class Sampling(TinyTask):
    """The tiny task, whose model samples in three steps."""

    def pretrained(self):
        model = super().pretrained()
        model.sampler = Sampler(steps=3)
        return model


class Stop(Exception):
    """A process ends here."""


def unlearned(method, task, folder=None, stop=None, every=0.0):
    """Weights, facts and what was told, of one process; it ends after `stop` steps, if that is given."""
    kept, said = RunCheckpoints(folder, method, task, every), []
    if stop is not None:
        real = kept.reached

        def reached(state, step):
            real(state, step)
            if step == stop:
                raise Stop

        kept.reached = reached
    with told_by(said.append):
        state, facts = unlearn(Cell(method, task), checkpoints=kept)
    return state, facts, said


def stopped(method, task, folder, stop):
    """A process that ends after so many steps."""
    with pytest.raises(Failed, match=f"{method.name} failed with Stop"):
        unlearned(method, task, folder, stop)


def assert_same(state, other):
    assert state.keys() == other.keys()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


# ---- the same weights ------------------------------------------------------------------------------------------------

CLASSES = {
    "averaged": EraseDiff(**SMALL, ema=0.9),
    "loops within the stream": EraseDiff(**SMALL, rule="barrier", K=2),
    "a network trained beforehand": BlindSpot(**SMALL, blind_steps=5, mixed=True),
    "two steps for each batch": SFRon(**SMALL, fisher_samples=2, drop=0.5, clip=0.1),
    "a gradient worked out beforehand": Scissorhands(**SMALL, project=True, margin=0.5),
    "named tuples": SelectiveAmnesia(**SMALL, replay_images=3, fisher_samples=2, ema=0.5),
    "masked": SalUn(**SMALL, drop=0.5, clip=0.1),
}


@pytest.mark.parametrize("case", CLASSES)
def test_stopped_again_and_again_it_ends_in_the_same_weights(case):
    method = CLASSES[case]
    with seeded(0):
        model, task = Sampling().pretrained(), Sampling()
        whole = method.unlearn(model, task, method.prepare(model, task)).state_dict()
    found, stops = stopped_and_resumed(method, Sampling)
    assert stops >= 2
    assert_same(found.state_dict(), whole)


WORDS = {
    "the latest prefix": AdvUnlearn(
        batch_size=2, retain_batch=2, trajectories=2, warmup=1, attack_steps=1, init="latest"
    ),
    "two trainings": ForgetMeNot(batch_size=2, inversion_steps=4),
    "sums of gradients beforehand": ANT(
        batch_size=2, sampler_steps=3, before_step=1, mask_steps=4, mask_rounds=1, part="xattn"
    ),
    "sums of gradients": TRCE(batch_size=2, retain_batch=1, sampler_steps=3, early_steps=1, accumulate=True),
    "features that die": SAeUron(
        images=2, retain_images=2, sampler_steps=2, batch_size=16, expansion=2, k=4, dead_after=20
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_with_words_as_well(case):
    method, task = WORDS[case], TinyWords(limit=4)
    with seeded(0):
        model = method.wrap(task.pretrained(), task)
    with seeded(0):
        whole = method.unlearn(model, task, method.prepare(model, task)).state_dict()
    found, stops = stopped_and_resumed(method, lambda: TinyWords(limit=4))
    assert stops >= 1
    assert_same(found.state_dict(), whole)


def test_what_prepare_returned_is_not_worked_out_again(tmp_path, monkeypatch):
    method, calls = SelectiveAmnesia(**SMALL, replay_images=3, fisher_samples=2), []
    real = SelectiveAmnesia.prepare
    monkeypatch.setattr(SelectiveAmnesia, "prepare", lambda *given: calls.append(1) or real(*given))
    whole, _, _ = unlearned(method, Sampling())
    stopped(method, Sampling(), tmp_path / "kept", 3)
    state, _, said = unlearned(method, Sampling(), tmp_path / "kept")
    assert len(calls) == 2, "once for each of the two runs"
    assert said == ["selective_amnesia goes on after step 3, where it was stopped"]
    assert_same(state, whole)


def test_of_what_prepare_trained_nothing_is_left_beside_it(tmp_path):
    method = ANT(steps=3, batch_size=1, sampler_steps=3, before_step=1, mask_steps=2, mask_rounds=2)
    stopped(method, Sampling(), tmp_path / "kept", 1)
    assert {path.name.split(".")[0] for path in (tmp_path / "kept").glob("*.pt")} == {"prepare-0"}
    stopped(method, Sampling(), tmp_path / "kept", 3)
    assert {path.name.split(".")[0] for path in (tmp_path / "kept").glob("*.pt")} == {"prepared", "unlearn-0"}


def test_without_what_prepare_returned_it_is_worked_out_again(tmp_path):
    method = SelectiveAmnesia(**SMALL, replay_images=3, fisher_samples=2)
    whole, _, _ = unlearned(method, Sampling())
    stopped(method, Sampling(), tmp_path / "kept", 3)
    (path,) = (tmp_path / "kept").glob("prepared.*")
    path.unlink()
    state, _, said = unlearned(method, Sampling(), tmp_path / "kept")
    assert len(said) == 1
    assert_same(state, whole)


def test_what_is_quick_leaves_no_files(tmp_path):
    unlearned(Finetune(**SMALL), TinyTask(), tmp_path / "kept", every=None)
    assert not (tmp_path / "kept").exists()


# ---- times -----------------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_all_steps_once(tmp_path, monkeypatch):
    """A step takes a second by this clock, writing a hundred; steps that were lost do not count."""
    now, loss, flush = [0.0], Diffusion.loss, module.flush

    def passing(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Diffusion, "loss", lambda *given, **more: passing(1) or loss(*given, **more))
    monkeypatch.setattr(module, "flush", lambda path: passing(100) or flush(path))
    _, facts, _ = unlearned(Finetune(**SMALL), TinyTask())
    assert facts["cost"]["unlearn_time"] == 7
    folder = tmp_path / "kept"
    stopped(Finetune(**SMALL), TinyTask(), folder, 3)
    stopped(Finetune(**SMALL), TinyTask(), folder, 5)
    _, facts, said = unlearned(Finetune(**SMALL), TinyTask(), folder)
    assert said == ["finetune goes on after step 5, where it was stopped"]
    assert facts["cost"]["unlearn_time"] == 7


# ---- files that do not fit -------------------------------------------------------------------------------------------


def broken(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def pickled(path):
    """A file that would run code if it were unpickled, under the hash of its content."""
    torch.save(Stop("code"), path)
    path.rename(path.with_name(f"unlearn-0.{module.file_hash(path)}.pt"))


@pytest.mark.parametrize("damage", [broken, cut, pickled])
def test_a_damaged_checkpoint_is_dropped_with_one_line(tmp_path, damage):
    method, folder = Finetune(**SMALL), tmp_path / "kept"
    whole, _, _ = unlearned(method, TinyTask())
    stopped(method, TinyTask(), folder, 3)
    (path,) = folder.glob("unlearn-*")
    damage(path)
    state, _, said = unlearned(method, TinyTask(), folder)
    (line,) = said
    assert line.startswith("a checkpoint of the unlearning cannot be used (")
    assert_same(state, whole)


def test_a_checkpoint_of_other_libraries_is_dropped(tmp_path, monkeypatch):
    method, folder = Finetune(**SMALL), tmp_path / "kept"
    whole, _, _ = unlearned(method, TinyTask())
    with monkeypatch.context() as patch:
        patch.setattr(module, "_made_with", lambda device: {"device": "other", "torch": "0", "number of threads": 1})
        stopped(method, TinyTask(), folder, 3)
    state, _, said = unlearned(method, TinyTask(), folder)
    assert {line.partition("(")[2].partition(")")[0] for line in said} == {"it was made with another device"}
    assert_same(state, whole)


def test_where_none_can_be_kept_the_run_goes_on(tmp_path):
    (tmp_path / "kept").write_text("a file, where a folder should be")
    whole, _, _ = unlearned(Finetune(**SMALL), TinyTask())
    state, _, said = unlearned(Finetune(**SMALL), TinyTask(), tmp_path / "kept")
    (line,) = said
    assert line.startswith("no checkpoint could be kept in ")
    assert_same(state, whole)


class Pair(NamedTuple):
    """What a method may prepare."""

    mask: Tensor
    rest: object


def test_named_tuples_of_the_method_alone_are_read_back():
    value = {"a": Pair(torch.ones(2), [1, (2.5, "x", None)]), 3: torch.zeros(1, dtype=torch.int64)}
    known = {f"{Pair.__module__}.Pair": Pair}
    found = module._unpacked(module._packed(value, known), known)
    assert isinstance(found["a"], Pair) and torch.equal(found["a"].mask, torch.ones(2))
    assert found["a"].rest == value["a"].rest and found[3].dtype == torch.int64
    with pytest.raises(TypeError, match="Pair is not kept"):
        module._packed(value, {})
    with pytest.raises(KeyError):
        module._unpacked(module._packed(value, known), {})


# ---- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """The stage of a run, as jobs and commands use it; `stop` ends the process after so many steps."""
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(runner, "weight_parts", lambda cell, draft: {"method": cell.method.settings()})
    store = Store(tmp_path / "store")

    def run(method, stop=None, **options):
        said, task = [], TinyTask()
        with monkeypatch.context() as patch, told_by(said.append):
            if stop is not None:
                real = RunCheckpoints.reached

                def reached(self, state, step):
                    real(self, state, step)
                    if step == stop:
                        raise KeyboardInterrupt

                patch.setattr(RunCheckpoints, "reached", reached)
            made = runner.unlearned(Cell(method, task), None, store, **options)
        return made[0], said

    run.folder, run.store = store.root / module.KIND, store
    return run


def interrupted(stage, method, stop=4):
    with pytest.raises(KeyboardInterrupt):
        stage(method, stop)
    assert list(stage.folder.rglob("unlearn-0.*.pt"))


def test_the_stage_goes_on_and_leaves_the_weights_alone_in_the_store(stage):
    whole, _, _ = unlearned(Finetune(**SMALL), TinyTask())
    interrupted(stage, Finetune(**SMALL))
    other = Finetune(**SMALL, lr=1e-3)
    assert stage(other)[1] == [], "a run with other settings starts at its own first step"
    state, said = stage(Finetune(**SMALL))
    assert said == ["finetune goes on after step 4, where it was stopped"]
    assert_same(state, whole)
    assert list(stage.folder.iterdir()) == []


def test_force_starts_anew(stage):
    interrupted(stage, Finetune(**SMALL))
    assert stage(Finetune(**SMALL), force=True)[1] == []
    assert list(stage.folder.iterdir()) == []


def test_a_trajectory_starts_anew_and_says_so(stage):
    interrupted(stage, Finetune(**SMALL))
    with Watch("cpu") as watch:
        _, said = stage(Finetune(**SMALL), watch=watch)
    assert watch.steps == 7
    assert said == ["finetune starts anew: only a run without a trajectory goes on where it was stopped"]
    assert list(stage.folder.iterdir()) == []


def test_a_method_that_does_not_say_so_keeps_none(stage, tmp_path):
    cls = registry.load_method(str(write_method(tmp_path, STOPPING, "plain")))
    with pytest.raises(KeyboardInterrupt):
        stage(cls())
    assert not stage.folder.exists()


STOPPING = """
def losses():
    for batch in task.batches(7, 3, "retain"):
        yield model.loss(batch)
    raise KeyboardInterrupt
minimise(losses(), model.select("full"), 1e-3)
return model
"""
BACKWARD = """
def losses():
    for batch in task.batches(7, 3, "retain"):
        model.loss(batch).backward()
        yield {name: value.grad.clone() for name, value in model.select("full").items()}
minimise(losses(), model.select("full"), 1e-3)
return model
"""
DIVERGING = """
stream = (model.loss(batch) * (float("nan") if k == 5 else 1) for k, batch in enumerate(task.batches(7, 3, "retain")))
minimise(stream, model.select("full"), 1e-3)
return model
"""


def test_a_stream_that_cannot_be_brought_to_its_step_starts_anew(stage, tmp_path):
    cls = registry.load_method(str(write_method(tmp_path, BACKWARD, "backward", fields="resumes = True")))
    whole, _, _ = unlearned(cls(), TinyTask())
    interrupted(stage, cls())
    state, said = stage(cls())
    assert said[0] == "backward goes on after step 4, where it was stopped"
    assert said[1].startswith("backward starts anew: it cannot go on where it was stopped (RuntimeError: ")
    assert_same(state, whole)


def test_a_run_that_diverges_does_so_at_the_same_step_and_leaves_no_checkpoints(stage, tmp_path):
    cls = registry.load_method(str(write_method(tmp_path, DIVERGING, "diverging", fields="resumes = True")))
    interrupted(stage, cls())
    with pytest.raises(Diverged, match="step 5"):
        stage(cls())
    assert list(stage.folder.iterdir()) == []


def test_a_subclass_with_methods_of_its_own_says_for_itself_that_it_resumes():
    assert can_resume(ESD) and can_resume(ESDU), "other settings of the same"
    changed = {"losses": lambda self, *given: ESD.losses(self, *given)}
    assert not can_resume(type("Other", (ESD,), changed))
    assert can_resume(type("Other", (ESD,), {**changed, "resumes": True}))
    assert not can_resume(Method)


def test_purge_finds_what_unsafe_tasks_left(stage):
    interrupted(stage, Finetune(**SMALL))
    assert [entry.folder.parent for entry in purge.unsafe_entries(stage.store.root, ["tiny"])] == [stage.folder]
    assert list(purge.unsafe_entries(stage.store.root, ["other"])) == []
