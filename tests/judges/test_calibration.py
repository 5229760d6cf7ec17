"""Thresholds from corrupted images: as low as they can be, wherever answers are still right."""

from __future__ import annotations

import pytest
import torch

from unlearnbench.judges.calibration import CALIBRATED_SHARE, REFUSED_SHARE, corrupted_thresholds
from unlearnbench.judges.corruptions import CORRUPTIONS

LABELS = torch.tensor([[0, 1], [1, 0]] * 200)


@pytest.fixture
def marked(monkeypatch):
    """Corruptions that write their number and severity into the first two pixels, so that a judge can tell."""

    def mark(number):
        def corrupt(x, strength, generator):
            x = x.clone()
            x[:, :, 0, 0], x[:, :, 0, 1] = number / 255, strength[:, None] * 5 / 255
            return x

        return corrupt

    for number, kind in enumerate(CORRUPTIONS, 1):
        monkeypatch.setitem(CORRUPTIONS, kind, mark(number))
    return torch.zeros(len(LABELS), 3, 4, 4, dtype=torch.uint8)


def scored_by(scores, right):
    """A judge of two domains whose scores in a cell run from scores(kind, severity) to 1 above; `right` says of how
    many its answers are right.
    """

    def scored(images):
        kind, severity = int(images[0, 0, 0, 0]), int(images[0, 0, 0, 1])
        every = LABELS.repeat(len(images) // len(LABELS), 1)
        share = torch.arange(len(images)) / len(images)
        wrong = torch.stack([share >= right(domain, kind, severity) for domain in range(2)], dim=1)
        high = torch.linspace(0, 1, len(images))
        return (every + wrong) % 2, torch.stack([high + scores(domain, kind, severity) for domain in range(2)], dim=1)

    return scored


def test_the_highest_needed_wins_in_each_domain(marked):
    scores = {(0, 3, 5): 4.0, (1, 12, 1): 7.0}
    found = corrupted_thresholds(scored_by(lambda *cell: scores.get(cell, 0.0), lambda *cell: 1.0), marked, LABELS)
    assert found.tolist() == pytest.approx([4 + 1 - CALIBRATED_SHARE, 7 + 1 - CALIBRATED_SHARE])


def test_what_is_no_longer_recognised_may_be_refused(marked):
    scores = scored_by(lambda domain, kind, severity: float(severity), lambda d, kind, severity: 1 - 0.049 * severity)
    found = corrupted_thresholds(scores, marked, LABELS)
    assert found.tolist() == pytest.approx([2 + 1 - CALIBRATED_SHARE] * 2), "90.2 % are right at severity 2, 85 % at 3"


def test_images_as_they_are_count_in_any_case_and_few_are_refused(marked):
    scores = scored_by(lambda domain, kind, severity: 0.0 if severity else 5.0, lambda *cell: 0.5)
    found = corrupted_thresholds(scores, marked, LABELS)
    assert found.tolist() == pytest.approx([5 + 1 - REFUSED_SHARE] * 2)


def test_more_draws_show_more_images(marked):
    seen = []

    def scored(images):
        seen.append(len(images))
        return LABELS.repeat(len(images) // len(LABELS), 1), torch.zeros(len(images), 2)

    corrupted_thresholds(scored, marked, LABELS, draws=3)
    assert seen == [400] + [1200] * 60
