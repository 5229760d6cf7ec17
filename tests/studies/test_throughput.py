"""The measurement of speed at real size runs on a tiny network here, and at full size where there is a GPU."""

import pytest
import torch

from tests.studies import throughput, throughput_cifar


def test_the_same_path_on_a_tiny_network(monkeypatch):
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    rows = list(throughput.measured("tiny", "cpu", batch=2, steps=2))
    assert [row.what.partition(":")[0] for row in rows] == [
        "fp32, unlearnbench",
        "fp32, StableDiffusionPipeline",
        "ESD-x",
        "EraseDiff",
        "SalUn",
    ]
    assert all(row.seconds > 0 for row in rows)
    text = throughput.page(rows, "tiny", "cpu", 2, 2)
    assert text.count("| fp32, ") == 2
    assert f"{2 / rows[0].seconds:.2f}" in text


def test_the_same_path_on_a_narrow_network_for_cifar10(monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr(throughput_cifar, "TRAINED", 1)
    monkeypatch.setattr(throughput_cifar, "CHUNKS", 1)
    monkeypatch.setitem(throughput_cifar.WIDTHS, "cifar10-tiny", 8)
    rows = list(throughput_cifar.measured("cifar10-tiny", "cpu", 2, 2, tmp_path))
    assert [row.what for row in rows] == [
        "sampling and judging, fp32",
        "sampling and judging, plain loop with PNG files",
        "training, by the recipe",
        "training, plain loop",
    ]
    lines = throughput.page(rows, "cifar10-tiny", "cpu", 2, 2).splitlines()
    (ours,) = (line.split("|") for line in lines if "judging, fp32" in line)
    assert float(ours[3]) == pytest.approx(2 / rows[0].seconds, abs=0.006)
    assert float(ours[4]) == pytest.approx(rows[1].seconds / rows[0].seconds, abs=0.006)


@pytest.mark.gpu
@pytest.mark.timing
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_at_full_size_cifar10_is_drawn_and_judged_four_times_as_fast(tmp_path):
    rows = list(throughput_cifar.measured("cifar10", "cuda", 500, 20, tmp_path))
    plain = next(row.seconds for row in rows if row.what.startswith("sampling") and "plain" in row.what)
    assert plain >= 4 * min(row.seconds for row in rows if row.what.startswith("sampling") and "plain" not in row.what)


@pytest.mark.gpu
@pytest.mark.timing
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_at_full_size_sampling_keeps_up_with_the_pipeline():
    rows = {row.what: row.seconds for row in throughput.measured("sd14", "cuda", batch=4, steps=10)}
    for kind in ("fp32", "fp16"):
        ours, theirs = (
            next(took for what, took in rows.items() if what.startswith(f"{kind}, {name}"))
            for name in ("unlearnbench", "StableDiffusionPipeline")
        )
        assert ours < 1.2 * theirs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_latents_on_cuda_are_those_of_the_cpu(sd):
    from unlearnbench.compute.device import exact
    from unlearnbench.diffusion.schedulers import Scheduled

    sampler = Scheduled(10, guidance=3.0)
    with torch.inference_mode(), exact():
        y = sd.tokens(["a photo of a cat", "red"])
        here = sd.sample(y, [1, 2], sampler=sampler)
        there = sd.to("cuda").sample(y.to("cuda"), [1, 2], sampler=sampler).cpu()
    torch.testing.assert_close(there, here, atol=1e-3, rtol=0)
