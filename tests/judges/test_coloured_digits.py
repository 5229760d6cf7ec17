"""The judges of coloured digits: two domains, each with an abstention of its own, and what metrics make of them."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench import registry
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.judges import ABSTAINS, Verdict, judge_all, look
from unlearnbench.judges.coloured_digits import (
    COLOURS,
    DIGITS,
    DOMAINS,
    PALETTE,
    ColouredDigits,
    ColouredNeighbours,
    enlarged,
    every_colour,
    painted,
)
from unlearnbench.metric import Outcome
from unlearnbench.task import Plan
from unlearnbench.tasks._digits.images import digit_colours, images
from unlearnbench.tasks.digits_class import splits
from unlearnbench.tasks.digits_text import DigitsText

PROTOCOLS = ("default", "selection")
N = 600
RED, BLUE = DIGITS, DIGITS + 2


def the_judge(protocol):
    return DigitsText("seven", protocol=protocol).judge()


def to_uint8(x):
    return DigitsText.to_uint8(None, x)


@lru_cache
def held_out():
    """Every third of the held-out images, and their (digit, colour) labels."""
    shown = digit_colours("reference")[::3]
    return to_uint8(images("reference").x0[::3]), shown[:, 0], shown[:, 1] + DIGITS


def coloured(*rgb):
    """Held-out digits in one colour."""
    grey = enlarged(splits()["reference"].x0)
    return to_uint8(painted(grey, torch.tensor(rgb).expand(len(grey), 3)))


def noise(kind):
    gaussian = gaussian_noise(range(N), START, (3, 16, 16))
    if kind == "uniform":
        return to_uint8(torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    if kind == "coarse":
        return to_uint8(F.interpolate(gaussian[..., :4, :4], size=16, mode="bilinear"))
    return to_uint8(gaussian * (0.5 if kind == "faint gaussian" else 1.0))


# ---- what they name, and what they refuse --------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_held_out_digits_are_named_in_both_domains(protocol):
    shown, digit, colour = held_out()
    judge = the_judge(protocol)
    verdict = judge(shown)
    for label, range_ in ((digit, DOMAINS[0]), (colour, DOMAINS[1])):
        said = verdict.about(label, judge.domains)
        right, each = (0.97, 0.9) if protocol == "default" or range_.start else (0.9, 0.7)
        assert (said.closed == label).float().mean() >= right
        assert (said.label == label).float().mean() >= right - 0.01
        assert said.refused.float().mean() <= 0.02
        for one in range_:
            assert (said.closed == label)[label == one].float().mean() >= each, one


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "faint gaussian", "coarse"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_noise_is_no_digit_and_no_colour(protocol, kind):
    assert (the_judge(protocol)(noise(kind)).refused.float().mean(dim=0) > 0.98).all()


HUES = {"white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5), "orange": (1.0, 0.5, 0.0), "violet": (0.5, 0.0, 1.0)}


@pytest.mark.parametrize("hue", HUES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_digits_in_no_palette_colour_are_digits_of_no_colour(protocol, hue):
    verdict = the_judge(protocol)(coloured(*HUES[hue]))
    assert verdict.refused[:, 1].float().mean() > 0.98
    y = splits()["reference"].y
    digit = verdict.about(y, DOMAINS)
    assert (digit.closed == y).float().mean() > (0.95 if protocol == "default" else 0.9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_blobs_in_a_colour_are_no_digits(protocol):
    blob = (F.interpolate(gaussian_noise(range(N), START, (1, 3, 3)), size=16, mode="bilinear") * 1.5).clamp(-1, 1)
    verdict = the_judge(protocol)(to_uint8(painted(blob, torch.tensor(PALETTE["cyan"]).expand(N, 3))))
    assert verdict.refused[:, 0].float().mean() > 0.9
    cyan = torch.full((N,), DIGITS + list(PALETTE).index("cyan"))
    assert (verdict.about(cyan, DOMAINS).closed == cyan).float().mean() > 0.9


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_at_all_is_no_digit(protocol):
    black = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    assert the_judge(protocol)(black).refused[:, 0].all()


# ---- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_probabilities_are_of_each_domain_and_the_same_in_any_batch(protocol):
    judge, (shown, *_) = the_judge(protocol), held_out()
    verdict, some = judge(shown), judge(shown[::50])
    assert judge.domains == DOMAINS == (range(10), range(10, 16)) and judge.classes == DIGITS + COLOURS == 16
    assert verdict.probabilities.shape == (len(shown), 16) and verdict.probabilities.dtype == torch.float32
    assert verdict.refused.shape == (len(shown), 2) and verdict.refused.dtype == torch.bool
    for domain in DOMAINS:
        total = verdict.probabilities[:, domain.start : domain.stop].sum(dim=1)
        torch.testing.assert_close(total, torch.ones(len(shown)))
    torch.testing.assert_close(some.probabilities, verdict.probabilities[::50], rtol=0, atol=1e-5)
    assert torch.equal(some.refused, verdict.refused[::50])


def test_a_verdict_about_a_label_is_of_its_domain():
    row = torch.cat([torch.eye(10)[3] * 0.6 + 0.04, torch.eye(6)[1] * 0.4 + 0.1])
    verdict = Verdict(row.repeat(4, 1), torch.tensor([[True, False]] * 4))
    asked = torch.tensor([3, 7, 11, -1])
    about = verdict.about(asked, DOMAINS)
    assert about.closed.tolist()[:3] == [3, 3, 11]
    assert about.label.tolist()[:3] == [ABSTAINS, ABSTAINS, 11]
    assert about.refused.tolist() == [True, True, False, False]
    assert about.probabilities[0, 10:].sum() == about.probabilities[2, :10].sum() == about.probabilities[3].sum() == 0
    torch.testing.assert_close(about.probabilities[0, :10], row[:10])


def test_the_thresholds_are_calibrated_for_each_domain():
    judge = the_judge("default")
    refused = judge(to_uint8(every_colour(splits()["calibration"].x0))).refused.float().mean(dim=0)
    assert (refused <= 0.01).all()
    assert judge.thresholds.shape == (2,) and judge.threshold == judge.thresholds[0]


def test_the_two_judges_say_who_they_are():
    one, two = map(the_judge, PROTOCOLS)
    assert isinstance(one, ColouredDigits) and isinstance(two, ColouredNeighbours)
    assert [one.name, two.name] == [DigitsText.protocols[protocol].judge for protocol in PROTOCOLS]
    assert len({one.hash, two.hash}) == 2 and len(one.hash) == len(two.hash) == 64
    assert the_judge("default") is one


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_features_are_a_row_an_image(protocol):
    judge, (shown, *_) = the_judge(protocol), held_out()
    features = judge.features(shown)
    assert features.shape == (len(shown), 32 if protocol == "default" else 192) and features.isfinite().all()
    if protocol == "default":
        real = judge.features(to_uint8(every_colour(splits()["judge"].x0)[::5]))
        assert real.square().mean().item() == pytest.approx(1, abs=0.05)


# ---- outcomes ------------------------------------------------------------------------------------------------------


class Afraid(ColouredNeighbours):
    """Fails on images that show nothing at all."""

    def __init__(self):
        super().__init__(splits()["selection"])

    def __call__(self, images):
        if (images.flatten(1).amax(dim=1) == 0).any():
            raise RuntimeError("afraid of the dark")
        return super().__call__(images)


def outcome(judge, shown, plan):
    seen = look(judge, shown)
    task = DigitsText("seven", protocol="smoke")
    return Outcome.of(shown, plan, seen, seen, seen, task=task, model=None, original=None, cost={})


def measured(made, *names):
    return [registry.load_metrics()[name].measure(made) for name in names]


def pictures(*pairs_):
    """A real image for each (digit, colour)."""
    shown, digit, colour = held_out()
    right = [the_judge(protocol)(shown) for protocol in PROTOCOLS]
    sure = torch.stack([~verdict.refused.any(dim=1) for verdict in right]).all(dim=0)
    for verdict in right:
        sure &= (verdict.about(digit, DOMAINS).closed == digit) & (verdict.about(colour, DOMAINS).closed == colour)
    rows = [int(((digit == d) & (colour == c) & sure).nonzero()[0]) for d, c in pairs_]
    return shown[rows]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ra_needs_both_labels_and_each_half_its_own(protocol):
    shown = pictures((3, RED), (3, BLUE), (5, RED), (5, BLUE))
    plan = [Plan("retain", "three", 3, i, "a red three", RED) for i in range(4)]
    made = outcome(the_judge(protocol), shown, plan)
    assert made.retain.asked.tolist() == [3] * 4 and made.retain.other.tolist() == [RED] * 4
    assert made.retain.verdict.label.tolist() == [3, 3, 5, 5]
    assert made.retain.besides.label.tolist() == [RED, BLUE, RED, BLUE]
    ra, ira, cra = measured(made, "ra", "ira", "cra")
    assert (ra.value, ira.value, cra.value) == (0.25, 0.5, 0.5)
    assert [score.per_image.tolist() for score in (ra, ira, cra)] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]]


def test_a_colour_that_is_asked_for_is_judged_in_its_own_domain():
    plan = [Plan("forget", "red", RED, 0, "something red"), Plan("retain", "blue", BLUE, 1, "a blue five", 5)]
    made = outcome(the_judge("default"), pictures((5, BLUE), (5, BLUE)), plan)
    assert made.forget.verdict.label.tolist() == [BLUE] and made.forget.other.tolist() == [-1]
    assert made.retain.verdict.label.tolist() == [BLUE] and made.retain.besides.label.tolist() == [5]
    assert [score.value for score in measured(made, "ua", "ra")] == [1, 1]


def test_an_error_of_the_judge_is_missing_in_both_domains():
    shown = pictures((3, RED), (3, RED), (3, RED))
    shown[1] = 0
    afraid = Afraid()
    verdict, error = judge_all(afraid, shown)
    assert error == "RuntimeError: afraid of the dark"
    assert verdict.missing.tolist() == [False, True, False] and verdict.refused.shape == (3, 2)
    for group, label, other in (("retain", 3, RED), ("retain", RED, 3), ("forget", 7, RED)):
        made = outcome(afraid, shown, [Plan(group, "x", label, i, "", other) for i in range(3)])
        side = made.side(group)
        assert side.verdict.missing.tolist() == side.besides.missing.tolist() == [False, True, False]
        names = ("ra", "ira", "cra") if group == "retain" else ("ua", "coherence")
        assert [(score.value, score.n, score.missing) for score in measured(made, *names)] == [(1, 3, 1)] * len(names)
