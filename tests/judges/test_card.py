"""A judge's card: what corruptions and non-images are, and that a judge which refuses too much is named."""

from __future__ import annotations

import math

import pytest
import torch

from tests.studies import judge_cards as judge_cards_page
from tests.support import tiny_cifar
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.card import judge_cards
from unlearnbench.judges.corruptions import CORRUPTIONS, NON_IMAGES, corrupt_some, corrupted, non_images
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.tasks.digits_class import DigitsClass, named_judge, splits, to_uint8

REAL, LABELS = DigitsClass("3").labelled_images()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Blunt(Judge):
    """Names the right label from the image's brightness, and refuses below a contrast and whatever is asked for."""

    name, version, classes, threshold, hash = "blunt", "1", 10, 0.0, "0"

    def __init__(self, least_contrast=0, noise_too=True):
        self.least, self.noise_too = least_contrast, noise_too
        self.model = named_judge("digits-cnn", DigitsClass("3").folder)

    def __call__(self, images):
        x = images.float()
        verdict = self.model(images)
        dull = x.amax(dim=(1, 2, 3)) - x.amin(dim=(1, 2, 3)) < self.least
        return Verdict(verdict.probabilities, dull | (verdict.refused if self.noise_too else torch.zeros_like(dull)))

    def features(self, images):
        return images.flatten(1).float()


# ---- corruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_grows_with_severity_and_keeps_shape_and_greyness(kind):
    images = REAL[::10]
    away = [
        (corrupted(images, kind, severity, generator()).float() - images).abs().mean().item() for severity in range(6)
    ]
    assert away[0] < 3, "strength 0 is the image itself, to a grey level or two"
    assert away[1] < away[3] < away[5]
    shown = corrupted(images, kind, 3, generator())
    assert shown.shape == images.shape and shown.dtype == torch.uint8
    assert bool((shown == shown[:, :1]).all()), "a grey image stays grey"
    assert torch.equal(shown, corrupted(images, kind, 3, generator()))


def test_corruptions_by_hand():
    image = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    halved = corrupted(image, "contrast", 5, generator())[0, 0].flatten().tolist()
    assert halved == [round(127.5 + 0.25 * (value - 127.5)) for value in (0, 100, 200, 255)]
    assert corrupted(image, "darker", 5, generator())[0, 0].flatten().tolist() == [0, 25, 50, 64]
    assert corrupted(image, "brighter", 5, generator())[0, 0].flatten().tolist() == [153, 193, 233, 255]
    thick = corrupted(image, "thicker", 5, generator())[0, 0].flatten().tolist()
    assert thick == [204, 224, 244, 255], "0.8 of the way to the maximum, 255"


def centre(images):
    """Row and column of the centre of light of the first image."""
    light = images[0, 0].double()
    places = torch.arange(len(light)).double()
    return [(light.sum(dim=d) @ places / light.sum()).item() for d in (1, 0)]


def test_moved_images_are_those_of_a_known_transform():
    dot = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    dot[:, :, 15:18, 23:26] = 255  # centred 8 pixels to the right of the middle, (16, 16)

    assert centre(corrupted(dot, "larger", 5, generator())) == pytest.approx([16, 16 + 8 * 1.3], abs=0.25)
    assert centre(corrupted(dot, "smaller", 5, generator())) == pytest.approx([16, 16 + 8 * 0.7], abs=0.25)
    row, column = centre(corrupted(dot, "turned", 5, generator()))
    assert abs(row - 16) == pytest.approx(8 * math.sin(0.4), abs=0.25)
    assert column == pytest.approx(16 + 8 * math.cos(0.4), abs=0.25)
    row, column = centre(corrupted(dot, "shift", 5, generator()))
    assert math.hypot(row - 16, column - 24) == pytest.approx(0.15 * 33, abs=0.25)


def test_blur_keeps_the_mean_and_halves_a_step_in_the_middle():
    step = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    step[..., 16:] = 200
    blurred = corrupted(step, "blur", 5, generator())[0, 0, 16].float()
    assert blurred[15:17].mean().item() == pytest.approx(100, abs=2)
    assert bool((blurred.diff() >= 0).all()) and blurred[0] == 0 and blurred[-1] == 200


def test_only_a_share_is_corrupted_and_left_out_kinds_never_are(monkeypatch):
    used = []
    for kind, change in CORRUPTIONS.items():
        monkeypatch.setitem(
            CORRUPTIONS, kind, lambda x, s, g, kind=kind, change=change: used.append(kind) or change(x, s, g)
        )
    x = REAL.float() / 255
    done = corrupt_some(x, 0.5, generator(), frozenset({"jpeg"}))
    changed = (done != x).flatten(1).any(dim=1).float().mean().item()
    assert 0.4 < changed < 0.6 and "jpeg" not in used and len(set(used)) == len(CORRUPTIONS) - 1
    assert done.min() >= 0 and done.max() <= 1


@pytest.mark.parametrize("kind", NON_IMAGES)
def test_non_images_do_not_depend_on_the_order_of_the_judge_and_stay_grey(kind):
    made = non_images(REAL[:20], kind, generator())
    assert made.shape == (20, 3, 8, 8) and bool((made == made[:, :1]).all())
    assert torch.equal(made, non_images(REAL[:20], kind, generator()))
    assert not torch.equal(made, non_images(REAL[:20], kind, generator(1)))


# ---- cards ---------------------------------------------------------------------------------------------------------


def test_a_judge_that_refuses_dull_images_fails_and_one_that_refuses_no_noise_too():
    (dull,) = judge_cards(Blunt(least_contrast=200), REAL[::5], LABELS[::5])
    failed = {row.kind for row in dull.failed}
    assert {"contrast", "darker"} <= failed and not failed & set(NON_IMAGES)
    (open_,) = judge_cards(Blunt(noise_too=False), REAL[::5], LABELS[::5])
    assert {row.kind for row in open_.failed} == {"uniform noise", "Gaussian noise", "black and white noise"}
    clean = open_.corrupted[0]
    assert (clean.kind, clean.severity, clean.refused) == ("none", 0, 0.0) and clean.recognised > 0.95
    assert open_.images == 100 and len(open_.corrupted) == 61 and len(open_.non_images) == 9


@pytest.mark.parametrize("protocol", ["default", "selection"])
@pytest.mark.parametrize(("name", "concept"), [("digits-class", "3"), ("digits-text", "seven")])
def test_shipped_judges_see_what_people_see(name, concept, protocol):
    """At half the contrast a three is a three: what is named right is hardly refused, and noise nearly always."""
    task = registry.load_task(name)(concept, protocol=protocol)
    images, labels = (column[::4] for column in task.labelled_images())
    for card in judge_cards(task.judge(), images, labels, severities=(1, 3, 5)):
        assert card.failed == []
        assert len(card.corrupted) == 1 + 3 * len(CORRUPTIONS)
        recognised = {(row.kind, row.severity): row.recognised for row in card.corrupted}
        assert recognised["none", 0] >= (0.97 if protocol == "default" else 0.92)
        for kind in ("contrast", "darker", "brighter"):
            assert recognised[kind, 3] >= recognised["none", 0] - 0.03


@pytest.mark.parametrize("protocol", judge_cards_page.PROTOCOLS)
@pytest.mark.parametrize("name", judge_cards_page.TASKS)
def test_the_page_of_cards_is_of_the_shipped_judges(name, protocol):
    page = judge_cards_page.PAGE.read_text(encoding="utf-8")
    cls = registry.load_task(name)
    judge = cls(cls.default_forget, protocol=protocol).judge()
    for domain in judge_cards_page.DOMAINS[name]:
        assert f"### {judge_cards_page.title(judge)}: {domain}\n" in page
    assert judge_cards_page.parts() in page and "✗ |" not in page


def test_a_judge_of_two_domains_has_a_card_for_each():
    task = registry.load_task("digits-text")("seven")
    images, labels = task.labelled_images()
    assert labels.shape == (500, 2) and bool((labels[:, 1] >= 10).all())
    assert labels[:, 1].bincount(minlength=16)[10:].min() > 80, "every colour is there"
    verdict = task.judge()(images)
    assert (verdict.probabilities[:, :10].argmax(dim=1) == labels[:, 0]).float().mean() > 0.95
    assert (verdict.probabilities[:, 10:].argmax(dim=1) + 10 == labels[:, 1]).float().mean() > 0.99


def test_labelled_images_are_held_out():
    seen = {tuple(row) for name in ("train", "judge", "calibration", "selection") for row in pixels_of(name)}
    assert not any(tuple(row) in seen for row in REAL.flatten(1).tolist())


def pixels_of(split):
    return to_uint8(splits()[split].x0).flatten(1).tolist()


def test_the_command_prints_a_card_and_fails_where_a_requirement_is_missed(cli, monkeypatch):
    monkeypatch.setattr(DigitsClass, "judge", lambda self: Blunt(least_contrast=200))
    monkeypatch.setattr(DigitsClass, "labelled_images", lambda self: (REAL[::10], LABELS[::10]))
    said = cli("judges", "--protocol", "default")
    assert said.code == 1
    assert "blunt: 50 real images" in said.out and "✗" in said.out and "requirements are missed" in said.out
    for kind in (*CORRUPTIONS, *NON_IMAGES):
        assert kind in said.out


def test_cards_of_cifar_are_of_test_images_that_set_no_threshold(cli, tmp_path):
    data = tiny_cifar.write(tmp_path / "data")
    task = Cifar10Class("cat", protocol="smoke", data=data)
    images, labels = task.labelled_images()
    calibration = {tuple(row) for row in task.images["test"].x[::2].reshape(-1, 3072).tolist()}
    assert len(images) and not any(tuple(row) in calibration for row in images.flatten(1).tolist())
    said = cli("judges", "--task", "cifar10-class", "--protocol", "smoke", "--data", str(data))
    assert said.code in (0, 1) and f"cifar10-neighbours: {len(labels)} real images" in said.out
    for kind in (*CORRUPTIONS, *NON_IMAGES):
        assert kind in said.out


def test_a_task_without_labelled_images_says_so(cli):
    said = cli("judges", "--task", "sd-nudity")
    assert said.code == 2 and "sd-nudity has no real images with labels" in said.err


def test_a_judge_that_fails_is_no_card():
    class Broken(Blunt):
        def __call__(self, images):
            raise ValueError("no such layer")

    with pytest.raises(UserError, match=r"blunt failed: .*no such layer"):
        judge_cards(Broken(), REAL[:20], LABELS[:20])
