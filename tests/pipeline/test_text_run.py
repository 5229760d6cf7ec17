"""Whole runs of text-to-image methods on tiny untrained Stable Diffusions, an XL among them, in the hub's layout."""

from functools import cache

import pandas as pd
import pytest
import torch

from tests.support import tiny_sd
from tests.support.short_runs import changed
from tests.support.small_world import read_only
from unlearnbench import registry
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.tasks.digits_text import DigitsText

METHODS = [name for name, entry in registry.methods().items() if entry.point is None]
TRAINED = {
    "random_label",
    "salun",
    "erasediff",
    "erasediff_released",
    "esd",
    "esd_u",
    "gradient_ascent",
    "concept_ablation",
    "uce",
}
TRAINED |= {"selective_amnesia", "finetune", "esd_retain", "sfron", "scissorhands", "blindspot"}
TRAINED |= {"rece", "mace", "spm", "receler", "forget_me_not", "advunlearn", "race", "age", "ap", "stereo"}
TRAINED |= {"speed", "gloce", "concept_prune", "trce", "ant", "saeuron"}
GUIDED = {"sld", "negative_prompt", "prompt_filter", "safree"}
GUIDED |= {"adavd"}

WHOLE = {("sd1", "uce"), ("sd1", "salun"), ("sd2", "esd"), ("sdxl", "esd"), ("sdxl", "sld")}
"""Run as a whole each time: an edit, images with a mask, text and guidance; the others in the slow tests."""
CASES = [
    pytest.param(kind, name, marks=[] if (kind, name) in WHOLE else pytest.mark.slow)
    for kind in ("sd1", "sd2", "sdxl")
    for name in sorted(TRAINED | GUIDED)
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Makes a folder for --pretrained, each kind's once."""
    return cache(lambda kind: tiny_sd.world(tmp_path_factory.mktemp(kind) / "model", kind))


@pytest.fixture
def world(request, worlds):
    return worlds(request.param)


@pytest.mark.usefixtures("few_training_images")
@pytest.mark.parametrize(("world", "name"), CASES, indirect=["world"])
def test_every_method_runs_on_every_kind(world, name, cli, tmp_path):
    words = changed(registry.load_method(name))
    said = cli(
        *("run", "--task", "digits-text", "--forget", "red", "--protocol", "smoke", "--device", "cpu"),
        *("--pretrained", world, "--method", name, *words, "--results", tmp_path / "here"),
    )
    assert said.code == 0, said.err
    record = read_only(tmp_path / "here")
    assert record.status in ("ok", "unreliable"), record.reason  # untrained networks draw what a judge refuses
    assert (record.scores["trained_parameters"].value > 0) == (name in TRAINED)
    assert record.protocol.settings["safety_checker"] is False
    assert record.seeds["pretraining"] == 5
    assert {"ua", "ua_synonyms", "ua_held_out", "ra", "ira", "cra", "ra_neighbours", "fid"} <= set(record.scores)
    images = pd.read_parquet(next((tmp_path / "here").rglob(f"{name}*/*.parquet")))
    assert set(images.group) == {"forget", "direct", "synonyms", "held_out", "neighbours", "retain"}
    assert images[images.group == "forget"].prompt.str.contains("red").all()


def test_all_methods_are_tried():
    assert {name for case in CASES for name in case.values[1:]} == TRAINED | GUIDED
    class_only = {"original", "retrain", "destroy", "checkpoint"}
    assert set(METHODS) == TRAINED | GUIDED | class_only


FILE = '[[concept]]\nnames = ["seven"]\nsubstitute = "{}"\nneighbours = ["eight"]\n'


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_a_concept_file_that_was_edited_is_another_concept(world, cli, tmp_path, fresh_store):
    """Though its name is the same: neither weights nor samples of the old one are taken for the new one's."""
    words = ("run", "--task", "digits-text", "--protocol", "smoke", "--device", "cpu", "--pretrained", world)
    drawn = {}
    for folder, substitute in (("first", "one"), ("second", "two")):
        (tmp_path / "mine.toml").write_text(f'name = "mine"\n{FILE.format(substitute)}')
        said = cli(*words, "--method", "uce,prompt_filter", "--concept", "mine.toml", "--results", folder)
        assert said.code == 0, said.err
        for name in ("uce", "prompt_filter"):
            record = read_only(tmp_path / folder, f"**/{name}*/seed-*.json")
            images = pd.read_parquet(next((tmp_path / folder).rglob(f"{name}*/*.parquet")))
            asked = images.p_asked[images.group == "forget"].tolist()
            drawn.setdefault(name, []).append((record.key, record.weights["unlearned"], asked))
    for name, (first, second) in drawn.items():
        assert first[0] != second[0] and first[2] != second[2]
        assert (first[1] != second[1]) == (name == "uce")
    assert len(list((fresh_store / "weights").glob("*"))) == 3 * 2, "the original's and each method's, for each file"


@pytest.mark.parametrize("world", ["sd1", "sdxl"], indirect=True)
def test_guidance_is_one_batch_and_prompts_are_embedded_once_a_call(world, monkeypatch):
    model = load_stable_diffusion(world)
    rows, embedded = [], []
    predict, encoded = type(model).predict, type(model)._encoded
    monkeypatch.setattr(type(model), "predict", lambda self, x, t, c: rows.append(len(x)) or predict(self, x, t, c))
    monkeypatch.setattr(
        type(model),
        "_encoded",
        lambda self, encoder, ids, *given, **more: (
            embedded.append(len(ids)) or encoded(self, encoder, ids, *given, **more)
        ),
    )
    y = model.tokens(["a photo of a red seven", "blue"])
    sampler = DigitsText.protocols["smoke"].sampler
    with torch.inference_mode():
        model.sample(y, [1, 2], sampler=sampler)
    assert rows == [4] * sampler.steps
    assert sum(embedded) == (2 + 1) * len(model.text_encoders)
