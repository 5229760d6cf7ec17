"""Originals, judges and real images of results share no picture, in both tasks of digits."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch

from unlearnbench import registry
from unlearnbench.hashing import digest
from unlearnbench.judges.coloured_digits import ColouredNeighbours
from unlearnbench.judges.digits import NeighbourJudge
from unlearnbench.tasks._digits.images import images
from unlearnbench.tasks.digits_class import SPLITS, DigitsClass, splits, to_uint8

PARTS = {"digits-class": lambda name: splits()[name].x0, "digits-text": lambda name: images(name).x0}


def hashes(x):
    """A hash of each picture's pixels."""
    return [digest(rows) for rows in to_bytes(x).flatten(1).tolist()]


def to_bytes(x):
    return to_uint8(x) if x.shape[1] == 1 else ((x + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("task", PARTS)
def test_no_picture_is_in_two_parts(task):
    found = {name: hashes(PARTS[task](name)) for name in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not set(found[one]) & set(found[other]), (one, other)
    every = 6 if task == "digits-text" else 1
    sizes = {"train": 640, "judge": 300, "calibration": 120, "selection": 180, "reference": 250, "floor": 250}
    assert {name: len(rows) for name, rows in found.items()} == {name: every * size for name, size in sizes.items()}


@pytest.mark.parametrize("name", SPLITS)
def test_every_digit_is_in_a_part_as_often(name):
    assert Counter(splits()[name].y.tolist()) == dict.fromkeys(range(10), SPLITS[name])


def test_each_user_of_the_data_has_the_part_that_is_named_for_it(monkeypatch):
    task = DigitsClass("3")
    assert set(hashes(task.data("both").x0)) == set(hashes(splits()["train"].x0))
    for name in ("reference", "floor"):
        shown = torch.cat(list(getattr(task, name)())).float() / 127.5 - 1
        assert set(hashes(shown[:, :1])) < set(hashes(splits()[name].x0))
    used = []
    monkeypatch.setattr(NeighbourJudge, "__init__", lambda self, known: used.append(known))
    monkeypatch.setattr(ColouredNeighbours, "__init__", lambda self, known: used.append(known))
    for name in PARTS:
        module = registry.load_task(name)
        made = module(module.default_forget, protocol="selection")
        clear(made)
        made.judge()
        clear(made)
    assert [hashes(known.x0) for known in used] == [hashes(splits()["selection"].x0)] * 2


def clear(task):
    """Forget judges that were loaded."""
    from unlearnbench.tasks import digits_class, digits_text

    (digits_class.named_judge if task.name == "digits-class" else digits_text._judge).cache_clear()


def test_judges_are_trained_and_calibrated_on_their_own_parts(monkeypatch, tmp_path):
    """`pretrain` is stopped as soon as it has said on what."""
    from unlearnbench.tasks import digits_class, digits_text

    used = []

    class Said(Exception):
        pass

    def note(train, calibration, seed):
        used.append((hashes(train.x0), hashes(calibration.x0)))
        raise Said

    monkeypatch.setattr(digits_class, "train_cnn", note)
    monkeypatch.setattr(digits_text, "train_judge", note)
    for name in PARTS:
        cls = registry.load_task(name)
        with pytest.raises(Said):
            cls(cls.default_forget).pretrain(tmp_path / name)
    assert used == [(hashes(splits()["judge"].x0), hashes(splits()["calibration"].x0))] * 2
