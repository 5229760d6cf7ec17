"""`run --dry-run` before anything was fetched: counts from shapes, in seconds, and a clean exit."""

import dataclasses
import re

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from unlearnbench import registry
from unlearnbench.compute.precision import Resources
from unlearnbench.data.prompt_sets import prompt_files
from unlearnbench.errors import Unsupported
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.pipeline import planning
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.planning import cost_table, planned_costs, seconds_of_evaluation, smallest_card
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sdxl_nudity import SDXLNudity

COUNTED = {
    # Peaks in GiB, counted with fake tensors of the real sizes over every allocation of an update.
    ("uce", SDNudity): 10.2,
    ("esd", SDNudity): 16,
    ("advunlearn", SDNudity): 23,
    ("esd_u", SDNudity): 26,
    ("sfron", SDNudity): 33,
    ("erasediff", SDNudity): 50,
    ("salun", SDNudity): 51,
    ("scissorhands", SDNudity): 76,
    ("selective_amnesia", SDNudity): 83,
    ("uce", SDXLNudity): 28.1,
    ("esd_u", SDXLNudity): 76,
}


def cell(name, task=SDNudity, resources=None, **settings):
    cls = registry.load_method(name)
    method = cls.configured({**cls.preset("default", task.name), **settings})
    return Cell(method, task(task.default_forget), resources=resources or Resources())


@pytest.mark.parametrize(("name", "task"), COUNTED)
def test_the_formula_gives_the_peaks_that_were_counted_tensor_by_tensor(name, task):
    assert planned_costs(cell(name, task)).memory / 2**30 == pytest.approx(COUNTED[name, task], rel=0.06)


@pytest.mark.parametrize(("task", "counted"), [(SDNudity, 28), (SDXLNudity, 76)])
def test_checkpointing_saves_what_was_counted(task, counted):
    whole = planned_costs(cell("erasediff", task))
    saving = planned_costs(cell("erasediff", task, Resources(memory=("checkpointing",))))
    assert saving.memory == whole.checkpointed and saving.checkpointed is None
    assert saving.memory / 2**30 == pytest.approx(counted, rel=0.06)


def test_each_saving_saves_and_a_mean_costs():
    def peak(*memory, precision="fp32", **settings):
        return planned_costs(cell("selective_amnesia", resources=Resources(precision, memory), **settings)).memory

    assert peak(precision="bf16") < peak()
    assert peak("adam8bit") < peak()
    assert peak(ema=0.99) > peak(ema=None)
    assert peak(batch_size=8) < peak()


@pytest.mark.parametrize("name", ["sd-v1-4", "sdxl-base-1.0"])
def test_the_table_has_the_networks_own_numbers_of_parameters(name):
    model = cost_table()["model"][name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**model["network"])
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
    sizes = {key: value.numel() for key, value in unet.named_parameters()}
    skipped = ("attn2", "time_embed")
    ends = ("conv_norm_out.", "conv_out.")
    parts = {
        "full": sum(sizes.values()),
        "xattn": sum(n for key, n in sizes.items() if "attn2" in key),
        "kv": sum(n for key, n in sizes.items() if ".attn2.to_k." in key or ".attn2.to_v." in key),
        "noxattn": sum(
            n for key, n in sizes.items() if not key.startswith(ends) and not any(part in key for part in skipped)
        ),
    }
    assert {key: model["parts"][key] for key in parts} == parts
    assert model["unet"] == parts["full"]
    assert model["vae"] == sum(value.numel() for value in vae.parameters())


def test_the_table_has_the_papers_cifar_networks_parameters():
    with torch.device("meta"):
        network = ConditionalDDPM(10, 32, 128)
    assert cost_table()["model"]["cifar10-class"]["unet"] == sum(value.numel() for value in network.parameters())


def test_every_entry_is_a_method_and_names_settings_that_it_has():
    for name, entry in cost_table()["method"].items():
        fields = registry.load_method(name).configured({}).settings()
        assert set(entry.get("images", ())) <= set(fields), name


def test_what_stays_in_the_store_is_what_a_method_changes():
    def stored(method, **settings):
        found = planned_costs(cell(method, **settings))
        return found.stored - found.images * 3 * 512**2

    parts = cost_table()["model"]["sd-v1-4"]["parts"]
    assert stored("original") == stored("sld") == 0
    assert stored("uce") == 4 * parts["kv"] == pytest.approx(77e6, rel=0.01)
    assert stored("esd", part="xattn") == 4 * parts["xattn"] and stored("erasediff", part="full") == 4 * parts["full"]
    assert stored("advunlearn") == 4 * parts["text_encoder"]
    assert stored("receler") > 4 * parts["full"], "of a method that is not in the table, the whole model"


def test_images_steps_and_training_images_are_counted_without_data():
    found = planned_costs(cell("erasediff"))
    protocol = SDNudity.protocols["default"]
    assert found.images == protocol.forget_images + protocol.retain_images + protocol.benign_images
    assert found.evaluations == found.images * 50 * 2
    assert (found.training_images, found.training_evaluations) == (2000, 2000 * 50 * 2)
    assert found.steps == 160
    assert planned_costs(cell("esd")).training_images == 0
    assert planned_costs(cell("esd", Cifar10Class)).images == 500 + 9 * 1000
    with pytest.raises(Unsupported, match="training recipe"):
        planned_costs(cell("retrain"))


def test_cards():
    assert smallest_card(11 * 2**30) == 12
    assert smallest_card(12 * 2**30) == 16, "CUDA takes some itself"
    assert smallest_card(81 * 2**30) is None


def test_nothing_fetched_exits_with_0_and_one_line_for_each_method(cli, fresh_store, tmp_path, monkeypatch):
    from unlearnbench import cli as module

    monkeypatch.setattr(module.out, "_width", 80)
    said = cli("run", "--task", "sd-nudity", "--method", "esd,erasediff,salun", "--seeds", "0-1", "--dry-run")
    assert said.code == 0, said.err
    assert re.search(r"^ esd +2 .* 1,000 .* GiB +≥ 24 GB", said.out, re.M)
    assert re.search(r"^ erasediff +2 .* 160 .* GiB +≥ 80 GB", said.out, re.M)
    assert re.search(r"download: [\d.]+ GiB in \d+ files", said.out)
    assert "2,000 training images" in said.out and "disk: " in said.out
    assert "(1 of 2)" not in said.out, "one table at 80 columns"
    assert not fresh_store.exists() or not any(fresh_store.iterdir())
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("task", ["cifar10-class", "sd-object", "sd-style", "sdxl-nudity"])
def test_any_task_is_planned_without_its_files(task, cli, fresh_store):
    said = cli("run", "--task", task, "--method", "erasediff", "--dry-run")
    assert said.code == 0 and re.search(r"^ erasediff +1 ", said.out, re.M) and "download: " in said.out


def test_what_the_table_does_not_know_is_no_number(cli, fresh_store):
    said = cli("run", "--task", "sd-nudity", "--method", "spm", "--dry-run")
    assert said.code == 0 and re.search(r"^ spm .* — +— *$", said.out, re.M)
    assert "— means not counted: spm" in said.out


def test_an_unsupported_method_is_named_and_the_others_are_planned(cli, fresh_store):
    said = cli("run", "--task", "sd-nudity", "--method", "retrain,esd", "--dry-run")
    assert said.code == 1 and re.search(r"^ esd +1 ", said.out, re.M)
    assert "retrain needs training recipe" in said.err


def test_random_weights_are_timed_in_the_tables_shape(monkeypatch):
    shape = {"sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 4, "block_out_channels": [32, 64]}
    shape |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "layers_per_block": 1}
    shape |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    monkeypatch.setattr(planning, "model_costs", lambda task: {"network": shape})
    before = torch.random.get_rng_state()
    found = seconds_of_evaluation(cell("esd"), "cpu", repeats=1)
    assert 0 < found < 5
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_card_is_planned_for_where_there_is_none(cli, fresh_store):
    """A laptop may ask for bf16, which it could not run itself; where everything is there to try, it may not."""
    words = ("run", "--method", "erasediff", "--precision", "bf16", "--dry-run", "--device", "cpu")
    said = cli(*words, "--task", "sd-nudity")
    assert said.code == 0 and "bf16" in said.out
    gib = float(re.search(r"^ erasediff .* ([\d.]+) GiB", said.out, re.M)[1])
    assert gib < planned_costs(cell("erasediff")).memory / 2**30
    tried = cli(*words, "--task", "digits-class")
    assert tried.code == 2 and "bf16 is for CUDA" in tried.err


def test_own_prompts_count(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt\na\nb\nc\n")
    files = prompt_files([f"forget={tmp_path}/mine.csv"], takes_prompts=True, task="sd-nudity")
    without = cell("esd")
    assert planned_costs(dataclasses.replace(without, prompts=files)).images == planned_costs(without).images + 3


def test_a_missing_folder_of_a_task_that_fetches_nothing_is_an_error(cli, fresh_store):
    said = cli("run", "--task", "digits-text", "--method", "uce", "--pretrained", "nowhere", "--dry-run")
    assert said.code == 2 and "nowhere" in said.err


def test_jobs_on_cards_elsewhere_are_planned_on_a_machine_without_one(cli, fresh_store, monkeypatch, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("unlearnbench.launch.options.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("run", "--launcher", "slurm", "--dry-run", "--method")
    said = cli(*words, "esd", "--task", "sd-nudity", "--gpus", "1")
    assert said.code == 0, said.err
    assert re.search(r"^ esd +1 .* GiB +≥ 24 GB", said.out, re.M)
    assert "not tried: the jobs take a GPU, and this machine has none" in said.out
    said = cli(*words, "esd", "--task", "digits-text", "--device", "cuda")
    assert (
        said.code == 0
        and "esd (no shape of this model in the table)" in said.out
        and "not counted for this model" in said.out
    )


def test_a_card_that_this_process_would_need_is_missed(cli, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = cli("run", "--task", "sd-nudity", "--method", "esd", "--device", "cuda", "--dry-run")
    assert said.code == 2 and "--device cuda" in said.err


def test_a_setting_whose_shape_is_not_counted_is_named(cli, fresh_store):
    said = cli("run", "--task", "sd-nudity", "--method", "esd_u", "--preset", "released", "--dry-run")
    assert said.code == 0 and "esd_u (no shape of part layers in the table)" in said.out
    assert "a machine with a GPU and the task's files measures it" in said.out


@pytest.mark.parametrize(
    ("task", "words", "counted"),
    [
        ("sd-nudity", ("p4d,relearn",), "2 on 1 run"),
        (
            "sd-nudity",
            ("p4d", "--budget", "10"),
            "1 on 1 run, each of 20 targets at most; 200 model evaluations to search, at most",
        ),
        ("cifar10-class", ("p4d,relearn", "--seeds", "0-1"), "2 on 2 runs"),  # class labels have no prompts to search
    ],
)
def test_attacks_are_told_apart_from_what_is_counted(cli, fresh_store, task, words, counted):
    said = cli("run", "--task", task, "--method", "finetune", "--dry-run", "--attacks", *words)
    assert said.code == 0, said.err
    assert f"attacks are not counted: {counted}" in said.out


def test_room_that_is_missing_is_told_in_numbers(cli, fresh_store, monkeypatch):
    usage = type("Usage", (), {"free": 3 * 2**30})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    said = cli("run", "--task", "sd-nudity", "--method", "esd", "--dry-run")
    assert re.search(r"not enough disk space: [\d.]+ GiB needed, 3.0 GiB free: free [\d.]+ GiB", said.err)


def test_the_original_that_is_also_asked_for_counts_once(cli, fresh_store):
    said = cli("run", "--task", "sd-nudity", "--method", "original,esd", "--dry-run")
    assert re.search(r"^ original +1 ", said.out, re.M)
