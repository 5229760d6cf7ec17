"""The digits task: plan of images, protocols and hashes, fresh weights, and an original that really generates."""

import dataclasses
from collections import Counter
from itertools import islice

import pytest
import torch

from unlearnbench import Protocol, Sampler
from unlearnbench.hashing import seed_of, state_hash
from unlearnbench.judges.digits import CnnJudge, NeighbourJudge
from unlearnbench.task import ModelIdentity
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.verification.conformance import TinyDigits

PROTOCOLS = sorted(DigitsClass.protocols)


def rows(x):
    """Images as things that can be counted."""
    return [image.numpy().tobytes() for image in x]


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
    assert Counter(item.group for item in DigitsClass("3").plan()) == {"forget": 250, "retain": 225}


@pytest.mark.parametrize("seed", [0, 5])
def test_images_are_paired_whatever_is_forgotten_and_with_whatever_seed(seed):
    def seeds(forget, seed=0):
        plan = DigitsClass(forget, seed=seed).plan()
        return {digit: [item.seed for item in plan if item.concept == digit] for digit in DigitsClass.concepts}

    one, other = seeds("3"), seeds("8", seed)
    for digit in DigitsClass.concepts:
        few = min(len(one[digit]), len(other[digit]))
        assert few == 25 and one[digit][:few] == other[digit][:few]
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
    assert task.model_identity() == ModelIdentity(state_hash(one.state_dict()))
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
    model, labels = task.pretrained().eval(), torch.arange(10).repeat_interleave(10)
    seeds = [seed_of("a test of the original", i) for i in range(100)]
    with torch.inference_mode():
        chunks = [model.sample(labels[i : i + 50], seeds[i : i + 50]) for i in range(0, 100, 50)]
    x = torch.cat(chunks)
    images = task.to_uint8(x)
    right = task.judge()(images).label == labels
    assert right.float().mean() >= 0.97
    assert min(right[labels == digit].float().mean() for digit in range(10)) >= 0.9
    assert x.abs().max() <= 1 + 1e-5
    real = set(rows(to_uint8(splits()["train"].x0)))
    assert sum(image in real for image in rows(images)) < 2  # drawn, not learned by heart
    assert len(set(rows(images))) > 98
