"""`export`: a record's model as a folder that diffusers loads, a card that says what it is, and all that is refused."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests import tiny_sd
from tests.small_world import made_record, write_nudge
from unlearnbench import export as module
from unlearnbench import stages
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.record import read, write

RUN = ("run", "--task", "digits-text", "--forget", "seven", "--protocol", "smoke", "--device", "cpu", "--out", "here")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def world(request, tmp_path_factory):
    return tiny_sd.world(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture
def record(cli, world):
    """The path of a record of UCE on it."""
    said = cli(*RUN, "--pretrained", world, "--method", "uce", "--set", "lamb=0.1")
    assert said.code == 0, said.err
    return next(Path("here").glob("digits-text/smoke/seven/uce*/seed-0.json"))


def predictions(model):
    y = model.tokens(["a photo of a red seven", "blue"])
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eps(x, torch.tensor([10, 900]), y)


def test_the_folder_holds_the_unlearned_model(cli, world, record):
    from diffusers import DiffusionPipeline

    said = cli("export", record, "model", "--pretrained", world, "--device", "cpu")
    assert said.code == 0, said.err
    assert said.out.startswith("wrote model, a diffusers folder; model/README.md is its card")
    again, original = predictions(load_stable_diffusion("model")), predictions(load_stable_diffusion(world))
    assert (again - original).abs().max() > 1e-4
    pipeline = DiffusionPipeline.from_pretrained("model", safety_checker=None, local_files_only=True)
    assert type(pipeline).__name__ == type(DiffusionPipeline.from_pretrained(world, local_files_only=True)).__name__
    own = load_stable_diffusion(world)
    own.unet.load_state_dict(pipeline.unet.state_dict())
    torch.testing.assert_close(predictions(own), again)
    # and another can be scored from it as from any that others unlearned
    said = cli(*RUN, "--pretrained", world, "--method", "checkpoint", "--set", "path=model")
    assert said.code == 0, said.err
    scored = read(next(path for path in Path("here").rglob("seed-0.json") if "checkpoint" in str(path)))
    assert scored.weights["unlearned"] == read(record).weights["unlearned"]
    assert {name: score.value for name, score in scored.scores.items() if score.axis != "cost"} == {
        name: score.value for name, score in read(record).scores.items() if score.axis != "cost"
    }


def test_the_card_says_what_it_is_and_what_was_not_tried(cli, world, record):
    assert cli("export", record, "model", "--pretrained", world, "--device", "cpu").code == 0
    text, said = Path("model/README.md").read_text(), read(record)
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "diffusers"
    assert "Gandikota et al., WACV 2024" in text
    assert "lamb = 0.1" in text.replace("\\", "")
    assert f"key {said.key}, content hash {said.content_hash}" in text
    assert "--method uce --forget seven --protocol smoke --seeds 0 --preset default --set lamb=0.1" in text
    assert "seven (substitute one; as well known by 7)" in text.replace("\\", "")
    assert "No attack was run on this record." in text
    assert re.search(r"\| UA \(%\) \| [\d.]+ \| [\d.]+ to [\d.]+ \| 12 \|", text.replace("\\", ""))


def test_attacks_are_listed_and_text_of_the_record_stays_text():
    record = made_record("esd", 0, {"ua": 0.5})
    score = record.scores["ua"].model_copy(update={"axis": "robustness"})
    record = record.model_copy(update={"scores": {"<b>[x](y)": score}})
    lines = list(module._attacks(record))
    assert lines == [r"- \<b\>\[x\]\(y\): 0.5 share"]


def test_a_warm_store_is_read_and_a_cold_one_made_anew(cli, world, record, monkeypatch, tmp_path):
    calls = []
    real = stages.unlearn
    monkeypatch.setattr(module, "unlearn", lambda *given: calls.append(1) or real(*given))
    assert cli("export", record, "warm", "--pretrained", world, "--device", "cpu").code == 0
    assert calls == []
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cold"))
    assert cli("export", record, "cold-model", "--pretrained", world, "--device", "cpu").code == 0
    assert calls == [1]
    one, other = (
        Path(name, "unet/diffusion_pytorch_model.safetensors").read_bytes() for name in ("warm", "cold-model")
    )
    assert one == other


def refused(cli, *words):
    said = cli("export", *words, "--device", "cpu")
    assert said.code == 2
    assert len(said.errors) == 1
    return said.errors[0]


def test_what_cannot_be_exported_is_refused_in_one_line(cli, world, record, monkeypatch):
    use = ("--pretrained", world)
    assert "no record at nowhere.json" in refused(cli, "nowhere.json", "x")
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    assert "full is there already" in refused(cli, record, "full", *use)
    assert Path("full/file").read_text() == "mine"
    Path("file").write_text("mine")
    assert "file is there already" in refused(cli, record, "file", *use)
    assert "cannot write to file/x" in refused(cli, record, "file/x", *use)
    assert cli(*RUN, *use, "--method", "sld").code == 0
    sld = next(Path("here").rglob("sld/seed-0.json"))
    assert "sld acts while images are drawn" in refused(cli, sld, "x", *use)
    wrong = read(record)
    wrong = wrong.model_copy(update={"weights": {**wrong.weights, "unlearned": "0" * 64}})
    write(wrong, Path("other.json"))
    assert "than the record's, 000000000000: `unlearnbench verify` says what differs" in refused(
        cli, "other.json", "x", *use
    )
    skipped = wrong.model_copy(
        update={"status": "skipped", "reason": "no", "scores": {}, "weights": {**wrong.weights, "unlearned": None}}
    )
    write(skipped, Path("skipped.json"))
    assert "a run that skipped (no): there are no weights" in refused(cli, "skipped.json", "x", *use)
    assert not Path("x").exists()
    monkeypatch.setattr(module, "card", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("export", record, "x", *use, "--device", "cpu")
    assert not Path("x").exists()
    assert [path.name for path in Path().iterdir() if path.name.startswith(".new-")] == []


def test_a_class_conditional_model_has_no_pipeline(cli, small, tmp_path):
    file = write_nudge(tmp_path)
    assert cli("run", "--method", file, "--out", "there", "--device", "cpu").code == 0
    path = next(Path("there").rglob("nudge/seed-0.json"))
    assert "digits-class has no text-to-image model" in refused(cli, path, "x", "--method", file)
    shutil.rmtree("there")
