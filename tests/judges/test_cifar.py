"""The judges of CIFAR-10 on random weights in the layouts of the real files; what only some judges allow to measure."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity_inception
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torchvision import transforms
from torchvision.models import ResNet, resnet34
from torchvision.models.resnet import BasicBlock

from tests.support import random_inception
from tests.support.tiny_outcome import outcome
from unlearnbench import registry
from unlearnbench.data.image_sets import Images
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest, seed_of, state_hash
from unlearnbench.judges import cifar, look
from unlearnbench.judges.calibration import REFUSED_SHARE
from unlearnbench.judges.cifar import PixelNeighbours, ResNetJudge, prepared, read_weights, started, train_resnet
from unlearnbench.judges.corruptions import corrupted
from unlearnbench.pipeline import scoring
from unlearnbench.reporting import shown_by
from unlearnbench.statistics import block_jackknife, t_interval
from unlearnbench.storage.weights import save_state
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.training import Diverged

METRICS = registry.load_metrics()
INCEPTION = {"inception_score", "fid_train"}
WIDTH = 64
"""Features of the network in ResNet-34's place."""


class Narrow(ResNet):
    """A ResNet of the same layers by name, with one block of an eighth of the width a level."""

    def __init__(self, weights=None, num_classes=1000):
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
        self.fc = nn.Linear(WIDTH, num_classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        return super()._make_layer(block, planes // 8, blocks, stride, dilate)


class LightInception(nn.Module):
    """In the place of torch-fidelity's Inception where its arithmetic does not matter: sums of each colour."""

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        self.fc = nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        return (x.float().sum(dim=(2, 3)),)


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """The judge's network is a narrow one; the first test of verdicts has the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models.resnet34", Narrow)
        yield


@pytest.fixture
def light_inception(monkeypatch, tmp_path):
    """Weights of a light Inception, which is loaded in the real one's place."""
    monkeypatch.setattr(fidelity_inception, "FeatureExtractorInceptionV3", LightInception)
    weights = nn.Linear(3, 5).state_dict(prefix="fc.")
    torch.save(weights, tmp_path / "light.pth")
    return tmp_path / "light.pth"


def noise(n, seed=0, size=32):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def made(each, seed=0):
    """`each` images a class, in turn: a gradient from one colour of the class to another, a little blotted."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(10, 2, 3, generator=torch.Generator().manual_seed(7)) * 200 + 25
    y = torch.arange(10).repeat(each)
    step = torch.linspace(0, 1, 32)[None, None, None]
    x = ends[y, 0][:, :, None, None] * (1 - step) + ends[y, 1][:, :, None, None] * step
    blots = F.interpolate(torch.randn(len(y), 3, 4, 4, generator=generator), size=32, mode="bilinear")
    x = (x.expand(-1, -1, 32, -1) + 10 * blots).round().clamp(0, 255).to(torch.uint8)
    return Images(x.numpy(), y.numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def imagenet(folder):
    """A file in the layout of torchvision's resnet34-b627a593.pth."""
    torch.manual_seed(0)
    torch.save(Narrow().state_dict(), folder / "resnet34.pth")
    return folder / "resnet34.pth"


@pytest.fixture(scope="module")
def start(imagenet):
    return read_weights(imagenet, "ResNet-34")


@pytest.fixture(scope="module")
def inception(folder):
    return random_inception.write(folder / "inception.pth")


def trained_a_little(net):
    """Its state as a judge's; running means and variances are those of some images."""
    net.train()
    with torch.no_grad():
        for seed in range(3):
            net(prepared(noise(8, seed), 32))
    return {**net.state_dict(), "threshold": torch.tensor(0.0)}


@pytest.fixture(scope="module")
def state(start):
    """Of a judge that was never trained."""
    torch.manual_seed(1)
    return trained_a_little(started(start))


@pytest.fixture(scope="module")
def judge(state):
    return ResNetJudge(state, "a" * 64, size=32)


@pytest.fixture(scope="module")
def both(state, inception):
    """The judge with its Inception; images are few, since each takes half a second."""
    return ResNetJudge(state, "a" * 64, inception=inception, size=32)


@pytest.fixture(scope="module")
def direct(inception):
    """What torch-fidelity's own extractor says of two images."""
    layers = ["2048", "logits_unbiased"]
    net = fidelity_inception.FeatureExtractorInceptionV3("direct", layers, feature_extractor_weights_path=inception)
    with torch.inference_mode():
        return net(noise(2))


def plain(state, network=Narrow):
    net = network(num_classes=10)
    net.load_state_dict({name: value for name, value in state.items() if name not in cifar.NOT_OF_NETWORK})
    return net


# ---- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [224, 32, 16])
def test_images_are_resized_and_scaled_as_the_papers_do_with_pil(size):
    images = torch.cat([noise(2), torch.from_numpy(made(1).x[:2])])
    steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = torch.stack([transforms.Compose(steps)(image) for image in pil])
    off = (prepared(images, size) - expected).abs() * 127.5
    assert off.max() < 1.01, "PIL rounds once more, between its two passes"
    assert off.mean() < (1e-4 if size == 32 else 0.25)


# ---- the network's verdicts ----------------------------------------------------------------------------------------


def test_verdicts_and_features_are_the_networks(monkeypatch):
    monkeypatch.setattr("torchvision.models.resnet34", resnet34)
    images = torch.cat([noise(5), torch.from_numpy(made(1).x)])
    state = trained_a_little(resnet34(num_classes=10))
    judge, net = ResNetJudge(state, "a" * 64, size=32), plain(state, resnet34).eval()
    with torch.inference_mode():
        logits = net(prepared(images, 32))
        net.fc = nn.Identity()
        features = net(prepared(images, 32))
    verdict = judge(images)
    torch.testing.assert_close(verdict.probabilities, logits.softmax(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(judge.features(images), features, rtol=1e-4, atol=1e-5)
    assert verdict.probabilities.dtype == torch.float32 and verdict.refused.dtype == torch.bool
    assert features.shape == (15, 512) and features.std(dim=0).max() > 0.1
    energy = -logits.exp().sum(dim=1).log()
    assert energy.min() < energy.median() < energy.max()
    judge.threshold = float(energy.median()) + 1e-4
    assert judge(images).refused.tolist() == (energy > judge.threshold).tolist()


def test_verdicts_are_the_same_in_any_batch(judge, monkeypatch):
    images = noise(7)
    whole, features = judge(images), judge.features(images)
    sizes, forward = [], judge.body.forward
    monkeypatch.setattr(cifar, "BATCH", 3)
    monkeypatch.setattr(judge.body, "forward", lambda x: sizes.append(len(x)) or forward(x))
    some = judge(images)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(some.probabilities, whole.probabilities, rtol=1e-4, atol=1e-6)
    assert torch.equal(some.refused, whole.refused)
    seen = look(judge, images)
    torch.testing.assert_close(seen.features, features, rtol=1e-4, atol=1e-5)
    assert seen.error is None


def test_making_a_judge_draws_no_random_numbers_and_keeps_the_callers_tensors(state, inception):
    before, weight = torch.get_rng_state(), state["conv1.weight"].clone()
    made_judge = ResNetJudge(state, "a" * 64, inception=inception)
    made_judge.body.conv1.weight.data.zero_()
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(state["conv1.weight"], weight)


# ---- Inception -----------------------------------------------------------------------------------------------------


def test_features_and_logits_are_those_of_torch_fidelity_in_any_batch(both, direct, monkeypatch):
    features, logits = direct
    assert features.shape == (2, 2048) and logits.shape == (2, 1008) and features.std(dim=0).max() > 1e-3
    monkeypatch.setattr(cifar, "BATCH", 1)
    found = both.features(noise(2))
    scale = features.abs().max().item()
    torch.testing.assert_close(found, features, rtol=1e-3, atol=1e-5 * scale)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    scale = logits.abs().max().item()
    torch.testing.assert_close(both.logits_from(found), logits, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(both.logits(noise(2)[:1]), logits[:1], rtol=1e-3, atol=1e-4 * scale)
    assert both.has_logits


def test_without_inception_there_are_no_logits(judge):
    assert not judge.has_logits
    with pytest.raises(UserError, match="cifar10-resnet34 has no logits without the weights of Inception"):
        judge.logits_from(torch.zeros(2, WIDTH))


def test_the_hash_covers_both_networks(judge, state, light_inception, tmp_path):
    def hashed(path, own="a" * 64):
        return ResNetJudge(state, own, inception=path).hash

    weights, found = torch.load(light_inception, weights_only=True), hashed(light_inception)
    assert judge.hash == "a" * 64 and found == digest(["a" * 64, state_hash(weights)])
    assert found not in (judge.hash, hashed(light_inception, "b" * 64))
    save_state(weights, tmp_path / "same.safetensors")
    assert hashed(tmp_path / "same.safetensors") == found
    weights["fc.bias"] = weights["fc.bias"] + 1
    save_state(weights, tmp_path / "other.safetensors")
    assert hashed(tmp_path / "other.safetensors") != found


def test_a_judge_of_the_older_recipe_keeps_its_version(judge, state):
    assert judge.version == "1", "its state does not name the weight decay"
    decayed = {**state, "weight_decay": torch.tensor(5e-4)}
    assert ResNetJudge(decayed, "a" * 64, size=32).version == "2", "nor corrupted images"
    found = ResNetJudge({**decayed, "corrupted_share": torch.tensor(0.0)}, "a" * 64, size=32)
    assert found.version == ResNetJudge.version == "3"


def test_papers_evaluators_show_inception_bgr_and_the_classifier_rgb(state, light_inception):
    """As cv2.imread gives them: the first channel is blue."""
    rgb, bgr = (
        ResNetJudge(state, "a" * 64, inception=light_inception, size=32, channels=channels)
        for channels in ("rgb", "bgr")
    )
    images = noise(1)
    exchanged = images[:, [2, 1, 0]]
    assert torch.equal(bgr.features(images), rgb.features(exchanged))
    assert not torch.allclose(bgr.features(images), rgb.features(images), rtol=1e-3)
    assert torch.equal(bgr(images).probabilities, rgb(images).probabilities)
    assert bgr.hash != rgb.hash, "their features must not be taken for each other"


# ---- files and weights that cannot be used -------------------------------------------------------------------------


class Runs:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.mark.parametrize("case", ["missing", "cut off", "no weights", "code", "another network"])
def test_a_file_of_inception_that_cannot_be_used_is_named_in_one_line(case, state, imagenet, tmp_path):
    path = tmp_path / "inception.pth"
    says = {
        "missing": "no weights of Inception at .*inception.pth: give a file that exists; none is downloaded",
        "cut off": "inception.pth cannot be loaded",
        "no weights": "inception.pth cannot be loaded",
        "code": "inception.pth is a pickle that holds more than tensors, and could run code",
        "another network": "resnet34.pth holds no Inception of torch-fidelity",
    }[case]
    if case == "cut off":
        path.write_bytes(imagenet.read_bytes()[:100_000])
    elif case == "no weights":
        path.write_text("<html>not found</html>")
    elif case == "code":
        path.write_bytes(pickle.dumps({"conv": Runs(tmp_path / "run")}))
    elif case == "another network":
        path = imagenet
    with pytest.raises(UserError, match=says) as caught:
        ResNetJudge(state, "a" * 64, inception=path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", ["threshold", "layer", "classes", "start"])
def test_weights_that_are_no_judges_are_refused_in_one_line(case, state, start):
    given = dict(state)
    if case in ("threshold", "layer"):
        del given["threshold" if case == "threshold" else "layer1.0.conv1.weight"]
    elif case == "classes":
        given |= {"fc.weight": torch.zeros(1000, WIDTH), "fc.bias": torch.zeros(1000)}
    says = {
        "threshold": "have no threshold: train them again",
        "layer": r"no weights of a ResNet-34 with ten classes .*layer1\.0\.conv1\.weight",
        "classes": r"no weights of a ResNet-34 with ten classes .*fc\.weight",
        "start": r"the start is no ResNet-34 of torchvision .*layer1\.0\.conv1\.weight",
    }[case]
    with pytest.raises(UserError, match=says) as caught:
        if case == "start":
            started({name: value for name, value in start.items() if name != "layer1.0.conv1.weight"})
        else:
            ResNetJudge(given, "a" * 64)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# ---- training ------------------------------------------------------------------------------------------------------


def test_training_starts_from_imagenet_with_a_new_head(imagenet, start, tmp_path):
    save_state(start, tmp_path / "resnet34.safetensors")
    assert state_hash(read_weights(tmp_path / "resnet34.safetensors", "ResNet-34")) == state_hash(start)
    torch.manual_seed(2)
    own = started(start).state_dict()
    assert all(torch.equal(own[name], value) for name, value in start.items() if not name.startswith("fc."))
    assert own["fc.weight"].shape == (10, WIDTH)
    bound = (6 / (WIDTH + 10)) ** 0.5
    assert 0.95 * bound < own["fc.weight"].abs().max() <= bound, "Xavier's uniform; torch's own is less than half"


def by_hand(start, images, seed, lr):
    """Parameters after the first step of Adam, which is lr g / (|g| + 1e-8), and the loss's gradients; g has 5e-4 times
    the parameters beside these.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("judge", seed) >> 1)
        net = started(start).train()
    generator = torch.Generator().manual_seed(seed_of("judge data", seed) >> 1)
    order = torch.randperm(len(images.y), generator=generator)
    turned = torch.rand(len(order), generator=generator) < 0.5
    assert 0 < turned.sum() < len(order)
    x = torch.from_numpy(images.x)[order].float() / 127.5 - 1
    x[turned] = x[turned].flip(3)
    picked = net(x).log_softmax(dim=1)[torch.arange(len(order)), torch.from_numpy(images.y)[order]]
    parameters = dict(net.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(-picked.mean(), list(parameters.values())), strict=True))
    rate = {name: lr * (10 if name in ("fc.weight", "fc.bias") else 1) for name in parameters}
    stepped = {}
    for name, value in parameters.items():
        g = gradients[name] + 5e-4 * value.detach()
        stepped[name] = value.detach() - rate[name] * g / (g.abs() + 1e-8)
    return stepped, gradients, rate


def test_a_step_is_adams_with_ten_times_the_rate_for_the_head(start):
    images = made(2, seed=3)
    found = train_resnet(images, images, 5, start=start, epochs=1, size=32, batch=20, lr=1e-3, corrupted_images=1)
    expected, gradients, rate = by_hand(start, images, 5, 1e-3)
    assert float(found["weight_decay"]) == pytest.approx(5e-4)
    corner, before = found["layer4.0.conv2.weight"][..., 0, 0], start["layer4.0.conv2.weight"][..., 0, 0]
    pull = 5e-4 * before  # its input is a single pixel: a corner of the kernel sees padding alone, and no gradient
    torch.testing.assert_close(corner - before, -1e-3 * pull / (pull.abs() + 1e-8), rtol=1e-3, atol=1e-7)
    for name, value in expected.items():
        size = gradients[name].abs()
        clear = (size > 1e-4 * size.max()) | (size == 0)  # of the smallest the sign is rounding's
        assert clear.float().mean() > 0.9
        torch.testing.assert_close(found[name][clear], value[clear], rtol=0, atol=0.02 * rate[name])


class Watched:
    """An array that notes how many rows were asked for at once."""

    def __init__(self, array):
        self.array, self.rows = array, []

    def __getitem__(self, index):
        self.rows.append(len(self.array[index]))
        return self.array[index]


def test_training_lowers_the_loss_and_the_threshold_refuses_a_share(start, tmp_path, monkeypatch):
    images, calibration = made(4), made(20, seed=1)
    monkeypatch.setattr(cifar, "BATCH", 16)
    np.save(tmp_path / "x.npy", images.x)
    mapped, watched = np.load(tmp_path / "x.npy", mmap_mode="r"), Watched(calibration.x)
    heard = []
    with shown_by(lambda what, done, total: heard.append((what, done, total))):
        found = train_resnet(
            Images(mapped, images.y),
            Images(watched, calibration.y),
            0,
            start=start,
            epochs=2,
            size=32,
            batch=16,
            lr=3e-3,
            corrupted_images=4,
        )
    assert heard[-1] == ("judge", 6, 6)
    assert 0 < max(watched.rows) < 200 == sum(watched.rows) - 4, "the set is never held as a whole"

    def loss(net):
        with torch.no_grad():
            return F.cross_entropy(net.train()(prepared(torch.from_numpy(images.x), 32)), torch.from_numpy(images.y))

    torch.manual_seed(0)
    assert loss(plain(found)) < 0.7 * loss(started(start))
    trained = ResNetJudge(found, "a" * 64, size=32)
    assert trained.threshold == float(found["threshold"])
    assert trained(torch.from_numpy(calibration.x)).refused.sum() <= REFUSED_SHARE * 200
    assert all(value.device.type == "cpu" and not value.requires_grad for value in found.values())


def test_training_is_the_same_again_and_another_with_another_seed(start):
    images = made(1)
    one, two, other = (
        state_hash(train_resnet(images, images, seed, start=start, epochs=1, size=32, batch=10, corrupted_images=1))
        for seed in (0, 0, 1)
    )
    assert one == two != other


def test_the_threshold_keeps_corrupted_images_that_are_named_right(start, monkeypatch):
    """Names all right: the threshold is that of the dullest images, not that of images as they are."""
    images, calibration = made(1), made(3, seed=1)

    def scores(self, shown):
        contrast = shown.float().flatten(1).std(dim=1)
        right = F.one_hot(torch.from_numpy(calibration.y)[torch.arange(len(shown)) % 30], 10).float()
        return right * 10 + contrast[:, None]  # the energy is high where contrast is low

    monkeypatch.setattr(ResNetJudge, "scores", scores)
    found = train_resnet(images, calibration, 0, start=start, epochs=1, size=32, batch=10)
    dull = corrupted(torch.from_numpy(calibration.x), "contrast", 5, torch.Generator())
    judge = ResNetJudge(found, "a" * 64, size=32)
    assert judge(torch.from_numpy(calibration.x)).refused.sum() == 0
    assert judge(dull).refused.float().mean() <= 0.05
    assert judge(torch.full((30, 3, 32, 32), 128, dtype=torch.uint8)).refused.all()


def test_training_images_are_corrupted_only_if_asked(start, monkeypatch):
    images, asked = made(1), []

    def corrupt(x, share, generator):
        asked.append((share, tuple(x.shape), x.max().item() <= 1))
        return x * 0.5

    monkeypatch.setattr(cifar, "corrupt_some", corrupt)
    settings = {"start": start, "epochs": 1, "size": 32, "batch": 5, "corrupted_images": 1}
    plain_, dulled = (train_resnet(images, images, 0, **settings, corrupted_share=share) for share in (0.0, 0.5))
    assert asked == [(0.5, (5, 3, 32, 32), True)] * 2
    assert float(plain_["corrupted_share"]) == 0 and float(dulled["corrupted_share"]) == 0.5
    assert not torch.equal(plain_["conv1.weight"], dulled["conv1.weight"])


def test_training_that_diverges_is_told(start):
    with pytest.raises(Diverged, match="the judge's loss is not finite at step 1"):
        train_resnet(made(1), made(1), 0, start=start, epochs=2, size=32, batch=10, lr=1e30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda_verdicts_and_features_are_those_of_the_cpu(state, both, inception):
    there, images = ResNetJudge(state, "a" * 64, "cuda", inception, size=32), noise(4)
    torch.testing.assert_close(there(images).probabilities, both(images).probabilities, rtol=1e-3, atol=1e-5)
    found, features = there.features(images), both.features(images)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, features, rtol=1e-3, atol=1e-4 * features.abs().max().item())
    logits = both.logits_from(features)
    torch.testing.assert_close(there.logits_from(found), logits, rtol=1e-3, atol=1e-4 * logits.abs().max().item())


# ---- nearest neighbours --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neighbours():
    return PixelNeighbours(made(20), made(40, seed=1))


def test_neighbours_name_their_own_training_images_and_others_like_them(neighbours):
    own = made(20)
    verdict = neighbours(torch.from_numpy(own.x))
    assert verdict.closed.tolist() == own.y.tolist() and verdict.probabilities.amax(dim=1).min() > 0.99
    assert not verdict.refused.any()
    fresh = made(20, seed=2)
    verdict = neighbours(torch.from_numpy(fresh.x))
    assert (verdict.label == torch.from_numpy(fresh.y)).float().mean() > 0.9
    refused = neighbours(torch.from_numpy(made(40, seed=1).x)).refused
    assert refused.sum() == REFUSED_SHARE * 400


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "coarse", "faint"])
def test_neighbours_refuse_noise(neighbours, kind):
    """Faint noise on grey has the means of a grey image: that it is none shows in the spread within cells."""
    images = noise(50)
    if kind == "gaussian":
        x = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        images = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    elif kind == "coarse":
        images = noise(50, size=8).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    elif kind == "faint":
        train = torch.from_numpy(made(5).x).float()
        images = (train + 60 * torch.randn(train.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
        images = images.to(torch.uint8)
    assert neighbours(images).refused.all()


def test_neighbours_by_hand(neighbours):
    def compared(x):
        cells = x.reshape(len(x), 3, 8, 4, 8, 4).astype(np.float64) / 127.5 - 1
        return np.concatenate([f(cells, axis=(3, 5)).reshape(len(x), -1) for f in (np.mean, np.std)], axis=1)

    fresh, train = made(3, seed=4), made(20)
    distance = np.linalg.norm(compared(fresh.x)[:, None] - compared(train.x)[None], axis=2)
    near = distance.argsort(axis=1)[:, :5]
    nearest = np.take_along_axis(distance, near, axis=1)
    votes = np.zeros((30, 10))
    for row in range(30):
        np.add.at(votes[row], train.y[near[row]], 1 / nearest[row])
    verdict = neighbours(torch.from_numpy(fresh.x))
    np.testing.assert_allclose(verdict.probabilities, votes / votes.sum(axis=1, keepdims=True), atol=1e-3)
    assert verdict.refused.tolist() == (nearest.mean(axis=1) > neighbours.threshold).tolist()


def test_neighbours_features_are_the_pixels_at_8x8(neighbours):
    images = noise(5)
    expected = F.avg_pool2d(images.float() / 127.5 - 1, 4).flatten(1)
    assert expected.shape == (5, 192)
    torch.testing.assert_close(neighbours.features(images), expected, rtol=0, atol=1e-6)
    assert not getattr(neighbours, "has_logits", False)


def test_neighbours_take_few_images_and_as_many_of_each_class(monkeypatch):
    train = made(12)
    whole = PixelNeighbours(train, train)
    monkeypatch.setattr(PixelNeighbours, "most", 50)
    few = PixelNeighbours(train, train)
    counts = np.bincount(few.model._y)
    assert counts.tolist() == [5] * 10 and len(whole.model._y) == 120
    assert few.hash != whole.hash and few.hash == PixelNeighbours(made(5), train).hash
    kept = Images(train.x[train.y < 8], train.y[train.y < 8])
    with pytest.raises(UserError, match="needs training images of every class: none of 8, 9"):
        PixelNeighbours(kept, train)


# ---- metrics -------------------------------------------------------------------------------------------------------


def inception_score(logits):
    """Written out: exp of the mean KL(p || mean of p) in nats."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return float(np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()))


def random(n, k=8, seed=0):
    return 2 * np.random.default_rng(seed).normal(size=(n, k))


def measure(name, features, **made_of):
    sides = {side: torch.as_tensor(np.asarray(x), dtype=torch.float32) for side, x in made_of.items()}
    return METRICS[name].measure(outcome(features=torch.as_tensor(features, dtype=torch.float32), **sides))


def test_the_inception_score_of_few_images_is_of_all_together():
    logits, real = random(60), random(30, seed=1)
    score = measure("inception_score", logits, real=real)
    assert score.value == pytest.approx(inception_score(logits), rel=1e-5)
    assert score.floor == pytest.approx(inception_score(real), rel=1e-5)
    assert score.interval == pytest.approx(block_jackknife(lambda kept: inception_score(logits[kept]), 60), rel=1e-4)
    assert (score.n, score.missing) == (60, 0)
    assert measure("inception_score", logits[:19]).interval is None and measure("inception_score", logits).floor is None


def test_the_inception_score_of_many_is_the_mean_over_splits(monkeypatch):
    monkeypatch.setattr(type(METRICS["inception_score"]), "split", 30)
    logits = random(100) + np.repeat(6 * np.eye(8)[[0, 3, 5, 6]], 25, axis=0)
    order = np.random.RandomState(2020).permutation(100)
    values = [inception_score(logits[order[a:b]]) for a, b in ((0, 33), (33, 66), (66, 100))]
    score = measure("inception_score", logits)
    assert score.value == pytest.approx(np.mean(values), rel=1e-5)
    assert score.interval == pytest.approx(t_interval(values), rel=1e-4)
    theirs = isc_features_to_metric(torch.tensor(logits), splits=3)[KEY_METRIC_ISC_MEAN]
    assert score.value == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("n", "count"), [(2, 1), (4_999, 1), (9_999, 1), (10_000, 2), (45_000, 9)])
def test_a_split_holds_5000_images_as_in_the_papers(n, count):
    found = METRICS["inception_score"].splits(n)
    assert len(found) == count and {len(part) for part in found} <= {n // count, n // count + 1}
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(n))
    assert all((np.diff(part) > 0).all() for part in found), "read one after another"
    if count > 1:
        assert abs(found[0].mean() / n - 0.5) < 0.02, "of all classes"


def test_fid_train_looks_at_the_other_real_images():
    samples, held_out, train = random(100), random(100, seed=1), random(100, seed=2) + 1
    sides = {"reference": held_out, "real": train}
    fid, fid_train = measure("fid", samples, **sides), measure("fid_train", samples, **sides)
    turned = measure("fid", samples, reference=train, real=held_out)
    assert (fid_train.value, fid_train.interval, fid_train.floor) == (turned.value, turned.interval, turned.floor)
    assert fid_train.value > 2 * fid.value and fid.value > 0
    assert measure("fid_train", samples, reference=held_out).reason.startswith("0 images with features on a side")


class Offering(DigitsClass):
    """Its judge says whether it has logits."""

    def __init__(self, answer):
        super().__init__("3")
        self.answer, self.loaded = answer, 0

    def judge(self):
        self.loaded += 1
        return type("Some", (), {} if self.answer is None else {"has_logits": self.answer})()


def test_metrics_that_need_logits_are_measured_where_a_judge_has_them(monkeypatch):
    assert {name for name, metric in METRICS.items() if metric.judge_needs == "has_logits"} == INCEPTION
    plain_names = set(scoring.metrics_for(DigitsClass("3")))
    assert not INCEPTION & plain_names and "fid" in plain_names
    assert not INCEPTION & set(scoring.metrics_for(DigitsText("seven")))
    assert not INCEPTION & {name for name in METRICS if METRICS[name].everywhere}
    assert set(scoring.metrics_for(Offering(None))) == set(scoring.metrics_for(Offering(False))) == plain_names
    assert set(scoring.metrics_for(Offering(True))) == plain_names | INCEPTION
    monkeypatch.setattr(registry, "load_metrics", lambda: {"fid": METRICS["fid"]})
    unasked = Offering(True)
    assert set(scoring.metrics_for(unasked)) == {"fid"} and unasked.loaded == 0


def test_the_judge_with_inception_allows_them_and_the_others_do_not(judge, both, neighbours):
    task = Offering(None)
    for one, expected in ((both, INCEPTION), (judge, set()), (neighbours, set())):
        task.judge = lambda one=one: one
        assert INCEPTION & set(scoring.metrics_for(task)) == expected


def test_the_score_comes_from_features_that_were_extracted_before(both, direct, monkeypatch):
    monkeypatch.setattr(both, "features", None)
    made_of = outcome(features=direct[0])
    task = Offering(None)
    task.judge = lambda: both
    score = METRICS["inception_score"].measure(replace(made_of, task=task))
    assert score.value == pytest.approx(inception_score(direct[1].double().numpy()), rel=1e-3)
    assert score.value > 1
