"""`run --dry-run` before anything was fetched: counts from shapes, in seconds, and a clean exit."""

import dataclasses
import re

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.studies.network_sizes import NETWORKS, clip_tokens, counted, parameters
from tests.support.live_bytes import LiveBytes, sized_like_cuda
from unlearnbench import registry
from unlearnbench.compute.precision import Resources
from unlearnbench.data.prompt_sets import prompt_files
from unlearnbench.errors import Unsupported
from unlearnbench.pipeline import dry_run, planning
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.memory import cost_table, smallest_card
from unlearnbench.pipeline.planning import planned_costs, seconds_of_evaluation
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.tasks.sd_nudity import SDNudity


def cell(name, task=SDNudity, resources=None, **settings):
    cls = registry.load_method(name)
    method = cls.configured({**cls.preset("default", task.name), **settings})
    return Cell(method, task(task.default_forget), resources=resources or Resources())


def peak(name, task=SDNudity, precision="fp32", memory=(), **settings):
    return planned_costs(cell(name, task, Resources(precision, memory), **settings)).memory


def test_only_the_model_its_optimiser_and_a_teachers_denoiser_are_there():
    model = cost_table()["model"]["sd-v1-4"]
    assert peak("uce") == 4 * (model["denoiser"] + model["vae"] + model["text_encoders"])
    fixed, each = model["activations"]["fp32"]["plain"]
    taught = peak("uce") + 4 * model["denoiser"] + 3 * 4 * model["parts"]["noxattn"] + fixed + each
    assert peak("esd_u", batch_size=1) == taught


def test_images_that_are_drawn_at_once_count_where_none_is_in_a_graph():
    model = cost_table()["model"]["sd-v1-4"]
    fixed, each = model["drawing"]
    assert peak("concept_prune", batch_size=4) == peak("uce") + fixed + 4 * each
    assert peak("gloce", images=2) == peak("uce") + fixed + 2 * each
    assert peak("saeuron", draw_batch=100) == peak("uce") + fixed + 100 * each


def test_the_features_of_a_batch_of_vectors_count():
    model = cost_table()["model"]["sd-v1-4"]
    copies, _ = cost_table()["method"]["saeuron"]["rows"]
    row = copies * 4 * model["features"]
    own = 4 * 4 * model["parts"]["autoencoder"]
    assert peak("saeuron", batch_size=8192, draw_batch=1) == peak("uce") + own + 8192 * row
    assert peak("saeuron", batch_size=8192, draw_batch=1, memory=("adam8bit",)) < peak("uce") + own + 8192 * row


@pytest.mark.parametrize(("method", "images"), [("finetune", 1), ("salun", 2)])
def test_micro_batches_take_what_one_image_takes(method, images):
    """Of the methods without a teacher, whatever their batch is, and down to the bytes of one image."""
    _, each = cost_table()["model"]["sd-v1-4"]["activations"]["fp32"]["checkpointing"]
    saving = ("checkpointing", "microbatches")
    assert peak(method, memory=saving, batch_size=64) == peak(method, memory=saving, batch_size=8)
    whole = peak(method, memory=saving[:1], batch_size=64)
    assert whole - peak(method, memory=("checkpointing",), batch_size=63) == images * each


def test_where_a_batch_cannot_be_split_micro_batches_are_not_counted():
    with pytest.raises(Unsupported, match=r"--memory microbatches: .* leave it out, or give --set batch_size=1"):
        planned_costs(cell("blindspot", resources=Resources(memory=("microbatches",))))
    assert peak("receler", memory=("microbatches",)) == peak("receler"), "one image needs no splitting"


def test_attention_maps_are_not_saved_by_checkpointing():
    assert peak("mace", memory=("checkpointing",)) == peak("mace")


@pytest.mark.parametrize(
    ("method", "savings"),
    [
        ("esd_u", ()),
        ("finetune", ("checkpointing",)),
        ("selective_amnesia", ("checkpointing", "microbatches")),
        ("blindspot", None),
    ],
)
def test_what_a_card_of_24_gb_takes(method, savings):
    plan = planned_costs(cell(method)).alternatives
    assert plan.savings_for(24) == savings
    if savings:
        assert smallest_card(plan.peaks["fp32", savings]) == 24
        assert smallest_card(plan.peaks["fp32", savings[:-1]]) != 24


def test_each_saving_saves_and_a_mean_costs():
    assert peak("selective_amnesia", precision="bf16") < peak("selective_amnesia")
    for saving in ("adam8bit", "checkpointing", "microbatches"):
        assert peak("selective_amnesia", memory=(saving,)) < peak("selective_amnesia")
    assert peak("selective_amnesia", ema=0.99) > peak("selective_amnesia", ema=None)
    assert peak("selective_amnesia", batch_size=8) < peak("selective_amnesia")


@pytest.mark.parametrize(
    "name", ["sd-v1-4", "sd3.5-medium", "flux.1-dev", "cifar10-class", "digits-class", "digits-text"]
)
def test_the_table_has_the_networks_parameters(name):
    with sized_like_cuda():
        found = parameters(NETWORKS[name](clip_tokens()))
    table = cost_table()["model"][name]
    assert {key: table[key] for key in found} == found


def test_the_table_has_xls_denoiser():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**cost_table()["model"]["sdxl-base-1.0"]["network"])
    assert cost_table()["model"]["sdxl-base-1.0"]["denoiser"] == sum(value.numel() for value in unet.parameters())


@pytest.mark.parametrize("kind", [("fp32", "plain"), ("bf16", "checkpointing")])
@pytest.mark.parametrize("name", ["digits-class", pytest.param("sd-v1-4", marks=pytest.mark.slow)])
def test_the_table_has_what_is_alive_in_a_backward_pass(name, kind):
    precision, how = kind
    found = counted(name, [kind])["activations"][precision][how]
    assert found == pytest.approx(cost_table()["model"][name]["activations"][precision][how], rel=0.02, abs=2**20)


def test_living_bytes_are_those_of_the_tensors_that_are_kept():
    with sized_like_cuda(), LiveBytes() as live:
        kept = torch.zeros(1024)
        gone = torch.zeros(4096)
        view = kept[:10]
        del gone
        assert (live.now, live.peak) == (4096, 4096 + 16384)
        del kept
        assert live.now == 4096, "a view keeps all of it"
        assert view.numel() == 10


def test_every_entry_is_a_method_and_names_settings_that_it_has():
    for name, entry in cost_table()["method"].items():
        fields = registry.load_method(name).configured({}).settings()
        assert {name for term in entry.get("images", ()) for name in term.split("*")} <= set(fields), name


def test_what_stays_in_the_store_is_what_a_method_changes():
    def stored(method, **settings):
        found = planned_costs(cell(method, **settings))
        return found.stored - found.images * 3 * 512**2

    parts = cost_table()["model"]["sd-v1-4"]["parts"]
    assert stored("original") == stored("sld") == 0
    assert stored("uce") == 4 * parts["kv"] == pytest.approx(77e6, rel=0.01)
    assert stored("esd", part="xattn") == 4 * parts["xattn"] and stored("erasediff", part="full") == 4 * parts["full"]
    assert stored("advunlearn") == 4 * parts["text_encoder"]
    assert stored("receler") == 0, "a few megabytes of adapters are not counted"


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
    assert re.search(r"^ esd +2 .* 1,000 .* GiB +≥ 12 GB", said.out, re.M)
    assert re.search(r"^ erasediff +2 .* 160 .* GiB +≥ 40 GB", said.out, re.M)
    assert re.search(r"download: [\d.]+ GiB in \d+ files", said.out)
    assert "2,000 training images" in said.out and "disk: " in said.out
    assert "(1 of 2)" not in said.out, "one table at 80 columns"
    assert not fresh_store.exists() or not any(fresh_store.iterdir())
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("task", ["cifar10-class", "sd-object", "sd-style", "sd-unlearncanvas", "sdxl-nudity"])
def test_any_task_is_planned_without_its_files(task, cli, fresh_store):
    said = cli("run", "--task", task, "--method", "erasediff", "--dry-run")
    assert said.code == 0 and re.search(r"^ erasediff +1 ", said.out, re.M) and "download: " in said.out


def test_what_the_table_does_not_know_is_no_number(cli, fresh_store):
    said = cli("run", "--task", "sd-nudity", "--method", "esd_u", "--set", "part=text", "--dry-run")
    assert said.code == 0 and re.search(r"^ esd_u .* — +— *$", said.out, re.M)
    assert "— means not counted: esd_u" in said.out


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
    assert re.search(r"^ esd +1 .* GiB +≥ 12 GB", said.out, re.M)
    assert "not tried: the jobs take a GPU, and this machine has none" in said.out
    said = cli(*words, "esd", "--task", "digits-text", "--device", "cuda")
    assert said.code == 0 and re.search(r"^ esd +1 .* MiB +≥ 12 GB", said.out, re.M)


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


def savings_of(cli_words, method="erasediff"):
    """The savings of a method's cell for these fields of a request."""
    request = RunRequest(task="sd-nudity", method=[method], **cli_words)
    (spec,) = (spec for spec in request.cells("cpu").asked if spec.method == method)
    return spec.memory


@pytest.mark.parametrize(
    ("words", "method", "savings"),
    [
        ({}, "erasediff", ("checkpointing",)),
        ({}, "esd_u", ()),
        ({"memory": "none"}, "erasediff", ()),
        ({"memory": "slices"}, "erasediff", ("slices",)),
        ({"protocol": "smoke"}, "erasediff", ()),
        ({"settings": {"batch_size": 1}}, "erasediff", ()),
    ],
)
def test_a_run_takes_checkpointing_where_it_needs_it_and_nothing_was_asked(fresh_store, words, method, savings):
    assert savings_of(words, method) == savings


def test_small_models_train_without(fresh_store):
    request = RunRequest(task="digits-text", method=["erasediff", "salun"])
    assert {spec.memory for spec in request.cells("cpu").asked} == {()}


def test_images_do_not_depend_on_how_gradients_are_kept():
    """So that the original's are not drawn again for a method that trains with checkpointing."""
    saving = Resources("bf16", ("checkpointing", "microbatches", "slices"))
    assert saving.named(drawing=True) == {"precision": "bf16", "memory": ["slices"]}
    assert saving.named()["memory"] == ["checkpointing", "microbatches", "slices"]


def test_list_shows_memory_by_saving_and_what_24_gb_take(cli, monkeypatch):
    from unlearnbench import cli as module

    monkeypatch.setattr(module.out, "_width", 88)
    said = cli("list", "--task", "sd-nudity")
    assert said.code == 0, said.err
    found = re.search(
        r"^ selective_amnesia +[\d.]+ GiB +([\d.]+) GiB +([\d.]+) GiB +([\d.]+) GiB .* \+ micro *$", said.out, re.M
    )
    assert float(found[1]) > 24 > float(found[2]) > float(found[3])
    assert re.search(r"^ blindspot .* — +— .* too big *$", said.out, re.M)


@pytest.mark.parametrize(("precision", "seconds"), [("fp32", 2), ("fp16", 1)])
def test_drawing_training_images_is_in_the_time_and_in_fp32(cli, fresh_store, monkeypatch, precision, seconds):
    card = dry_run.Room(24 * 2**30, "1 x card", 2**50)
    monkeypatch.setattr(dry_run, "room", lambda device, store: card)
    monkeypatch.setattr("unlearnbench.compute.device.pick_device", lambda wanted: "cuda")
    speed = {"fp32": 2.0, "fp16": 1.0}
    monkeypatch.setattr(planning, "seconds_of_evaluation", lambda cell, device: speed[cell.resources.precision])
    words = ("run", "--task", "sd-nudity", "--method", "erasediff", "--dry-run", "--launcher", "slurm", "--gpus", "1")
    monkeypatch.setattr("unlearnbench.launch.options.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name, *rest, **more: name)
    said = cli(*words, "--precision", precision)
    assert said.code == 0, said.err
    found = planned_costs(cell("erasediff"))
    total = 2 * found.evaluations * seconds + found.training_evaluations * 2  # the original's images too
    assert f"about {total / 3600:.1f} h on one" in said.out


def test_this_machines_card_is_compared(cli, fresh_store, monkeypatch):
    card = dry_run.Room(24 * 2**30, "1 x card", 2**50)
    monkeypatch.setattr(dry_run, "room", lambda device, store: card)
    monkeypatch.setattr("unlearnbench.compute.device.pick_device", lambda wanted: "cuda")
    monkeypatch.setattr(planning, "seconds_of_evaluation", lambda cell, device: 0.1)
    said = cli(
        "run", "--task", "sd-nudity", "--method", "esd_u,selective_amnesia,blindspot", "--dry-run", "--device", "cpu"
    )
    assert "esd_u, selective_amnesia with --memory checkpointing,microbatches" in said.out
    assert "no saving is enough for blindspot" in said.out
