"""The digits task: splits, batches, conditions, plan of images, protocols, and an original that really generates."""

import dataclasses
from collections import Counter
from itertools import islice

import pytest
import torch
from sklearn.datasets import load_digits

from unlearnbench import Protocol, Sampler
from unlearnbench.check import TinyDigits
from unlearnbench.errors import UserError
from unlearnbench.hashing import seed_of, state_hash
from unlearnbench.judges.digits import CnnJudge, NeighbourJudge
from unlearnbench.progress import shown_by
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8

PROTOCOLS = sorted(DigitsClass.protocols)


def rows(x):
    """Images as things that can be counted."""
    return [image.numpy().tobytes() for image in x]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "each"), [("train", 100), ("calibration", 24), ("reference", 50)])
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
    assert state_hash(content).startswith("SPLITS")


@pytest.mark.parametrize("forget", ["0", "3", "9"])
def test_data_by_side(forget):
    task = DigitsClass(forget)
    one, other, both = (task.data(side) for side in ("forget", "retain", "both"))
    assert set(one.y.tolist()) == {int(forget)} and len(one.x0) == len(one.y) == 100
    assert other.y.bincount(minlength=10).tolist() == [0 if d == int(forget) else 100 for d in range(10)]
    assert (
        Counter(rows(one.x0)) + Counter(rows(other.x0)) == Counter(rows(both.x0)) == Counter(rows(splits()["train"].x0))
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("forget", ["0", "3", "9"])
def test_the_reference_is_held_out_and_as_large_as_the_retain_samples(protocol, forget):
    task = DigitsClass(forget, protocol=protocol)
    reference = task.reference()
    assert reference.dtype == torch.uint8 and reference.shape[1:] == (3, 8, 8)
    assert len(reference) == sum(plan.group == "retain" for plan in task.plan()) == 9 * task.protocol.retain_images
    x0, y = splits()[task.protocol.reference]
    assert Counter(rows(reference)) == Counter(rows(to_uint8(x0[y != int(forget)])))
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
    pairs = list(DigitsClass("7").batches(4, 16))
    assert len(pairs) == 4
    for forget, retain in pairs:
        assert (forget.y == 7).all() and (retain.y != 7).all() and len(forget.y) == len(retain.y) == 16


def test_pairs_are_the_two_sides_own_batches():
    task = DigitsClass("3")
    sides = zip(task.batches(3, 16, "forget"), task.batches(3, 16, "retain"), strict=True)
    assert all(
        same(one[0], two[0]) and same(one[1], two[1]) for one, two in zip(task.batches(3, 16), sides, strict=True)
    )


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
    assert len(list(task.batches(5, 8))) == len(list(task.batches(5, 8, "forget"))) == 2
    assert len(list(task.conditions("forget", 5, 8))) == 2
    assert len(list(task.batches(1, 8))) == 1
    assert (task.steps(100), task.steps(1), DigitsClass("3").steps(100)) == (2, 1, 100)


def test_progress_is_told_of_every_step():
    heard = []
    with shown_by(lambda what, done, total: heard.append((what, done, total))):
        list(DigitsClass("3").batches(3, 8))
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


# ---- the plan and the protocol -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("forget", ["0", "3"])
def test_the_plan_has_the_protocols_counts_in_order(protocol, forget):
    task = DigitsClass(forget, protocol=protocol)
    plan, counts = task.plan(), task.protocol
    kept = [digit for digit in DigitsClass.concepts if digit != forget]
    expected = [("forget", forget)] * counts.forget_images
    expected += [("retain", digit) for digit in kept for _ in range(counts.retain_images)]
    assert [(item.group, item.concept) for item in plan] == expected
    assert all(item.label == int(item.concept) for item in plan)
    assert len({item.seed for item in plan}) == len(plan)
    assert all(0 <= item.seed < 2**64 for item in plan)


def test_the_default_protocol_draws_whole_chunks_of_the_stated_images():
    assert Counter(item.group for item in DigitsClass("3").plan()) == {"forget": 250, "retain": 450}


@pytest.mark.parametrize("seed", [0, 5])
def test_images_are_paired_whatever_is_forgotten_and_with_whatever_seed(seed):
    def seeds(forget, seed=0):
        plan = DigitsClass(forget, seed=seed).plan()
        return {digit: [item.seed for item in plan if item.concept == digit] for digit in DigitsClass.concepts}

    one, other = seeds("3"), seeds("8", seed)
    for digit in DigitsClass.concepts:
        few = min(len(one[digit]), len(other[digit]))
        assert few == 50 and one[digit][:few] == other[digit][:few]
    assert one["4"][17] == seed_of("sampling", 0, "4", 17)


def test_the_two_protocols_share_no_noise():
    one, other = ({item.seed for item in DigitsClass("3", protocol=name).plan()} for name in PROTOCOLS)
    assert not one & other


CHANGES = {
    "name": "other",
    "sampler": Sampler(steps=20, eta=0.0, guidance=1.5),
    "judge": "other",
    "reference": "other",
    "forget_images": 7,
    "retain_images": 7,
    "chunk": 7,
    "sampling_seed": 7,
    "k": 7,
}


def test_the_protocols_hash_is_over_every_field():
    base = DigitsClass.protocols["default"]
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Protocol)}
    changed = [dataclasses.replace(base, **{field: value}) for field, value in CHANGES.items()]
    samplers = [Sampler(21, 0.0, 1.25), Sampler(20, 0.5, 1.25), Sampler(20, 0.0, 1.0)]
    changed += [dataclasses.replace(base, sampler=sampler) for sampler in samplers]
    hashes = {protocol.hash for protocol in [base, *changed]}
    assert len(hashes) == 1 + len(changed)
    assert dataclasses.replace(base).hash == base.hash


def test_selection_is_apart_from_the_report():
    report, selection = (DigitsClass("3", protocol=name) for name in ("default", "selection"))
    assert isinstance(report.judge(), CnnJudge) and isinstance(selection.judge(), NeighbourJudge)
    assert report.protocol.reference != selection.protocol.reference
    assert report.protocol.sampling_seed != selection.protocol.sampling_seed


# ---- the model -----------------------------------------------------------------------------------------------------


def test_fresh_weights_depend_on_the_seed_and_leave_torchs_generator():
    task = DigitsClass("3")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (state_hash(task.architecture(seed).state_dict()) for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_the_original_is_the_manifests_and_a_fresh_copy_each_time():
    task = DigitsClass("3")
    one, two = task.pretrained(), task.pretrained()
    assert task.pretrained_identity() == (state_hash(one.state_dict()), 0)
    assert one.sampler == task.protocol.sampler
    assert not {value.data_ptr() for value in one.parameters()} & {value.data_ptr() for value in two.parameters()}


def test_training_sees_the_side_it_is_told(monkeypatch):
    for which, expected in (("both", {*range(10)}), ("retain", {*range(10)} - {3})):
        task, seen = TinyDigits("3", limit=8), []
        stream = task._stream
        monkeypatch.setattr(
            task, "_stream", lambda *words, stream=stream, seen=seen: (seen.append(b) or b for b in stream(*words))
        )
        model = task.train(0, which)
        assert {int(y) for batch in islice(seen, 8) for y in batch.y} == expected
        assert state_hash(model.state_dict()) != state_hash(task.architecture(0).state_dict())


def test_the_original_generates_what_it_is_asked_for():
    task = DigitsClass("3")
    model, labels = task.pretrained().eval(), torch.arange(10).repeat_interleave(100)
    seeds = [seed_of("a test of the original", i) for i in range(1000)]
    with torch.inference_mode():
        chunks = [model.sample(labels[i : i + 50], seeds[i : i + 50]) for i in range(0, 1000, 50)]
    x = torch.cat(chunks)
    images = task.to_uint8(x)
    right = task.judge()(images).label == labels
    assert right.float().mean() >= 0.97
    assert min(right[labels == digit].float().mean() for digit in range(10)) >= 0.9
    assert x.abs().max() <= 1 + 1e-5
    real = set(rows(to_uint8(splits()["train"].x0)))
    assert sum(image in real for image in rows(images)) < 10  # drawn, not learned by heart
    assert len(set(rows(images))) > 990
