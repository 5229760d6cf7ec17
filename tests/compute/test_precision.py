"""Precision and memory savings: refused where they cannot be, the same results where they must be, named in records."""

import sys
import weakref
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.small_world import CHUNK, run_cell, write_method, write_nudge
from unlearnbench import Batch, minimise, registry, training
from unlearnbench.compute import precision as resources
from unlearnbench.compute.device import exact, numerics, without_tf32
from unlearnbench.compute.precision import Resources
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import UserError
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.pipeline import cell
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.records.folder import load_all
from unlearnbench.tasks.digits_class import DigitsClass


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fp8", [], "cuda"), "unknown precision 'fp8'"),
        (("bf16", [], "cpu"), "--precision bf16 is for CUDA"),
        (("fp32", ["less"], "cpu"), "unknown memory saving 'less'"),
        (("fp32", ["adam8bit"], "cpu"), "--memory adam8bit is for CUDA"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, says):
    with pytest.raises(UserError, match=says):
        Resources.checked(*words)


def test_eight_bit_adam_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bitsandbytes: pip install 'unlearnbench\[cuda\]'"):
        Resources.checked("fp32", ["adam8bit"], "cuda")
    monkeypatch.setattr(resources, "find_spec", lambda name: object())
    assert Resources.checked("bf16", ["slices", "adam8bit", "slices"], "cuda").named() == {
        "precision": "bf16",
        "memory": ["adam8bit", "slices"],
    }


def test_the_default_is_not_named():
    assert Resources.checked("fp32", [], "cpu").named() == {}


@pytest.mark.parametrize(("name", "made"), [("adam", "Adam8bit"), ("adamw", "AdamW8bit"), ("sgd", None)])
def test_eight_bits_are_for_adam_within_a_run_alone(monkeypatch, name, made):
    seen = []

    def fake(kind, base):
        class Fake(base):
            def __init__(self, *args, **settings):
                seen.append(kind)
                super().__init__(*args, **settings)

        return Fake

    module = ModuleType("bitsandbytes")
    module.optim = SimpleNamespace(
        Adam8bit=fake("Adam8bit", torch.optim.Adam), AdamW8bit=fake("AdamW8bit", torch.optim.AdamW)
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    value = {"w": nn.Parameter(torch.ones(2))}
    with Resources(memory=("adam8bit",)).training("cpu"):
        minimise([value["w"].square().sum()], value, 0.1, optimiser=name)
    assert seen == ([made] if made else [])
    assert (value["w"] < 1).all()
    minimise([value["w"].square().sum()], value, 0.1, optimiser=name)
    assert len(seen) == (1 if made else 0), "outside the block Adam is torch's own"


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_fused_adam_takes_the_same_steps(monkeypatch, optimiser):
    """It is taken on CUDA, where it needs no temporary copies; the CPU has one too."""

    def trained():
        torch.manual_seed(0)
        layer, x = nn.Linear(8, 8), torch.randn(16, 8)
        losses = ((layer(x) - 1).square().mean() for _ in range(5))
        minimise(losses, dict(layer.named_parameters()), 0.05, optimiser=optimiser)
        return layer.state_dict()

    plain, chosen = trained(), []
    real = training.OPTIMISERS[optimiser]

    def fused(values, lr, **settings):
        chosen.append(settings)
        return real(values, lr=lr, fused=True)

    monkeypatch.setitem(training.OPTIMISERS, optimiser, fused)
    torch.testing.assert_close(trained(), plain, rtol=1e-6, atol=1e-7)
    assert chosen == [{}], "on the CPU nothing else than before"
    monkeypatch.setitem(training.OPTIMISERS, optimiser, lambda values, lr, **settings: settings)
    assert training._optimiser(optimiser, [SimpleNamespace(is_cuda=True)], 0.1) == {"fused": True}


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_weights_outside_a_mask_stay_to_the_bit(optimiser):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64))
    mask, before = (torch.arange(64) % 2).float(), weight.detach().clone()
    losses = ((weight * torch.randn(64) - 1).square().sum() for _ in range(5))
    minimise(losses, {"w": weight}, 0.05, optimiser=optimiser, mask={"w": mask}, clip=1.0)
    still = weight.detach().eq(before)
    assert still[mask == 0].all() and not still[mask == 1].any()


def test_no_gradient_of_a_step_is_alive_while_the_next_is_computed():
    weight, made, alive = nn.Parameter(torch.ones(3)), [], []

    def stream():
        for _ in range(3):
            alive.append(sum(each() is not None for each in made))
            found = {"w": torch.ones(3)}
            made.append(weakref.ref(found["w"]))
            yield {"w": found.pop("w")}

    minimise(stream(), {"w": weight}, 0.1)
    assert alive == [0, 0, 0]


def test_checkpointed_gradients_are_the_same(sd_folder):
    grads = []
    for saving in ((), ("checkpointing", "slices")):
        model = Resources(memory=saving).equip(load_stable_diffusion(sd_folder))
        assert model.vae.use_slicing == bool(saving)
        assert model.unet.is_gradient_checkpointing == bool(saving)
        y = model.tokens(["a photo of seven", "red"])
        x0 = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
        model.loss(Batch(x0, y), torch.Generator().manual_seed(1)).backward()
        grads.append(torch.cat([value.grad.flatten() for value in model.select("full").values()]))
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads)


def test_microbatches_are_of_one_image_within_a_run_alone():
    with Resources(memory=("microbatches",)).training("cpu"):
        assert training.split_size(3) == 1
    assert training.split_size(3) is None
    with training.splitting(2), Resources().training("cpu"):
        assert training.split_size(3) == 2, "a run that found out how many fit"


def test_bf16_trains_and_samples_under_autocast_and_fp16_samples_only():
    def kind(context):
        with context:
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    for precision, train, draw in (
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
    ):
        chosen = Resources(precision)
        assert kind(chosen.training("cpu")) is train
        assert kind(chosen.sampling("cpu")) is draw


@pytest.mark.parametrize("products", ["highest", "high"])
@pytest.mark.parametrize("block", [without_tf32, exact, lambda: Resources().training("cuda")])
def test_float32_is_never_tf32_whatever_the_process_allows_and_that_is_given_back(block, products):
    torch.set_float32_matmul_precision(products)
    try:
        before = numerics("cuda")["tf32"]
        assert before == ["convolutions", *(["products"] if products == "high" else [])], "torch's default, and more"
        with block():
            assert numerics("cuda")["tf32"] == []
            with exact():
                pass
            assert numerics("cuda")["tf32"] == [], "a judge's block within gives back this one's"
        assert numerics("cuda")["tf32"] == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_settings_that_cannot_be_read_are_one_line():
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):
        pytest.skip("before torch 2.9 there are no other names")
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        with pytest.raises(UserError, match="fp32_precision was changed in this process"), exact():
            pass
    finally:
        products.fp32_precision = before


@pytest.mark.parametrize(
    ("precision", "training", "drawing"),
    [("fp32", None, None), ("bf16", "bfloat16", "bfloat16"), ("fp16", None, "float16")],
)
def test_records_say_what_torch_computes_with(tmp_path, small, monkeypatch, precision, training, drawing):
    from unlearnbench.pipeline.fingerprint import drafted

    chosen = Resources(precision)
    found = chosen.numerics("cpu")
    assert (found["unlearning"], found["sampling"]) == tuple(
        {"autocast": cast, "tf32": None} for cast in (training, drawing)
    )
    unlearning = cell.Cell(registry.load_method(str(write_nudge(tmp_path)))(), DigitsClass("3"), resources=chosen)
    _, facts = unlearn(unlearning)
    assert facts["environment"]["numerics"] == found == drafted(unlearning, {}).environment["numerics"]


def test_a_recipe_that_casts_by_itself_is_in_the_record(tmp_path, small):
    body = "with recipe_autocast('cpu', torch.bfloat16, True):\n    return model"
    head = "from unlearnbench.compute.device import recipe_autocast"
    method = registry.load_method(str(write_method(tmp_path, body, "casting", head=head)))()
    _, facts = unlearn(cell.Cell(method, DigitsClass("3")))
    assert facts["environment"]["numerics"]["unlearning"]["autocast"] == "bfloat16"
    assert facts["environment"]["numerics"]["sampling"]["autocast"] is None


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("inner", [False, True], ids=["minimise", "an autocast of its own"])
def test_every_step_sees_the_weights_that_the_one_before_left(precision, inner):
    """Autocast keeps copies of weights up to the end of the outermost block, unless it is told not to."""
    torch.manual_seed(0)
    layer, x, losses = nn.Linear(8, 8), torch.randn(16, 8), []

    def stream():
        for _ in range(4):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inner or torch.is_autocast_enabled("cpu")):
                loss = (layer(x) - 1).square().mean()
            losses.append(loss.item())
            yield loss

    with Resources(precision).training("cpu"):
        minimise(stream(), dict(layer.named_parameters()), 0.05)
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_shortage_is_known_by_what_libraries_say(error, short):
    assert resources.out_of_memory(error) is short


def test_too_little_memory_is_one_line_that_says_what_would_fit(tmp_path, shared_store, small):
    body = "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 1 GiB')"
    mine = write_method(tmp_path, body, "hungry", fields="batch_size: int = 16")
    with pytest.raises(UserError) as caught:
        run_cell(mine, shared_store, tmp_path / "here")
    line = str(caught.value)
    assert line.startswith(
        "hungry ran out of memory (2.50 GiB more was asked for): --set batch_size=8 needs about half"
    )
    assert "--memory checkpointing,slices" in line
    assert "\n" not in line


def test_too_little_memory_while_drawing(tmp_path, shared_store, small, monkeypatch):
    def fails(*args, **settings):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9999 bytes"
        )

    monkeypatch.setattr(DigitsClass, "to_uint8", fails)
    mine = write_method(tmp_path, "return model", "still")
    with pytest.raises(UserError, match=r"drawing one image ran out of memory \(9999 bytes more was asked for\)"):
        run_cell(mine, tmp_path / "store", tmp_path / "here")


def test_a_chunk_that_does_not_fit_is_drawn_in_parts_and_the_record_says_so(tmp_path, small, monkeypatch, cli):
    mine = write_nudge(tmp_path)
    whole = run_cell(mine, tmp_path / "store", tmp_path / "here")
    real, sizes = Diffusion.sample, []

    def narrow(self, y, seeds, **settings):
        sizes.append(len(seeds))
        if len(seeds) > CHUNK // 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return real(self, y, seeds, **settings)

    monkeypatch.setattr(Diffusion, "sample", narrow)
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "other"))
    said = cli("run", "--method", mine, "--results", "there")
    assert said.code == 0
    (parts,) = (r for r in load_all(tmp_path / "there") if r.method.name == "nudge")
    assert parts.environment["sampling_batch"] == CHUNK // 4
    assert "sampling_batch" not in whole.environment
    assert f"not enough memory for the protocol's batch: sampled {CHUNK // 4} images at a time" in said.err
    assert sizes.count(CHUNK) == 2, "once for each model, not for each chunk"
    for name in ("ua", "ra"):
        assert parts.scores[name].value == pytest.approx(whole.scores[name].value)


def test_savings_are_in_the_key_and_in_the_record(small):
    from unlearnbench.pipeline.fingerprint import drafted

    method, task = registry.load_method("finetune")(), DigitsClass("3")
    plain, saving = (
        drafted(cell.Cell(method, task, resources=chosen), {})
        for chosen in (Resources(), Resources(memory=("slices",)))
    )
    assert plain.key != saving.key
    assert "memory" not in plain.environment
    assert saving.environment["memory"] == ["slices"]
