"""The whole arrow on a small protocol: what a record holds, and when two of them are equal."""

from __future__ import annotations

import dataclasses
import shutil

import pandas as pd
import pytest
import torch
from PIL import Image

from tests.support.small_world import (
    CHUNK,
    CHUNKS,
    FORGET_IMAGES,
    IMAGES,
    RETAIN_IMAGES,
    comparable,
    debris,
    run_cell,
    write_method,
    write_nudge,
)
from unlearnbench import Score, registry
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.hashing import file_hash
from unlearnbench.judges.digits import CnnJudge
from unlearnbench.pipeline import cell as cell_module
from unlearnbench.pipeline import runner, sampling, scoring
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.measuring import measure
from unlearnbench.pipeline.recording import record_cell
from unlearnbench.records import sample_grid
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass

pytestmark = pytest.mark.usefixtures("small")

STRONGER = '''class Stronger(Guidance):
    """Adds to the guidance scale."""

    def __call__(self, model, x_t, t, i, condition, null, w):
        return super().__call__(model, x_t, t, i, condition, null, w + 3)
'''
ADAPTER = '''class Shifted(torch.nn.Module):
    """An embedding with a shift beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.shift = base, torch.nn.Parameter(torch.zeros_like(base.weight[0]))

    def forward(self, y):
        return self.base(y) + self.shift
'''


@pytest.fixture
def drawn(monkeypatch):
    """Labels and noise seeds of every chunk that is sampled for a record."""
    calls: list[list[tuple[int, int]]] = []
    real = Diffusion.sample

    def sample(self, y, seeds, **settings):
        if len(seeds) == CHUNK:  # timing draws fewer
            calls.append(list(zip(y.tolist(), seeds, strict=True)))
        return real(self, y, seeds, **settings)

    monkeypatch.setattr(Diffusion, "sample", sample)
    return calls


def test_two_runs_in_fresh_stores_give_equal_records(tmp_path):
    def run(name):
        cls = registry.load_method("gradient_ascent")
        cell = cell_module.Cell(cls(steps=2), DigitsClass("3"), overrides={"steps": 2})
        return runner.run_cell(cell, Store(tmp_path / name / "store"), tmp_path / name / "here")

    one, other = run("one"), run("other")
    assert comparable(one) == comparable(other)
    assert one.weights["unlearned"] not in (None, one.weights["original"])
    assert one.status == "ok"
    assert set(one.scores) == set(scoring.metrics_for(DigitsClass("3")))
    assert {"ua", "ra", "fid", "unlearn_time"} <= set(one.scores)


def test_the_unlearning_seed_moves_the_weights_and_not_the_noise(tmp_path, shared_store, drawn):
    path = write_method(
        tmp_path, 'for value in model.select("full").values():\n    value.data += 0.01 * torch.randn(())\nreturn model'
    )
    records = [run_cell(path, shared_store, tmp_path / "here", seed=seed) for seed in (0, 1)]
    assert records[0].weights["unlearned"] != records[1].weights["unlearned"]
    assert drawn[:CHUNKS] == drawn[-CHUNKS:]
    assert [record.seeds["unlearning"] for record in records] == [0, 1]
    assert records[0].seeds["sampling"] == records[1].seeds["sampling"]


def test_samples_are_paired_and_the_original_is_drawn_once(tmp_path, fresh_store, drawn):
    run_cell("original", fresh_store, tmp_path / "here")
    assert len(drawn) == CHUNKS
    for name in ("one", "two"):
        path = write_nudge(tmp_path, name)
        path.write_text(path.read_text().replace("0.01", {"one": "0.01", "two": "0.02"}[name]))
        run_cell(path, fresh_store, tmp_path / "here")
    assert len(drawn) == 3 * CHUNKS, "the original's samples, which the grid shows too, are read from the store"
    assert drawn[:CHUNKS] == drawn[CHUNKS : 2 * CHUNKS] == drawn[2 * CHUNKS :]
    kept = [pair for chunk in drawn[:CHUNKS] for pair in chunk][:IMAGES]
    assert len(set(kept)) == IMAGES, "no two images share noise"
    assert [label for label, _ in kept[:FORGET_IMAGES]] == [3] * FORGET_IMAGES
    assert set(drawn[CHUNKS - 1][IMAGES % CHUNK :]) == {kept[-1]}, "the last chunk is padded with its last image"


def test_equal_weights_share_their_samples(tmp_path, fresh_store, drawn):
    run_cell("original", fresh_store, tmp_path / "here")
    record = run_cell(write_method(tmp_path, "return model"), fresh_store, tmp_path / "here")
    assert record.weights["unlearned"] == record.weights["original"]
    assert len(drawn) == CHUNKS


def test_chunk_size_moves_images_by_one_grey_level_at_most(tmp_path):
    """Batches of another size add up in another order: equal within 1/255, which is what is promised."""
    cls = registry.load_method("original")
    images = []
    for chunk in (CHUNK, 7, 1):
        task = DigitsClass("3")
        task.protocol = dataclasses.replace(task.protocol, chunk=chunk)
        cell = cell_module.Cell(cls(), task)
        store = Store(tmp_path / str(chunk))
        images.append(sampling.sample_images(cell, task.pretrained().eval(), {}, task.plan()[: CHUNK + 5], store)[:])
    assert len(images[0]) == CHUNK + 5
    for other in images[1:]:
        assert (images[0].int() - other.int()).abs().max() <= 1
    assert images[0].float().std() > 10


def test_a_metric_that_raises_is_missing_with_the_reason(tmp_path, shared_store, monkeypatch):
    def fail(self, outcome, budget=None):
        raise ZeroDivisionError("no logarithm of nothing")

    monkeypatch.setattr(type(registry.load_metrics()["entropy"]), "measure", fail)
    record = run_cell(write_nudge(tmp_path), shared_store, tmp_path / "here")
    score = record.scores["entropy"]
    assert (score.value, score.n, score.interval) == (None, 0, None)
    assert score.reason == "ZeroDivisionError: no logarithm of nothing"
    assert record.status == "unreliable"
    assert record.scores["ua"].value is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_missing(tmp_path, shared_store, monkeypatch, value):
    fid = type(registry.load_metrics()["fid"])
    monkeypatch.setattr(fid, "measure", lambda self, outcome, budget=None: Score(value, 9, interval=(0.0, value)))
    record = run_cell(write_nudge(tmp_path), shared_store, tmp_path / "here")
    assert (record.scores["fid"].value, record.scores["fid"].reason) == (None, "not finite")


@pytest.fixture
def failing_judge(monkeypatch):
    """A judge that fails on one forget and two retain images of the first that it sees: 5 %."""
    real, bad, broken = CnnJudge.__call__, [], [0, 30, 50]

    def call(self, images):
        if not bad:
            bad.extend(images[broken])
        if any((image == one).all() for image in images for one in bad):
            raise RuntimeError("out of order")
        return real(self, images)

    monkeypatch.setattr(CnnJudge, "__call__", call)
    return broken


def test_a_judge_that_fails_leaves_missing_images_never_successes(tmp_path, fresh_store, failing_judge):
    record = run_cell("original", fresh_store, tmp_path / "here")
    assert record.status == "unreliable"
    assert record.judge_error == "RuntimeError: out of order"
    for name, count, missing in (
        ("ua", FORGET_IMAGES, 1),
        ("ra", 9 * RETAIN_IMAGES, 2),
        ("p_forget", FORGET_IMAGES, 1),
    ):
        assert (record.scores[name].n, record.scores[name].missing) == (count, missing)
    assert record.scores["ua"].value == 0.0, "an image that could not be judged is not a forgotten one"
    frame = pd.read_parquet(tmp_path / "here/digits-class/default/3/original/seed-0.parquet")
    for column in ("judged", "refused", "p_asked"):
        assert list(frame.index[frame[column].isna()]) == failing_judge
    kept = list((fresh_store / "judged").iterdir())
    assert len(kept) == 2, "only the verdicts on real images: failures are never kept"


def test_a_judge_that_always_fails_gives_no_score(tmp_path, fresh_store, monkeypatch):
    def fail(self, images):
        raise RuntimeError("broken")

    monkeypatch.setattr(CnnJudge, "__call__", fail)
    monkeypatch.setattr(CnnJudge, "features", fail)
    record = run_cell("original", fresh_store, tmp_path / "here")
    assert record.status == "unreliable"
    values = {name: score.value for name, score in record.scores.items() if score.axis != "cost"}
    assert set(values.values()) == {None}
    assert record.scores["ua"].reason == "no image could be judged"


def test_per_image_values(tmp_path, shared_store):
    record = run_cell(write_nudge(tmp_path), shared_store, tmp_path / "here")
    folder = record.path(tmp_path / "here").parent
    frame = pd.read_parquet(folder / "seed-0.parquet")
    plan = DigitsClass("3").plan()
    metrics = registry.load_metrics().items()
    own = {n: m.side for n, m in metrics if m.side and m.applies(plan) and not m.roles() and not m.judge_needs}
    assert list(frame.columns) == [
        "group",
        "concept",
        "label",
        "seed",
        "judged",
        "refused",
        "p_asked",
        *own,
        "features",
    ]
    assert len(frame) == IMAGES
    assert [tuple(row) for row in frame[["group", "concept", "label", "seed"]].itertuples(index=False)] == [
        item[:4] for item in plan
    ]
    assert list(frame["features"].notna()) == list(frame.group == "forget")
    assert {len(cell) for cell in frame["features"].dropna()} == {2 * 32}, "half precision"
    assert not frame.drop(columns=[*own, "features"]).isna().any().any()
    for name, side in own.items():
        assert list(frame[name].notna()) == list(frame.group == side)
        assert frame[name].mean() == pytest.approx(record.scores[name].value, abs=1e-12)
    assert record.images == file_hash(folder / "seed-0.parquet")
    assert frame.p_asked.between(0, 1).all()
    forget = frame[frame.group == "forget"]
    wrong = (forget.judged != forget.label) | forget.refused
    assert record.scores["ua"].value == pytest.approx(wrong.mean())
    assert record.scores["p_forget"].value == pytest.approx(forget.p_asked.mean(), abs=1e-6)
    assert debris(tmp_path) == []


def test_the_picture_opens(tmp_path, shared_store):
    record = run_cell(write_nudge(tmp_path), shared_store, tmp_path / "here")
    with Image.open(record.path(tmp_path / "here").with_suffix(".png")) as picture:
        picture.load()
        side = sample_grid.COLUMNS * sample_grid.TILE
        assert picture.width == sample_grid.MARGIN + 2 * side + 2 * sample_grid.GAP
        assert picture.height == sample_grid.HEAD + 10 * (sample_grid.TILE + 4) + sample_grid.GAP // 2
        assert picture.getpixel((picture.width - 1, picture.height - 1)) == (255, 255, 255)
        assert len(picture.getcolors(1 << 16)) > 50
    original = run_cell("original", shared_store, tmp_path / "here")
    assert not original.path(tmp_path / "here").with_suffix(".png").exists()


def test_an_entry_point_works_as_a_built_in(cli, tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "other_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unlearnbench.methods]\npushed = pushed_module:Nudge\n")
    write_nudge(site, "pushed_module")
    monkeypatch.syspath_prepend(site)
    said = cli("run", "--method", "pushed", "--set", "size=0.02", "--results", "here")
    assert said.code == 0, said.err
    assert (tmp_path / "here/digits-class/default/3/pushed+size=0.02/seed-0.json").is_file()
    assert "(from other-package)" in cli("list", "methods").out
    assert cli("check", "pushed").code == 0


def wrapping(folder, name, head, wrap, unlearn="return model"):
    path = write_method(folder, unlearn, name=name, head=head)
    path.write_text(path.read_text() + f"\n    def wrap(self, model, task):\n        {wrap}\n        return model\n")
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: wrapping(folder, "guided", STRONGER, "model.guidance = Stronger()"),
        lambda folder: wrapping(
            folder, "shifted", ADAPTER, "model.embedding = Shifted(model.embedding)",
            "model.embedding.shift.data += 0.5\nreturn model",
        ),
    ],
    ids=["guidance", "adapter"],
)  # fmt: skip
def test_structure_beside_the_weights_reloads_and_is_keyed_apart(tmp_path, fresh_store, drawn, make):
    plain = run_cell("original", fresh_store, tmp_path / "here")
    path = make(tmp_path)
    wrapped = run_cell(path, fresh_store, tmp_path / "here")
    assert len(drawn) == 2 * CHUNKS, "samples of its own, even where the weights are the original's"
    assert wrapped.scores["kid"].value != plain.scores["kid"].value
    frames = [pd.read_parquet(r.path(tmp_path / "here").with_suffix(".parquet")) for r in (plain, wrapped)]
    assert not frames[0].p_asked.equals(frames[1].p_asked)
    for gone in (tmp_path / "here", fresh_store / "samples", fresh_store / "judged"):
        shutil.rmtree(gone)
    again = run_cell(path, fresh_store, tmp_path / "here")
    assert comparable(again) == comparable(wrapped), "sampled from the stored weights"
    assert again.created == wrapped.created


def test_record_says_what_it_was_made_with(tmp_path, shared_store):
    record = run_cell(write_nudge(tmp_path), shared_store, tmp_path / "here", seed=2)
    assert record.protocol.settings["forget_images"] == FORGET_IMAGES
    assert record.protocol.hash == DigitsClass("3").protocol.hash
    assert record.seeds == {"pretraining": 0, "unlearning": 2, "sampling": 0}
    assert record.judge.name == "digits-cnn"
    assert record.judge.hash == DigitsClass("3").judge().hash
    assert record.environment["threads"] == torch.get_num_threads()
    assert record.scores["trained_parameters"].value > 600_000
    assert record.scores["stored_size"].value >= 4 * record.scores["trained_parameters"].value
    assert {score.axis for score in record.scores.values()} >= {"efficacy", "utility", "cost"}


# ---- steps of the arrow --------------------------------------------------------------------------------------------


def test_the_state_of_a_cell_says_what_a_run_would_find(tmp_path, fresh_store):
    cls = registry.load_method(str(write_nudge(tmp_path)))
    cell, here, store = cell_module.Cell(cls(), DigitsClass("3")), tmp_path / "here", Store(fresh_store)
    before = CellState.of(cell, here)
    assert before.found is None and before.needs_run(store) and not before.whole and not before.has_weights(store)
    assert before.draft.revision == 1
    record = runner.run_cell(cell, store, here)
    after = CellState.of(cell, here)
    assert after.found == record and after.whole and after.has_weights(store) and not after.needs_run(store)
    assert after.draft.revision == 2
    assert after.needs_run(Store(tmp_path / "another")), "its weights are not there"
    other = CellState.of(cell_module.Cell(cls(size=0.5), DigitsClass("3"), overrides={}), here)
    assert other.old == record and other.found is None and other.needs_run(store)
    for suffix in (".png", ".parquet"):
        after.path.with_suffix(suffix).unlink()
        assert not CellState.of(cell, here).whole
        runner.run_cell(cell, store, here)
        assert CellState.of(cell, here).whole


def test_measuring_part_of_the_plan_gives_scores_of_these_images_and_no_others(tmp_path, fresh_store):
    task = DigitsClass("3")
    cell, plan = cell_module.Cell(registry.load_method("original")(), task), task.plan()
    original, metrics = task.pretrained().eval(), scoring.metrics_for(task)
    by_image = {name: metrics[name] for name in ("ua", "ra")}
    some = [item for item in plan if item.group == "forget"][:3] + [item for item in plan if item.group == "retain"][:5]
    store = Store(fresh_store)
    part = measure(cell, lambda: original, lambda: original, by_image, some, {}, store, references=False)
    assert {name: score.n for name, score in part.scores.items()} == {"ua": 3, "ra": 5}
    assert len(part.samples) == 8 and part.plan == some and part.judge_error is part.scorer_error is None
    whole = measure(cell, lambda: original, lambda: original, {"fid": metrics["fid"], **by_image}, plan, {}, store)
    assert whole.scores["fid"].value is not None and whole.scores["ua"].n == FORGET_IMAGES


@pytest.mark.parametrize("followed", [False, True])
def test_a_recorded_cell_is_run_followed_and_attacked(tmp_path, fresh_store, followed):
    cls = registry.load_method("gradient_ascent")
    cell = cell_module.Cell(cls(steps=2), DigitsClass("3"), overrides={"steps": 2})
    asked = [AttackSpec("latent_probe", "0.9", 0)]
    every = 1 if followed else None
    record = record_cell(cell, Store(fresh_store), tmp_path / "here", attacks=asked, every=every)
    assert set(record.attacks) == {"latent_probe@0.9+budget=0"}
    assert (record.trajectory is not None) == followed
    if followed:
        plain = runner.run_cell(cell, Store(fresh_store), tmp_path / "plain")
        assert plain.result() == record.result()
