"""Watching a method at work: values, norms, snapshots and steps that are known beforehand, and a clock left alone."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch

from tests.support.small_world import write_method
from tests.support.tiny_model import Linear, TinyTask
from unlearnbench import minimise, note, registry
from unlearnbench.errors import UserError
from unlearnbench.hashing import state_hash
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.monitor import GRADIENT, LETTERS, NAMES, Watch
from unlearnbench.pipeline.snapshots import LIMIT, Thinned
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.tasks.digits_class import DigitsClass

ONES = {"W": 4.0, "b": 2.0}
"""||gradient|| of the sum of a parameter's numbers."""


def descend(model, steps, name="W", lr=0.5, said=None):
    """SGD on the sum of a parameter's numbers: each falls by lr in every step."""

    def losses():
        for step in range(steps):
            note(**({} if said is None else said(step)))
            yield getattr(model, name).sum()

    minimise(losses(), {name: getattr(model, name)}, lr, optimiser="sgd")


def watched(work, every=None, root=None, log=None, end=True):
    """A watch over this work on a fresh linear model."""
    watch, model = Watch("cpu", every, root, log), Linear(0)
    with watch.hearing(model):
        watch.begin()
        work(model)
    if end:
        watch.end(model.state_dict(), 1.0)
    return watch


def test_a_note_that_nobody_hears_looks_at_nothing():
    def never():
        raise AssertionError("somebody looked")

    assert note(a=never, b="no number") is None


def test_noted_values_are_kept_as_numbers_at_the_step_that_follows():
    values = [torch.tensor(0.5), 2, math.nan, lambda: torch.tensor([3.0])]
    watch = watched(lambda model: descend(model, 4, said=lambda step: {"loss": values[step]}))
    assert watch.series()["loss"] == [(1, 0.5), (2, 2.0), (3, None), (4, 3.0)]
    note(loss=7.0)
    assert len(watch.series()["loss"]) == 4, "the watch is over"


@pytest.mark.parametrize("value", ["much", None, torch.ones(2), [1.0]])
def test_what_is_no_number_is_refused_in_one_line(value):
    with pytest.raises(UserError, match=r"^note\(loss=…\) got .*: give a number, or a tensor of one element$"):
        watched(lambda model: note(loss=value))


def test_gradient_norms_are_those_that_the_optimiser_gets():
    assert watched(lambda model: descend(model, 3)).series() == {GRADIENT: [(1, 4.0), (2, 4.0), (3, 4.0)]}

    def scaled(model):
        weight = model.W
        minimise((step * weight.sum() for step in (1.0, 2.0)), {"W": weight}, 0.1, optimiser="sgd", clip=6.0)

    (norms,) = watched(scaled).series().values()
    assert [value for _, value in norms] == pytest.approx([4.0, 6.0]), "the second one, 8, is clipped"


def test_snapshots_are_the_weights_at_the_right_steps(tmp_path):
    before = Linear(0).W.detach()
    watch = watched(lambda model: descend(model, 7), every=2, root=tmp_path)
    shots = watch.snapshots()
    assert [shot.step for shot in shots] == [0, 2, 4, 6, 7]
    for shot in shots:
        assert torch.allclose(shot.state()["W"], before - 0.5 * shot.step, atol=1e-6)
        assert torch.equal(shot.state()["E"], Linear(0).E)
    times = [shot.seconds for shot in shots[:-1]]
    assert times == sorted(times) and times[0] == 0 and shots[-1].seconds == 1.0
    watch.__exit__()
    assert list(tmp_path.iterdir()) == []


def test_the_end_stands_for_the_last_step(tmp_path):
    def averaged(model):
        descend(model, 4)
        with torch.no_grad():
            model.W.zero_()

    watch = watched(averaged, every=2, root=tmp_path)
    shots = watch.snapshots()
    assert [shot.step for shot in shots] == [0, 2, 4]
    assert not shots[-1].state()["W"].any()


def test_without_a_step_the_trajectory_is_its_end(tmp_path):
    watch = watched(lambda model: note(a=1.0), every=1, root=tmp_path)
    assert [shot.step for shot in watch.snapshots()] == [0] and watch.steps == 0
    assert watch.series() == {"a": [(1, 1.0)]}


def test_a_run_that_breaks_off_keeps_what_there_was(tmp_path):
    watch = watched(lambda model: descend(model, 4), every=2, root=tmp_path, end=False)
    assert [shot.step for shot in watch.snapshots()] == [0, 2, 4]


def test_the_main_optimiser_is_that_with_the_most_steps_on_the_model_itself(tmp_path):
    def work(model):
        phi = copy.deepcopy(model)
        descend(phi, 50)  # of a copy: does not count

        def losses():
            for _ in range(5):
                descend(model, 3, "b")  # an inner loop of the model's own
                note(outer=1.0)
                yield model.W.sum()

        minimise(losses(), {"W": model.W}, 0.5, optimiser="sgd")

    watch = watched(work, every=1, root=tmp_path)
    assert watch.steps == 5
    assert watch.series() == {"outer": [(k, 1.0) for k in range(1, 6)], GRADIENT: [(k, 4.0) for k in range(1, 6)]}
    assert [shot.step for shot in watch.snapshots()] == [0, 1, 2, 3, 4, 5]
    files = list(watch.folder.glob("*.pt"))
    assert len(files) <= 2 + 5 + 3, "snapshots of inner loops that are over are deleted"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 100, 1001])
def test_thinning_is_even_and_keeps_first_and_last(count):
    thin = Thinned(4)
    gone = [item for number in range(count) for item in thin.add(number)]
    kept = thin.items()
    assert len(kept) <= 4 and sorted(set(kept)) == kept
    assert set(kept) <= set(range(count)) and not set(gone) & set(thin.spread)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
        assert len({b - a for a, b in zip(thin.spread, thin.spread[1:], strict=False)}) <= 1
    assert count > 3 or kept == list(range(count))


def test_long_series_and_many_names_stay_bounded(tmp_path):
    def said(step):
        return {f"{'x' * 100}": step, **{f"name {k}": 1.0 for k in range(40)}}

    watch = watched(lambda model: descend(model, 3 * LIMIT, said=said), every=1, root=tmp_path)
    series = watch.series()
    assert len(series) == NAMES + 1 and max(map(len, series.values())) <= LIMIT
    assert max(map(len, series)) == LETTERS
    steps = [step for step, _ in series[GRADIENT]]
    assert (steps[0], steps[-1]) == (1, 3 * LIMIT) and len(watch.snapshots()) <= LIMIT
    assert len(list(watch.folder.glob("*.pt"))) <= LIMIT


def test_values_are_told_as_they_come():
    heard = []
    watched(
        lambda model: descend(model, 2, said=lambda k: {"a": k}),
        log=lambda step, values: heard.append((step, dict(values))),
    )
    assert heard == [(1, {"a": 0.0}), (1, {GRADIENT: 4.0}), (2, {"a": 1.0}), (2, {GRADIENT: 4.0})]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write weights on the way to .*file.*: free it, .* evaluate less often"
    ):
        watched(lambda model: None, every=1, root=tmp_path / "file" / "below")


def test_erasediff_notes_the_multiplier_of_its_theorem_and_the_gradients_it_rests_on():
    method = EraseDiff(steps=4, batch_size=4, lr=0.05, eta=0.3, optimiser="sgd")
    watch, model = Watch("cpu"), Linear(0)
    torch.manual_seed(0)
    with watch.hearing(model):
        method.unlearn(model, TinyTask())
    series = {name: [value for _, value in values] for name, values in watch.series().items()}
    assert {len(values) for values in series.values()} == {4}
    columns = (series[name] for name in ("lambda", "<grad g, grad L_r>", "||grad g||", "||grad L_r||", GRADIENT))
    for lam, product, g, r, step in zip(*columns, strict=True):
        assert lam == pytest.approx(max(0.0, 0.3 - product / g**2), rel=1e-4)
        assert step**2 == pytest.approx(r**2 + 2 * lam * product + (lam * g) ** 2, rel=1e-4)
    assert min(series["L_f"]) > 0 and min(series["L_r"]) > 0


CASES = {
    "gradient_ascent": {"steps": 3, "batch_size": 4},
    "erasediff": {"steps": 3, "batch_size": 4, "rule": "barrier"},
    "esd": {"steps": 2, "batch_size": 4, "sampler_steps": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_same_to_the_last_bit_whether_watched_or_not(name, tmp_path):
    cell = Cell(registry.load_method(name)(**CASES[name]), DigitsClass("3"))
    torch.manual_seed(1)
    plain, _ = unlearn(cell)
    outside = torch.rand(3)
    torch.manual_seed(1)
    with Watch("cpu", 1, tmp_path) as watch:
        seen, _ = unlearn(cell, watch)
        assert torch.equal(torch.rand(3), outside)
        last = watch.snapshots()[-1]
        assert state_hash(seen) == state_hash(plain) == state_hash(last.state())
        assert watch.steps == last.step == cell.method.steps


def test_the_time_that_watching_takes_is_not_unlearning(tmp_path):
    body = """note(a=1.0)
weight = next(iter(model.select("full").values()))
minimise((weight.sum() for _ in range(3)), {"w": weight}, 1e-6)
return model"""
    path = write_method(tmp_path, body, head="from unlearnbench import note")
    cell = Cell(registry.load_method(str(path))(), DigitsClass("3"))
    with Watch("cpu", 1, tmp_path / "w", lambda step, values: time.sleep(0.3)) as watch:
        _, facts = unlearn(cell, watch)
        assert watch.aside > 4 * 0.3
        assert 0 < facts["cost"]["unlearn_time"] < watch.aside, "with it, it would be more than it"
        assert watch.snapshots()[-1].seconds < watch.aside
