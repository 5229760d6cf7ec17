"""The shipped judges on digits and noise they never saw, what a verdict means, and judges that fail."""

import math

import numpy as np
import pytest
import torch
import torch_fidelity
from scipy.ndimage import affine_transform, maximum_filter, minimum_filter

from tests.support.tiny_outcome import outcome
from unlearnbench import registry
from unlearnbench.diffusion.model import Batch
from unlearnbench.errors import UserError
from unlearnbench.judges import ABSTAINS, Judge, Verdict, judge_all
from unlearnbench.judges.digits import CnnJudge, NeighbourJudge, Shapes, grey, stretched
from unlearnbench.judges.torch_fidelity import LAYER, ImageDataset, extract, register
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.testing import toy

PROTOCOLS = ("default", "selection")
RIGHT = {"default": 0.97, "selection": 0.92}
"""Share of held-out digits that each judge must name."""
SPLIT = {"default": "calibration", "selection": "selection"}
"""Where each judge's threshold comes from."""


def the_judge(protocol):
    return DigitsClass("3", protocol=protocol).judge()


def held_out():
    x0, y = splits()["reference"]
    return to_uint8(x0), y


def noise(kind, n=1000):
    generator = torch.Generator().manual_seed(1)
    if kind == "binary":
        x = torch.randint(0, 2, (n, 1, 8, 8), generator=generator) * 2.0 - 1
    elif kind == "uniform":
        x = torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1
    else:
        x = torch.randn(n, 1, 8, 8, generator=generator) * (1.0 if kind == "gaussian" else 0.5)
    return to_uint8(x)


# ---- the shipped judges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_held_out_digits_are_named_and_not_refused(protocol):
    images, y = held_out()
    verdict = the_judge(protocol)(images)
    assert len(y) == 250
    assert (verdict.closed == y).float().mean() >= RIGHT[protocol]
    assert verdict.refused.float().mean() <= 0.02
    assert (verdict.label == y).float().mean() >= RIGHT[protocol] - 0.02
    for digit in range(10):
        assert (verdict.closed == y)[y == digit].float().mean() >= (0.9 if protocol == "default" else 0.75)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "faint gaussian", "binary"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_noise_is_refused(protocol, kind):
    assert the_judge(protocol)(noise(kind)).refused.float().mean() > 0.98


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_threshold_decides_and_keeps_the_images_that_it_comes_from(protocol, monkeypatch):
    judge = the_judge(protocol)
    images = to_uint8(splits()[SPLIT[protocol]].x0)
    assert judge(images).refused.float().mean() <= 0.01
    monkeypatch.setattr(judge, "threshold", float("inf"))
    assert not judge(noise("uniform")).refused.any()
    monkeypatch.setattr(judge, "threshold", float("-inf"))
    assert judge(images).refused.all()


def test_weights_of_another_version_are_named_with_the_remedy():
    state = {**the_judge("default").net.state_dict(), "threshold": torch.tensor(0.0), "scale": torch.tensor(1.0)}
    state["body.0.weight"] = state["body.0.weight"][:, :1]  # version 1 did not see the stretched copy
    with pytest.raises(UserError, match=r"no weights of digits-cnn, version 2: .*`unlearnbench pretrain`"):
        CnnJudge(state, "0" * 64)


def test_stretched_images_have_lost_contrast_and_brightness_but_no_hue():
    x = torch.tensor([-1.0, 0.0, 1.0, -0.5]).view(1, 1, 2, 2)
    for changed in (x, 0.25 * x, 0.3 * x - 0.6):
        torch.testing.assert_close(stretched(changed), x)
    coloured = torch.stack([x[0, 0], x[0, 0] * 0.5 - 0.5, torch.full((2, 2), -1.0)])[None]
    torch.testing.assert_close(stretched(coloured), coloured)
    assert stretched(0.001 * x).amax() < -0.97, "what is all but plain stays so"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_verdicts_are_probabilities_the_same_each_time_and_in_any_batch(protocol):
    judge, (images, _) = the_judge(protocol), held_out()
    one, two = judge(images), judge(images)
    assert torch.equal(one.probabilities, two.probabilities) and torch.equal(one.refused, two.refused)
    assert one.probabilities.shape == (250, judge.classes) and one.probabilities.dtype == torch.float32
    assert one.refused.shape == (250,) and one.refused.dtype == torch.bool
    assert (one.probabilities >= 0).all()
    torch.testing.assert_close(one.probabilities.sum(dim=1), torch.ones(250))
    few = judge(images[::100])
    torch.testing.assert_close(few.probabilities, one.probabilities[::100], rtol=0, atol=1e-5)
    assert torch.equal(few.refused, one.refused[::100])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_judge_says_who_it_is_and_is_loaded_once(protocol):
    judge = the_judge(protocol)
    assert judge.name == DigitsClass.protocols[protocol].judge
    assert judge.version and len(judge.hash) == 64 and judge.classes == 10
    assert the_judge(protocol) is judge


def test_the_two_judges_are_not_the_same():
    assert len({the_judge(protocol).name for protocol in PROTOCOLS}) == 2
    assert len({the_judge(protocol).hash for protocol in PROTOCOLS}) == 2


def test_neighbours_depend_on_their_data():
    chosen = splits()["selection"]
    again, other = NeighbourJudge(chosen), NeighbourJudge(splits()["calibration"])
    assert again.hash == the_judge("selection").hash != other.hash
    assert again.threshold == the_judge("selection").threshold != other.threshold


def copies(image):
    """A digit (8, 8), moved by half a pixel eight ways, turned, scaled, with thicker and thinner strokes, by SciPy."""
    middle = np.array([3.5, 3.5])

    def changed(angle=0.0, scale=1.0, moved=(0.0, 0.0)):
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
        return affine_transform(image, turn, middle - turn @ middle + moved, order=1, mode="nearest")

    moved = [changed(moved=(dy, dx)) for dy in (-0.5, 0, 0.5) for dx in (-0.5, 0, 0.5)]
    turned, scaled = [changed(angle=angle) for angle in (0.2, -0.2)], [changed(scale=scale) for scale in (0.85, 1.15)]
    thick = image + 0.4 * (maximum_filter(image, 3, mode="nearest") - image)
    return [*moved, *turned, *scaled, thick, image + 0.3 * (minimum_filter(image, 3, mode="nearest") - image)]


def full_range(image):
    return 2 * (image - image.min()) / (image.max() - image.min()) - 1


def test_neighbours_by_hand():
    x0, y = splits()["selection"]
    known = np.stack([[full_range(each) for each in copies(image)] for image in x0[:, 0].double().numpy()])
    images = held_out()[0][::5]
    shown = np.stack([full_range(image) for image in grey(images)[:, 0].double().numpy()])
    distance = np.linalg.norm((shown[:, None, None] - known[None]).reshape(50, 180, 15, 64), axis=3).min(axis=2)
    near = distance.argsort(axis=1)[:, :3]
    nearest, votes = np.take_along_axis(distance, near, axis=1), np.zeros((50, 10))
    for row in range(50):
        np.add.at(votes[row], y.numpy()[near[row]], 1 / nearest[row])
    verdict = the_judge("selection")(images)
    np.testing.assert_allclose(verdict.probabilities, votes / votes.sum(axis=1, keepdims=True), atol=1e-4)
    assert verdict.refused.tolist() == (nearest.mean(axis=1) > the_judge("selection").threshold).tolist()


def test_a_digit_does_not_vote_on_itself_where_it_is_left_out():
    x0, y = splits()["selection"]
    shapes, own = Shapes(Batch(x0, y)), torch.arange(20)
    with_self, without = shapes.votes(x0[:20]), shapes.votes(x0[:20], own)
    assert (with_self[0].argmax(dim=1) == y[:20]).all() and with_self[0].amax(dim=1).min() > 0.99
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[7] = False
    other = Shapes(Batch(x0[rest], y[rest])).votes(x0[7:8])
    torch.testing.assert_close((without[0][7], without[1][7]), (other[0][0], other[1][0]))


def test_grey_undoes_the_making_of_images():
    x0, _ = splits()["train"]
    torch.testing.assert_close(grey(to_uint8(x0)), x0, rtol=0, atol=1 / 254)


def test_features_have_unit_mean_square_over_real_digits():
    features = the_judge("default").features(to_uint8(splits()["judge"].x0))
    assert features.shape == (300, 32) and features.square().mean().item() == pytest.approx(1, abs=0.02)


# ---- verdicts ------------------------------------------------------------------------------------------------------


def test_refused_abstains_and_missing_is_nan():
    probabilities = torch.tensor([[0.2, 0.8], [0.9, 0.1], [torch.nan, torch.nan]])
    verdict = Verdict(probabilities, torch.tensor([False, True, False]))
    assert verdict.label[:2].tolist() == [1, ABSTAINS] and verdict.closed[:2].tolist() == [1, 0]
    assert verdict.missing.tolist() == [False, False, True]
    assert ABSTAINS not in range(10)


class Brittle(Judge):
    """Sees the first pixel's value as the class, and raises on values it was told to fear."""

    name, version, classes, threshold, hash = "brittle", "1", 10, 0.0, "b" * 64

    def __init__(self, *fears):
        self.fears, self.calls = set(fears), []

    def __call__(self, images):
        pixels = images[:, 0, 0, 0].long()
        self.calls.append(len(images))
        if bad := self.fears & set(pixels.tolist()):
            raise RuntimeError(f"afraid of {min(bad)}")
        return Verdict(torch.eye(10)[pixels % 10], pixels >= 100)

    def features(self, images):
        return images.flatten(1).float()


def numbered(n):
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def test_all_images_are_judged_in_batches_and_in_order():
    judge = Brittle()
    verdict, error = judge_all(judge, numbered(110), batch=50)
    assert error is None and judge.calls == [50, 50, 10]
    assert verdict.closed.tolist() == [i % 10 for i in range(110)]
    assert verdict.label.tolist() == [i % 10 if i < 100 else ABSTAINS for i in range(110)]
    assert not verdict.missing.any()


def test_only_the_images_that_a_judge_fails_on_are_missing():
    judge = Brittle(7, 60, 61)
    verdict, error = judge_all(judge, numbered(110), batch=50)
    assert verdict.missing.nonzero().flatten().tolist() == [7, 60, 61]
    assert error == "RuntimeError: afraid of 7"
    kept = [i for i in range(110) if i not in (7, 60, 61)]
    assert verdict.closed[kept].tolist() == [i % 10 for i in kept]
    assert judge.calls == [50, *[1] * 50, 50, *[1] * 50, 10]


def test_images_that_fail_are_no_success_in_any_share():
    verdict, _ = judge_all(Brittle(*range(0, 50, 2)), numbered(50))
    made = outcome([toy.shows(3)] * 50, verdict=verdict)
    for name in ("ua", "ua_closed", "coherence", "p_forget", "entropy"):
        score = registry.load_metrics()[name].measure(made)
        assert (score.n, score.missing) == (50, 25)


def test_a_judge_that_always_fails_leaves_everything_missing():
    verdict, error = judge_all(Brittle(*range(30)), numbered(30), batch=8)
    assert verdict.missing.all() and verdict.probabilities.shape == (30, 10)
    assert not verdict.refused.any()
    assert error == "RuntimeError: afraid of 0"


def test_no_images_have_no_verdict_and_no_error():
    verdict, error = judge_all(Brittle(), numbered(0))
    assert verdict.probabilities.shape == (0, 10) and verdict.refused.shape == (0,) and error is None


# ---- torch-fidelity ------------------------------------------------------------------------------------------------


def test_features_come_through_torch_fidelity_in_order():
    judge, (images, _) = the_judge("default"), held_out()
    torch.testing.assert_close(extract(judge, images), judge.features(images), rtol=0, atol=1e-5)
    assert register(judge) == register(judge) == f"digits-cnn-{judge.hash[:12]}"


def test_torch_fidelity_itself_gives_the_metrics_values():
    judge = the_judge("default")
    x0, y = splits()["train"]
    generated = to_uint8(x0[y < 5] + 0.25 * torch.randn(320, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    generated, real = generated[:225], held_out()[0][25:]
    expected = torch_fidelity.calculate_metrics(
        input1=ImageDataset(generated),
        input2=ImageDataset(real),
        feature_extractor=register(judge),
        **{f"feature_layer_{metric}": LAYER for metric in ("fid", "kid", "prc")},
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=225,
        cuda=False,
        cache=False,
        verbose=False,
    )
    made = outcome(features=extract(judge, generated), reference=extract(judge, real))
    found = {name: registry.load_metrics()[name].measure(made).value for name in ("fid", "kid", "precision", "recall")}
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["precision"] == pytest.approx(expected["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-6)
    assert 0.01 < found["precision"] < 0.99 and abs(found["precision"] - found["recall"]) > 0.05
