"""The nudity tasks on SD 3.5 and FLUX.1: tiny models in the hub's layout, whole runs, and what does not carry over."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from tests.support import tiny_data
from tests.support.light_judges import light_detectors
from tests.support.short_runs import ONE_STEP, short
from tests.support.unjudged import unlearned
from unlearnbench import registry
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.records.schema import read_record
from unlearnbench.tasks._sd.flow import REFUSED
from unlearnbench.tasks.flux_nudity import FILES as FLUX_FILES
from unlearnbench.tasks.flux_nudity import FluxNudity
from unlearnbench.tasks.sd3_nudity import FILES as SD3_FILES
from unlearnbench.tasks.sd3_nudity import SD3Nudity

pytest.importorskip("nudenet", reason="the extra [nudity] is not installed")

TASKS = {"sd3-nudity": SD3Nudity, "flux-nudity": FluxNudity}
METHODS = {name for name, entry in registry.methods().items() if entry.point is None}
CARRIED = sorted(METHODS - {*REFUSED} - {"retrain", "checkpoint", "original"})
QUICK = {("sd3-nudity", "uce"), ("flux-nudity", "esd"), ("flux-nudity", "salun"), ("sd3-nudity", "sld")}
"""A closed form, a teacher, a loss of drawn images, and guidance; the slow tests run every method on both."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("flows")
    kinds = {"sd3-nudity": "sd3-medium", "flux-nudity": "flux-dev"}
    return {task: tiny_data.folder(place / task, kind) for task, kind in kinds.items()}


def made(task, data, **more):
    return TASKS[task]("nudity", **{"protocol": "smoke", "data": data[task], **more})


@pytest.mark.parametrize(
    ("task", "name"),
    [
        pytest.param(task, name, marks=[] if (task, name) in QUICK else pytest.mark.slow)
        for task in TASKS
        for name in CARRIED
    ],
)
def test_methods_that_carry_over_unlearn(task, name, data):
    cost = unlearned(short(name, batch_size=2, retain_batch=2, **{**ONE_STEP, "steps": 2}), made(task, data))
    assert (cost["trained_parameters"] > 0) == (name not in ("sld", "negative_prompt", "prompt_filter"))


@pytest.mark.parametrize("task", TASKS)
def test_a_whole_run_is_scored(task, cli, data, tmp_path):
    words = ("--protocol", "smoke", "--device", "cpu", "--data", data[task], "--results", "out")
    with light_detectors():
        said = cli("run", "--task", task, "--method", "uce", *words)
    assert said.code == 0, said.err
    (path,) = (tmp_path / "out").glob("*/*/*/uce*/seed-*.json")
    record = read_record(path)
    assert record.status == "ok", record.reason
    assert all(record.scores[name].value is not None for name in ("nudity_rate", "clip_score", "fid", "ua"))
    folder = {"sd3-nudity": "text_encoder_3", "flux-nudity": "transformer"}[task]
    assert f"{folder}/config.json" in made(task, data).model_identity().configuration


@pytest.mark.parametrize("task", TASKS)
def test_what_does_not_carry_over_says_why(task, data):
    names = {name for name in REFUSED if name in METHODS}
    assert names | {name for name in REFUSED if name in registry.attacks()} == {*REFUSED}
    for name in names:
        with pytest.raises(Unsupported, match=rf"{name} does not carry over to {task}: "):
            require(Cell(registry.load_method(name).configured({}), made(task, data)))


def test_attacks_carry_over_or_are_skipped_with_the_reason(cli, data, tmp_path):
    words = ("--protocol", "smoke", "--device", "cpu", "--data", data["sd3-nudity"], "--results", "out")
    with light_detectors():
        said = cli("run", "--task", "sd3-nudity", "--method", "uce", "--attacks", "p4d,relearn@1", *words)
    assert said.code == 0, said.err
    (path,) = (tmp_path / "out").glob("*/*/*/uce*/seed-*.json")
    found = {name.partition("@")[0]: attack for name, attack in read_record(path).attacks.items()}
    assert found["p4d"].status == "skipped" and "split text differently" in found["p4d"].reason
    assert found["relearn"].status == "ok", found["relearn"].reason


@pytest.mark.parametrize("task", TASKS)
def test_prompts_keep_their_capitals_and_lose_the_concept(task, data):
    about = made(task, data)
    y = about.tokens(["a Photo of nudity", "a red cat"])
    assert y.shape[1] == len(about.tokenizers)
    assert about.forgotten(y).tolist() == [True, False]
    assert about.text(y[0]) == "a Photo of nudity"
    assert about.text(about.substitute(y)[0]) == "a Photo of a person wearing clothes"
    assert torch.equal(about.substitute(y)[1], y[1])
    model = about.pretrained()
    assert torch.equal(model.tokens(["a Photo of nudity", "a red cat"]), y)


def test_training_images_are_drawn_once_for_a_model(data):
    about = made("flux-nudity", data)
    assert about.undrawn("forget") > 0
    first = about.data("forget")
    assert about.undrawn("forget") == 0 and first.x0.shape[1:] == (4, 8, 8)
    again = made("flux-nudity", data)
    assert again.undrawn("forget") == 0 and torch.equal(again.data("forget").x0, first.x0)


def test_configuration_is_part_of_the_models_identity(data, tmp_path):
    folder = shutil.copytree(data["flux-nudity"] / "flux.1-dev", tmp_path / "model")
    before = made("flux-nudity", data, checkpoint=folder).model_identity()
    assert before.hash == made("flux-nudity", data).model_identity().hash
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_shift": 1.3}))
    after = made("flux-nudity", data, checkpoint=folder).model_identity()
    assert after.weights == before.weights and after.hash != before.hash


def test_other_models_are_refused(data, tmp_path):
    file = tmp_path / "flux1-dev.safetensors"
    file.touch()
    with pytest.raises(UserError, match="reads no single file"):
        made("flux-nudity", data, checkpoint=file).pretrained()
    with pytest.raises(UserError, match="draws 16x16 pixels, protocol default means 1024x1024"):
        made("flux-nudity", data, protocol="default").pretrained()
    with pytest.raises(UserError, match="fetch --task sd3-nudity"):
        SD3Nudity("nudity", protocol="smoke", data=tmp_path).pretrained()


@pytest.mark.parametrize(("task", "files"), [("sd3-nudity", SD3_FILES), ("flux-nudity", FLUX_FILES)])
def test_what_is_fetched_is_what_is_read(task, files, data):
    cls = TASKS[task]
    listed = {source.name.removeprefix(f"{cls.model_folder}/") for source in cls.sources if source.login}
    assert listed == {*files}
    folder = data[task] / cls.model_folder
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    shards = {re.sub(r"-\d{5}-of-\d{5}", "", name) for name in files}
    assert {name for name in shards if not name.startswith("tokenizer")} <= written  # CLIP's are in other files here


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_full_size_is_planned_without_its_files(task, cli, fresh_store):
    said = cli("run", "--task", task, "--method", "esd,uce,mace", "--dry-run")
    assert said.code == 1 and "mace does not carry over" in said.err
    gib = float(re.search(r"^ uce .* ([\d.]+) GiB", said.out, re.M)[1])
    assert gib > 4 * TASKS[task].parameters / 2**30
    assert (
        re.search(r"^ esd .* — ", said.out, re.M) and "— means not counted" in said.out
    )  # no activations in the table
