"""What ships for digits-text: a diffusers folder that is whole, small and told apart from a damaged one."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pandas as pd
import pytest
import torch

from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.hashing import state_hash
from unlearnbench.judges.coloured_digits import ColouredDigits
from unlearnbench.models import miniature
from unlearnbench.records.schema import read_record
from unlearnbench.reporting import Stopped
from unlearnbench.storage.weights import load_checked, load_state, read_manifest
from unlearnbench.tasks import digits_text
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.verification.selfcheck import check_concept, failed

SHIPPED = DigitsText("seven").folder
RUN = ("run", "--task", "digits-text", "--protocol", "smoke", "--device", "cpu", "--results", "here")
WEIGHTS = ("judge.safetensors", *miniature.FILES.values())
shipped = pytest.mark.skipif(not (SHIPPED / "manifest.json").is_file(), reason="no weights of digits-text are shipped")


# ---- the folder ----------------------------------------------------------------------------------------------------


@shipped
def test_the_folder_is_small_and_matches_its_manifest():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6
    weights = {str(file.relative_to(SHIPPED)) for file in files if file.suffix not in (".json", ".txt")}
    assert weights == set(WEIGHTS) == set(read_manifest(SHIPPED)["hashes"])
    for name in weights:
        assert load_checked(SHIPPED, name)[1] == state_hash(load_state(SHIPPED / name))
    assert read_manifest(SHIPPED)["recipe"] == {**miniature.RECIPE, "judge": float(ColouredDigits.version)}


@shipped
def test_configurations_are_those_of_the_recipe(tmp_path):
    miniature.write_configuration(tmp_path, digits_text.vocabulary())
    for path in tmp_path.rglob("*.json"):
        ours, theirs = (json.loads(file.read_text()) for file in (path, SHIPPED / path.relative_to(tmp_path)))
        for values in (ours, theirs):  # versions of the libraries that wrote them
            for key in [key for key in values if "version" in key]:
                del values[key]
        assert ours == theirs, path.name


@shipped
def test_diffusers_own_pipeline_samples_as_the_adapter_does():
    from diffusers import StableDiffusionPipeline

    task = DigitsText("seven", protocol="smoke")
    pipeline = StableDiffusionPipeline.from_pretrained(
        SHIPPED, torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    model, prompts, seeds = task.pretrained().eval(), ["a red seven", "blue"], [3, 4]
    steps, guidance = task.protocol.sampler.steps, task.protocol.sampler.guidance
    with torch.no_grad():
        theirs = pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=gaussian_noise(seeds, START, (4, 8, 8)),
            output_type="pt",
        ).images
        ours = model.decode(model.sample(task.tokens(prompts), seeds))
    assert ours.std() > 0.1
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-4)


@shipped
def test_the_original_is_the_manifests_in_single_precision():
    task = DigitsText("seven", protocol="smoke")
    model = task.pretrained()
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.sampler == task.protocol.sampler
    unet = {name: value.half() for name, value in model.unet.state_dict().items()}
    assert state_hash(unet) == read_manifest(SHIPPED)["hashes"][miniature.FILES["unet"]]
    assert task.model_identity().seed == read_manifest(SHIPPED)["seed"]


@shipped
@pytest.mark.parametrize(
    "forget", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("seven", "red")), "seven+red"]
)
def test_the_concept_means_the_same_everywhere(forget):
    assert failed(check_concept(DigitsText(forget))) == []


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "copy")


@shipped
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_weight_file_is_refused_in_one_line(cli, tmp_path, copied, name, how):
    path = copied / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data if how == "changed" else data[:1000])
    said = cli(*RUN, "--method", "uce", "--pretrained", copied)
    (line,) = said.errors
    assert said.code == 2 and str(path) in line
    assert {"changed": "is damaged", "cut": "not a readable safetensors", "gone": "no weights at"}[how] in line
    assert not list(tmp_path.glob("here/**/*.json"))


@shipped
@pytest.mark.parametrize("name", ["manifest.json", "model_index.json", "tokenizer", "scheduler", "unet/config.json"])
def test_a_folder_that_lacks_a_part_is_refused_in_one_line(cli, copied, name):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = cli(*RUN, "--method", "uce", "--pretrained", copied)
    (line,) = said.errors
    assert said.code == 2 and str(copied) in line and "Traceback" not in said.err


# ---- controls ------------------------------------------------------------------------------------------------------


@shipped
def test_controls_run_on_it(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "STEPS", 3)
    said = cli(*RUN, "--forget", "red+seven", "--method", "retrain,destroy,prompt_filter")
    assert said.code == 0, said.err
    folder = tmp_path / "here/digits-text/smoke/seven+red"
    records = {path.parent.name: read_record(path) for path in folder.glob("*/seed-0.json")}
    assert set(records) == {"original", "retrain", "destroy", "prompt_filter"}
    assert {record.status for record in records.values()} <= {"ok", "unreliable"}
    unlearned = {name: record.weights["unlearned"] for name, record in records.items()}
    assert unlearned["prompt_filter"] == unlearned["original"]
    assert len(set(unlearned.values())) == 3
    assert records["destroy"].scores["ra"].value <= 0.2 < records["original"].scores["ra"].value
    images = {name: pd.read_parquet(folder / name / "seed-0.parquet") for name in records}
    for name in ("group", "prompt", "label", "other", "seed"):
        assert all(table[name].equals(images["original"][name]) for table in images.values())
    kept = images["original"].group.isin(["retain", "neighbours"])
    filtered = images["prompt_filter"]
    assert filtered[kept].p_asked.equals(images["original"][kept].p_asked)
    assert (filtered[~kept].p_asked != images["original"][~kept].p_asked).mean() > 0.9
    assert cli("validate", "here").code == 0


@shipped
def test_retraining_leaves_the_autoencoder_and_sees_nothing_of_the_concept(monkeypatch):
    monkeypatch.setattr(miniature, "STEPS", 2)
    task, seen = DigitsText("seven"), []
    stream = task._stream
    monkeypatch.setattr(task, "_stream", lambda *words: (seen.append(batch) or batch for batch in stream(*words)))
    model, original = task.train(1, "retain"), task.pretrained()
    assert state_hash(model.vae.state_dict()) == state_hash(original.vae.state_dict())
    assert seen and not any(task.forgotten(batch.y).any() for batch in seen)
    for part in ("unet", "text_encoders"):
        trained, fresh = (getattr(each, part).state_dict() for each in (model, task.architecture(1)))
        assert all(not torch.equal(trained[name], fresh[name]) for name in list(trained)[:3])


# ---- making it anew ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_makes_a_whole_folder_and_goes_on_after_a_stop(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "STEPS", 2)
    monkeypatch.setattr(miniature, "VAE_STEPS", 2)
    monkeypatch.setattr(digits_text, "train_judge", partial(digits_text.train_judge, steps=2))
    out, train = tmp_path / "made", miniature.train_miniature

    def stopped(*words):
        raise Stopped

    monkeypatch.setattr(miniature, "train_miniature", stopped)
    said = cli("pretrain", "--task", "digits-text", "--out", out, "--device", "cpu")
    assert said.code == 130 and "run the same command again" in said.err
    assert set(read_manifest(out)["hashes"]) == {"judge.safetensors", miniature.FILES["vae"]}
    before = {name: (out / name).stat().st_mtime_ns for name in read_manifest(out)["hashes"]}

    monkeypatch.setattr(miniature, "train_miniature", train)
    said = cli("pretrain", "--task", "digits-text", "--out", out, "--device", "cpu")
    assert said.code == 0, said.err
    assert len([line for line in said.out.splitlines() if "judged right" in line]) == 6
    assert all((out / name).stat().st_mtime_ns == then for name, then in before.items())
    assert set(read_manifest(out)["hashes"]) == set(WEIGHTS)
    task = DigitsText("seven", protocol="smoke", weights=out)
    assert task.pretrained().loss(next(task.batches(1, 4, "forget"))).isfinite()
    said = cli(*RUN, "--method", "uce", "--pretrained", out)
    assert said.code == 0, said.err

    task.judge()
    again = DigitsText("seven", weights=out)
    again.pretrain(out, seed=1)
    assert again.judge().hash == read_manifest(out)["hashes"]["judge.safetensors"]
    assert torch.equal(again.data("both").x0[:9], digits_text.latents.__wrapped__("train", out)[:9])
