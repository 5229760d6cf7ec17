"""The digits task: splits, batches, conditions, plan of images, protocols, and an original that really generates."""

from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from unlearnbench.errors import UserError
from unlearnbench.hashing import state_hash
from unlearnbench.reporting import shown_by
from unlearnbench.tasks.digits_class import SPLITS, DigitsClass, splits, to_uint8

PROTOCOLS = sorted(DigitsClass.protocols)


def rows(x):
    """Images as things that can be counted."""
    return [image.numpy().tobytes() for image in x]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "each"), SPLITS.items())
def test_splits_are_stratified_and_of_the_stated_size(split, each):
    x0, y = splits()[split]
    assert x0.shape == (10 * each, 1, 8, 8) and x0.dtype == torch.float32
    assert y.bincount().tolist() == [each] * 10
    assert x0.min() == -1 and x0.max() == 1


def test_splits_are_disjoint_and_real_digits_with_their_labels():
    images, labels = load_digits(return_X_y=True)
    real = Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
    drawn = Counter(
        (((image + 1) * 8).double().numpy().ravel().tobytes(), int(label))
        for x0, y in splits().values()
        for image, label in zip(x0, y, strict=True)
    )
    assert sum(drawn.values()) == 1740
    assert not drawn - real  # no image is drawn more often than it exists


def test_splits_are_always_the_same():
    before = {name: batch for name, batch in splits().items()}
    splits.cache_clear()
    assert all(same(batch, before[name]) for name, batch in splits().items())
    content = {name: batch.x0 for name, batch in splits().items()}
    assert state_hash(content).startswith("fed0d2c5e749869e")  # another split would void every shipped number


@pytest.mark.parametrize("forget", ["0", "3", "9"])
def test_data_by_side(forget):
    task = DigitsClass(forget)
    one, other, both = (task.data(side) for side in ("forget", "retain", "both"))
    assert [task.count(side) for side in ("forget", "retain", "both")] == [len(x.y) for x in (one, other, both)]
    assert set(one.y.tolist()) == {int(forget)} and len(one.x0) == len(one.y) == 64
    assert other.y.bincount(minlength=10).tolist() == [0 if d == int(forget) else 64 for d in range(10)]
    assert (
        Counter(rows(one.x0)) + Counter(rows(other.x0)) == Counter(rows(both.x0)) == Counter(rows(splits()["train"].x0))
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("forget", ["0", "3", "9"])
def test_the_reference_is_held_out_and_as_large_as_the_retain_samples(protocol, forget):
    task = DigitsClass(forget, protocol=protocol)
    reference = torch.cat(list(task.reference()))
    assert reference.dtype == torch.uint8 and reference.shape[1:] == (3, 8, 8)
    assert len(reference) == sum(plan.group == "retain" for plan in task.plan()) == 9 * task.protocol.retain_images
    x0, y = splits()[task.protocol.reference]
    assert not Counter(rows(reference)) - Counter(rows(to_uint8(x0[y != int(forget)])))
    assert task.protocol.reference != "train"


def test_images_are_rounded_clamped_and_grey():
    x = torch.tensor([-1.0, -3.0, 0.0, 1.0, 2.0, -1 + 2 / 255, -1 + 2.9 / 255]).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    images = to_uint8(x)
    assert images[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 1, 1]
    assert images.shape == (7, 3, 8, 8) and images.dtype == torch.uint8
    assert (images == images[:, :1]).all()


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["forget", "retain", "all"])
def test_batches_of_one_side(which):
    task = DigitsClass("3")
    batches = list(task.batches(5, 32, which, 0))
    assert [tuple(batch.x0.shape) for batch in batches] == [(32, 1, 8, 8)] * 5
    digits = {int(y) for batch in batches for y in batch.y}
    assert digits == {"forget": {3}, "retain": set(range(10)) - {3}, "all": set(range(10))}[which]


def test_pairs_are_forget_and_retain():
    pairs = list(DigitsClass("7").paired_batches(4, 16))
    assert len(pairs) == 4
    for forget, retain in pairs:
        assert (forget.y == 7).all() and (retain.y != 7).all() and len(forget.y) == len(retain.y) == 16


def test_pairs_are_the_two_sides_own_batches():
    task = DigitsClass("3")
    for seed in (None, 4):
        sides = zip(task.batches(3, 16, "forget", seed), task.batches(3, 16, "retain", seed), strict=True)
        for pair, own in zip(task.paired_batches(3, 16, seed), sides, strict=True):
            assert same(pair[0], own[0]) and same(pair[1], own[1])


def test_pairs_are_not_a_split():
    with pytest.raises(UserError, match="paired_batches"):
        next(DigitsClass("3").batches(1, 4, "both"))


def test_images_keep_their_labels():
    known = {image: int(label) for image, label in zip(rows(splits()["train"].x0), splits()["train"].y, strict=True)}
    for batch in DigitsClass("3").batches(10, 64, "all"):
        assert [known[image] for image in rows(batch.x0)] == batch.y.tolist()


@pytest.mark.parametrize(("which", "size"), [("forget", 64), ("retain", 64), ("all", 96), ("forget", 250)])
def test_each_pass_shows_every_image_once_in_another_order(which, size):
    task = DigitsClass("3")
    data = task.data("both" if which == "all" else which).x0
    n = len(data)
    drawn = [image for batch in task.batches(-(-2 * n // size), size, which) for image in rows(batch.x0)]
    assert Counter(drawn[:n]) == Counter(drawn[n : 2 * n]) == Counter(rows(data))
    assert drawn[:n] != drawn[n : 2 * n]


def test_batches_repeat_with_their_seed_and_with_no_other():
    def first(task, **settings):
        return next(iter(task.batches(1, 64, "retain", **settings)))

    task = DigitsClass("3", seed=1)
    assert same(first(task), first(DigitsClass("3", seed=1)))
    assert same(first(task), first(DigitsClass("3", seed=9), seed=1))
    assert not same(first(task), first(DigitsClass("3", seed=2)))
    assert not same(first(task), first(task, seed=2))
    torch.manual_seed(5)
    assert same(first(task), first(task))


def test_a_limit_caps_steps_and_only_caps():
    task = DigitsClass("3", limit=2)
    assert len(list(task.paired_batches(5, 8))) == len(list(task.batches(5, 8, "forget"))) == 2
    assert len(list(task.conditions("forget", 5, 8))) == 2
    assert len(list(task.paired_batches(1, 8))) == 1
    assert (task.steps(100), task.steps(1), DigitsClass("3").steps(100)) == (2, 1, 100)


def test_progress_is_told_of_every_step():
    heard = []
    with shown_by(lambda what, done, total: heard.append((what, done, total))):
        list(DigitsClass("3").paired_batches(3, 8))
    assert heard == [("steps", done, 3) for done in range(4)]


# ---- conditions ----------------------------------------------------------------------------------------------------


def test_conditions_of_either_side():
    task = DigitsClass("3")
    assert all(y.tolist() == [3] * 8 for y in task.conditions("forget", 4, 8))
    kept = torch.cat(list(task.conditions("retain", 50, 90)))
    counts = kept.bincount(minlength=10)
    assert len(kept) == 4500 and counts[3] == 0
    assert all(abs(int(counts[d]) - 500) < 4 * 500**0.5 for d in range(10) if d != 3)


def test_conditions_repeat_with_the_unlearning_seed():
    def drawn(seed):
        return torch.stack(list(DigitsClass("3", seed=seed).conditions("retain", 3, 50)))

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("forget", DigitsClass.concepts)
def test_the_substitute_is_never_the_forgotten_digit(forget):
    task = DigitsClass(forget)
    y = torch.full((4,), int(forget))
    substitute = task.substitute(y)
    assert (substitute != int(forget)).all() and substitute.min() >= 0 and substitute.max() <= 9
    assert (y == int(forget)).all()


@pytest.mark.parametrize("wrong", ["three", "10", "-1", ""])
def test_what_is_no_digit_is_refused(wrong):
    with pytest.raises(UserError, match="unknown concept of digits-class"):
        DigitsClass(wrong)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UserError, match=r"unknown protocol of digits-class 'defualt': did you mean default\?"):
        DigitsClass("3", protocol="defualt")
