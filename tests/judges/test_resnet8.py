"""The small judge of photographs: its network, its training, and files that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.data.image_sets import Images
from unlearnbench.errors import Damaged, UserError
from unlearnbench.judges import resnet8
from unlearnbench.judges.corruptions import NOISES, non_images
from unlearnbench.judges.resnet8 import SmallResNet, SmallResNetJudge, train_small_resnet, whitening_filters
from unlearnbench.training import Diverged

TINY = (8, 8, 8)


def pictures(each, seed=0):
    """`each` images of every class: level stripes of the class's colour and width, with a little noise."""
    rng = np.random.RandomState(seed)
    y = np.tile(np.arange(10), each)
    colours = np.array([[(label >> bit & 1) * 150 for bit in range(3)] for label in (1, 2, 3, 4, 5)])
    x = rng.normal(60, 8, (len(y), 3, 32, 32))
    for image, label in zip(x, y, strict=True):
        striped = np.arange(32) // (2 if label < 5 else 6) % 2
        image += colours[label % 5][:, None, None] * striped[None, :, None]
    return Images(x.clip(0, 255).astype(np.uint8), y)


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("CALIBRATED", 20), ("BATCH", 32), ("OUTLIERS", 8)):
            patch.setattr(resnet8, name, count)
        yield


@pytest.fixture(scope="module")
def sets():
    return pictures(60), pictures(4, seed=1)


@pytest.fixture(scope="module")
def state(sets):
    return train_small_resnet(*sets, 0, epochs=10, widths=(16, 16, 16))


@pytest.fixture(scope="module")
def judge(state):
    return SmallResNetJudge(state, "a" * 64)


def test_the_shipped_size():
    assert sum(value.numel() for value in SmallResNet().parameters()) == 790_688


def test_whitened_patches_have_no_correlation():
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(40, 3, 8, 8, generator=generator), size=32, mode="bilinear")
    x = smooth + 0.2 * torch.randn(40, 3, 32, 32, generator=generator)
    filters = whitening_filters(x)
    assert torch.equal(filters[:12], -filters[12:])
    found = F.conv2d(x, filters[:12], stride=2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.cov(), torch.eye(12), rtol=0, atol=0.05)


def test_it_learns_what_it_is_shown_and_refuses_noise(judge):
    x, y = pictures(20, seed=2)
    verdict = judge(torch.from_numpy(x))
    assert (verdict.closed == torch.from_numpy(y)).float().mean() > 0.8
    assert verdict.refused.float().mean() < 0.1
    for kind in NOISES:
        made = non_images(torch.from_numpy(x), kind, torch.Generator().manual_seed(0))
        assert judge(made).refused.float().mean() > 0.9, kind


def test_verdicts_and_features_are_the_networks_in_any_batch(judge, state, monkeypatch):
    images = torch.from_numpy(pictures(2, seed=3).x)
    net = SmallResNet((16, 16, 16)).eval()
    net.load_state_dict({name: state[name].float() for name in net.state_dict() if name in state}, strict=False)
    with torch.inference_mode():
        x = images.float() / 127.5 - 1
        logits, features = ((one(x) + one(x.flip(3))) / 2 for one in (net, net.features))
    verdict = judge(images)
    torch.testing.assert_close(verdict.probabilities, logits[:, :10].softmax(dim=1))
    odds = logits[:, 10] - logits[:, :10].amax(dim=1)
    assert verdict.refused.tolist() == (odds > state["threshold"]).tolist()
    torch.testing.assert_close(judge.features(images), features / state["scale"])
    monkeypatch.setattr(SmallResNetJudge, "batch", 7)
    torch.testing.assert_close(judge(images).probabilities, verdict.probabilities, rtol=1e-4, atol=1e-6)


def test_weights_are_in_half_precision_and_features_of_unit_size(judge, state, sets):
    assert all(value.dtype == torch.float16 for name, value in state.items() if name not in ("threshold", "scale"))
    assert judge.features(torch.from_numpy(sets[0].x)).square().mean().sqrt() == pytest.approx(1, rel=1e-3)


def test_a_training_that_was_stopped_ends_with_the_same_weights(sets, tmp_path, monkeypatch):
    whole = train_small_resnet(*sets, 1, epochs=3, widths=TINY)
    keep, plain = tmp_path / "state.pt", resnet8._one_epoch

    def stopped(net, optimiser, train, seed, place, half):
        if place[0] == 2:
            raise KeyboardInterrupt
        return plain(net, optimiser, train, seed, place, half)

    monkeypatch.setattr(resnet8, "_one_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_small_resnet(*sets, 1, epochs=3, widths=TINY, keep=keep)
    epochs = []
    monkeypatch.setattr(resnet8, "_one_epoch", lambda *given: epochs.append(given[4][0]) or plain(*given))
    again = train_small_resnet(*sets, 1, epochs=3, widths=TINY, keep=keep)
    assert epochs == [2] and all(torch.equal(again[name], value) for name, value in whole.items())
    with pytest.raises(UserError, match=r"state.pt is of another training .*'seed': 1"):
        train_small_resnet(*sets, 2, epochs=3, widths=TINY, keep=keep)
    keep.write_bytes(b"cut off")
    with pytest.raises(Damaged, match=r"state.pt cannot be read: move it away"):
        train_small_resnet(*sets, 1, epochs=3, widths=TINY, keep=keep)


def test_training_images_are_moved_and_mirrored_and_their_labels_stay(sets):
    train = sets[0]
    x = torch.from_numpy(train.x[:40]).float() / 255
    found = resnet8.moved(x, torch.Generator().manual_seed(0))
    padded = F.pad(x, (2,) * 4, mode="reflect")
    places = set()
    for image, whole in zip(found, padded, strict=True):
        ways = {
            (down, right, flipped)
            for down in range(5)
            for right in range(5)
            for flipped in (False, True)
            if torch.equal(image, (whole.flip(2) if flipped else whole)[:, down : down + 32, right : right + 32])
        }
        assert ways, "each is its own image, moved by at most two pixels"
        places |= ways
    assert {flipped for *_, flipped in places} == {False, True} and len({place[:2] for place in places}) > 10
    batch, labels = resnet8._batch(train, np.arange(40), torch.Generator().manual_seed(0))
    assert labels.tolist() == [*train.y[:40].tolist(), *[10] * 8] and batch.shape == (48, 3, 32, 32)
    assert batch.min() >= -1 and batch.max() <= 1


def test_the_rate_rises_and_falls_to_zero_twice():
    rates = [resnet8.judge_rate(step, 10, 26) for step in range(260)]
    assert max(rates) == pytest.approx(0.1, rel=0.02) and rates.index(max(rates)) == 19
    assert rates[:20] == sorted(rates[:20]) and rates[19:140] == sorted(rates[19:140], reverse=True)
    assert rates[0] < 0.01 and 0 < rates[139] < 0.002
    assert rates[140] == 0.05 and rates[140:] == sorted(rates[140:], reverse=True) and 0 < rates[-1] < 0.001
    assert resnet8.judge_rate(3, 4, 1) > 0, "a training that is shorter than the rise"


def test_a_loss_that_is_no_number_ends_the_training(sets, monkeypatch):
    monkeypatch.setattr(resnet8, "whitening_filters", lambda x: torch.full((24, 3, 2, 2), torch.nan))
    with pytest.raises(Diverged):
        train_small_resnet(*sets, 0, epochs=1, widths=TINY)


@pytest.mark.parametrize("lacking", ["threshold", "head.weight", "down.0.0.weight", "residual.1.1.bias"])
def test_other_weights_are_refused_in_one_line(state, lacking):
    given = {name: value for name, value in state.items() if name != lacking}
    with pytest.raises(UserError, match="no weights of cifar10-resnet8") as caught:
        SmallResNetJudge(given, "")
    assert "\n" not in str(caught.value)
