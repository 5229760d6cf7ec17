"""Drawing and judging together: a block is judged while the next is drawn, and what is seen is the same."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from unlearnbench import registry
from unlearnbench.compute.device import exact
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.scorer import Witness
from unlearnbench.pipeline import judging, sampling
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.judging import Looking, judged
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan
from unlearnbench.tasks.digits_class import DigitsClass


class Counting(Judge):
    """Reads class and features off the first pixel; refuses odd values, raises on 255."""

    name, version, classes, threshold, hash = "counting", "1", 4, 0.5, "0" * 64

    def __init__(self):
        self.sizes, self.threads, self.gate = [], set(), None

    def __call__(self, images):
        self.sizes.append(len(images))
        self.threads.add(threading.get_ident())
        assert self.gate is None or self.gate.wait(60)
        value = images[:, 0, 0, 0].long()
        if (value == 255).any():
            raise RuntimeError("this one cannot be judged")
        return Verdict(torch.eye(4)[value % 4], value % 2 == 1)

    def features(self, images):
        if (images[:, 0, 0, 0] == 255).any():
            raise RuntimeError("this one has no features")
        return images[:, 0, 0, :3].float()


def pictures(n, seed=0):
    return torch.randint(0, 250, (n, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    monkeypatch.setattr(judging, "BLOCK", 10)


def looked(store, images, chunk, beside=False):
    with Looking(Counting(), store, beside) as looking:
        for some in images.split(chunk):
            looking(some)
        return looking.seen()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 10, 35, 100])
@pytest.mark.parametrize("n", [1, 10, 30, 37])
def test_what_is_seen_does_not_depend_on_how_images_come(tmp_path, n, chunk, beside):
    images = pictures(n)
    seen = looked(Store(tmp_path), images, chunk, beside)
    assert torch.equal(seen.verdict.probabilities, torch.eye(4)[images[:, 0, 0, 0].long() % 4])
    assert torch.equal(seen.verdict.refused, images[:, 0, 0, 0] % 2 == 1)
    assert torch.equal(seen.features[:], images[:, 0, 0, :3].float()) and len(seen.features) == n
    assert seen.error is None


def test_blocks_are_kept_one_by_one_and_not_judged_again(tmp_path):
    store, judge = Store(tmp_path), Counting()
    judged(judge, pictures(25).split(25), store)
    assert judge.sizes == [10, 10, 5]
    judged(judge, pictures(25)[:20].split(3), store)
    assert judge.sizes[3:] == [], "those blocks are there already"
    judged(judge, torch.cat([pictures(25)[:10], pictures(10, 1)]).split(3), store)
    assert judge.sizes[3:] == [10]


def test_a_block_is_judged_while_the_next_is_drawn_and_few_wait(tmp_path):
    judge, mine = Counting(), threading.get_ident()
    judge.gate = threading.Event()
    with Looking(judge, Store(tmp_path), beside=True) as looking:
        looking(pictures(10, 1))
        looking(pictures(10, 2))  # the first is not judged yet, and this does not wait
        assert not judge.gate.is_set() and len(judge.sizes) <= 1
        third = threading.Thread(target=looking, args=(pictures(10, 3),))
        third.start()
        third.join(0.2)
        assert third.is_alive(), "a third block waits until the first is done, or images would pile up"
        judge.gate.set()
        third.join(60)
        seen = looking.seen()
    assert len(seen.verdict.closed) == 30 and judge.threads == judge.threads - {mine}


@pytest.mark.parametrize("beside", [False, True])
def test_an_image_that_cannot_be_judged_is_missing_and_features_are_none(tmp_path, beside):
    images = pictures(25)
    images[13, 0, 0, 0] = 255
    seen = looked(Store(tmp_path), images, 5, beside)
    assert seen.verdict.missing.nonzero().flatten().tolist() == [13]
    assert len(seen.features) == 0 and "cannot be judged" in seen.error
    images[13] = 0
    assert looked(Store(tmp_path), images, 5, beside).error is None, "failures are not kept"


def test_a_block_that_failed_beside_the_sampler_is_judged_again_after_it(tmp_path):
    """There may have been too little memory for both."""
    judge, images = Counting(), pictures(30)
    plain, failing = judge.features, [True]

    def hungry(some):
        if failing[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(some)

    judge.features = hungry
    with Looking(judge, Store(tmp_path), beside=True) as looking:
        for some in images.split(10):
            looking(some)
        for future in looking._begun:
            assert future.result()[0].error is not None
        failing[0] = False
        seen = looking.seen()
    assert seen.error is None and torch.equal(seen.features[:], images[:, 0, 0, :3].float())


def test_drawing_alone_is_as_exact_as_drawing_beside_a_judge(tmp_path, monkeypatch):
    """Both are kept under one key."""
    flags, seen = torch.backends.cudnn, []
    task = DigitsClass("3")
    monkeypatch.setattr(sampling, "_drawn", lambda cell, model, items: seen.append(flags.allow_tf32) or pictures(50))
    cell = Cell(registry.load_method("original")(), task)
    sampling.sample_images(cell, task.pretrained(), {}, task.plan()[:50], Store(tmp_path))
    assert seen == [False]


@pytest.mark.parametrize("beside", [False, True])
def test_a_store_that_fails_is_told_and_drawing_that_fails_leaves_no_thread(tmp_path, beside, monkeypatch):
    def full(self, *given, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "stage", full)
        with pytest.raises(OSError, match="No space left"):
            looked(Store(tmp_path), pictures(40), 10, beside)
    looked(Store(tmp_path), pictures(10), 10)  # libraries start threads of their own at their first use
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Looking(Counting(), Store(tmp_path), beside) as looking:
        looking(pictures(20))
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_numbers_are_exact_from_before_the_thread_until_after_it(tmp_path):
    """The settings are the process's: a judge that sets and puts them back would change them under the sampler."""
    flags, seen = torch.backends.cudnn, []
    plain = (flags.allow_tf32, flags.deterministic, flags.benchmark)

    class Setting(Counting):
        def __call__(self, images):
            with exact():
                seen.append((flags.allow_tf32, flags.deterministic))
            return super().__call__(images)

    with Looking(Setting(), Store(tmp_path), beside=True) as looking:
        looking(pictures(20))
        assert (flags.allow_tf32, flags.deterministic) == (False, True)
        looking.seen()
        assert (flags.allow_tf32, flags.deterministic) == (False, True)
    assert (flags.allow_tf32, flags.deterministic, flags.benchmark) == plain
    assert set(seen) == {(False, True)}


# ---- scorers beside the sampler ------------------------------------------------------------------------------------


class Scoring(Witness):
    """Says an image's first pixel and the length of its prompt; raises on 255."""

    version, threshold, columns = "1", 0.5, ("pixel", "letters")

    def __init__(self, name, groups):
        self.name, self.hash, self.groups = name, name * 8, frozenset(groups)
        self.threads, self.looks = set(), 0

    def __call__(self, images, prompts):
        self.threads.add(threading.get_ident())
        self.looks += len(images)
        if (images[:, 0, 0, 0] == 255).any():
            raise RuntimeError("this one cannot be scored")
        return torch.stack([images[:, 0, 0, 0].float(), torch.tensor([float(len(text)) for text in prompts])], dim=1)


def scorers():
    return {"detector": Scoring("d", ("forget", "benign")), "second": Scoring("s", ("retain", "benign"))}


def planned(n):
    groups = ("forget", "retain", "benign", "retain", "neighbours")
    return [Plan(groups[i % 5], str(i % 3), i % 3, i, prompt="x" * (i % 7)) for i in range(n)]


def scored_beside(store, witnesses, images, chunk):
    """What scorers say of images that come in chunks beside them, and of the rest afterwards."""
    plan = planned(len(images))
    with Looking(Counting(), store, True, witnesses, plan) as looking:
        for some in images.split(chunk):
            looking(some)
        looking.seen()
        known = looking.said()
    beside = {name: witness.looks for name, witness in witnesses.items()}
    return judging.testimonies(witnesses, images, plan, store, known), beside


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(judging, "WITNESSED", 6)


@pytest.mark.parametrize("chunk", [1, 7, 80])
def test_scorers_beside_the_sampler_say_what_they_say_after_it(tmp_path, small_blocks, chunk):
    images, plan = pictures(80), planned(80)
    after = judging.testimonies(alone := scorers(), images, plan, Store(tmp_path / "after"))
    found, early = scored_beside(store := Store(tmp_path / "beside"), both := scorers(), images, chunk)
    for role, said in after.items():
        assert torch.equal(found[role].values.nan_to_num(-1), said.values.nan_to_num(-1)) and found[role].error is None
        rest = both[role].looks - early[role]
        assert early[role] > 0 and 0 <= rest < 6, "only what fills no block is left for afterwards"
        assert both[role].looks == alone[role].looks
        assert threading.get_ident() not in both[role].threads or rest
    again, kept = scorers(), found["second"].values
    judging.testimonies(again, images, plan, store)
    assert [witness.looks for witness in again.values()] == [0, 0], "blocks are kept under the same keys"
    found, early = scored_beside(store, again, images, chunk)
    assert set(early.values()) == {0} and torch.equal(found["second"].values.nan_to_num(-1), kept.nan_to_num(-1))


def test_an_image_that_cannot_be_scored_beside_the_sampler_is_missing_and_tried_again(tmp_path, small_blocks):
    images = pictures(80)
    images[0, 0, 0, 0] = 255
    failing = scorers()
    found, early = scored_beside(Store(tmp_path), failing, images, 10)
    assert found["detector"].values.isnan().any(dim=1)[[0, 2, 5]].tolist() == [True, False, False]
    assert "cannot be scored" in found["detector"].error and found["second"].error is None
    assert failing["detector"].looks - early["detector"] >= 6, (
        "beside the sampler there may have been too little memory"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scored", [True, False])
def test_on_cuda_scorers_look_beside_the_sampler_where_they_are_asked_for(
    tmp_path, small_blocks, monkeypatch, device, scored
):
    images, plan, both = pictures(80), planned(80), scorers()

    def sampled(cell, model, identity, plan, store, force, see):
        for some in images.split(10):
            see(some)
        return images

    monkeypatch.setattr(judging, "sample_images", sampled)
    cell = SimpleNamespace(task=SimpleNamespace(device=device, witnesses=lambda: both))
    store = Store(tmp_path)
    _, seen, known = judging.observed(cell, Counting(), None, {}, plan, store, scorers=scored)
    assert len(seen.verdict.closed) == 80
    assert bool(known) == (device == "cuda" and scored) == any(witness.looks for witness in both.values())
    found = judging.witnessed(cell.task, images, plan, store, known)
    alone = judging.testimonies(scorers(), images, plan, Store(tmp_path / "alone"))
    for role, said in alone.items():
        assert torch.equal(found[role].values.nan_to_num(-1), said.values.nan_to_num(-1))


def test_a_stop_ends_what_is_looked_at_and_begins_nothing_more(tmp_path, small_blocks):
    before, gate, judge = threading.active_count(), threading.Event(), Counting()

    class Slow(Scoring):
        def __call__(self, images, prompts):
            assert gate.wait(60)
            return super().__call__(images, prompts)

    slow, more = Slow("s", ("retain", "benign")), Scoring("m", ("retain", "benign"))
    both = {"slow": slow, "more": more}
    with pytest.raises(KeyboardInterrupt), Looking(judge, Store(tmp_path), True, both, planned(10)) as looking:
        looking(pictures(10))  # a block for the scorers, and one for the judge, which waits
        threading.Timer(0.2, gate.set).start()
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert slow.looks == 6 and more.looks == 0 and judge.sizes == []
