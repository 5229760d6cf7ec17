"""The measurement of speed at real size runs on a tiny network here, and at full size where there is a GPU."""

import pytest
import torch

from tests import throughput


def test_the_same_path_on_a_tiny_network(monkeypatch):
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    rows = throughput.measured("tiny", "cpu", batch=2, steps=2)
    assert [what.partition(":")[0] for what, _, _ in rows] == [
        "fp32, unlearnbench",
        "fp32, StableDiffusionPipeline",
        "ESD-x",
        "EraseDiff",
        "SalUn",
    ]
    assert all(took > 0 for _, took, _ in rows)
    text = throughput.page(rows, "tiny", "cpu", 2)
    assert text.count("| fp32, ") == 2
    assert f"{2 / rows[0][1]:.2f}" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_at_full_size_sampling_keeps_up_with_the_pipeline():
    rows = dict((what, took) for what, took, _ in throughput.measured("sd14", "cuda", batch=4, steps=10))
    for kind in ("fp32", "fp16"):
        ours, theirs = (
            next(took for what, took in rows.items() if what.startswith(f"{kind}, {name}"))
            for name in ("unlearnbench", "StableDiffusionPipeline")
        )
        assert ours < 1.2 * theirs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_latents_on_cuda_are_those_of_the_cpu(sd):
    from unlearnbench.scheduled import Scheduled

    sampler = Scheduled(10, guidance=3.0)
    with torch.inference_mode():
        y = sd.tokens(["a photo of a cat", "red"])
        here = sd.sample(y, [1, 2], sampler=sampler)
        there = sd.to("cuda").sample(y.to("cuda"), [1, 2], sampler=sampler).cpu()
    torch.testing.assert_close(there, here, atol=1e-3, rtol=0)
