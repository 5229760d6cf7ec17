"""Sampling on the card: every sampler and guidance rule gives the CPU's images and reads nothing within its loop."""

import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from tests.support.pretended_cuda import PretendedCuda
from unlearnbench.compute.precision import Resources
from unlearnbench.diffusion.dropout import dropping
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.diffusion.schedulers import Repeating, Scheduled
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.models.ddpm import ConditionalDDPM

SEEDS, STEPS = [3, 4], 5
SAMPLERS = [
    Sampler(STEPS, guidance=2.0),
    Sampler(STEPS, eta=1.0),
    Scheduled(STEPS, guidance=2.0),
    Scheduled(STEPS, eta=1.0, guidance=1.0),
    Scheduled(STEPS, scheduler="lms"),
    Scheduled(STEPS, scheduler="dpm++"),
    Repeating(STEPS),
]


def both(model, y, **more):
    """Images of the CPU and of the card, and what the host read while the card drew."""
    with torch.inference_mode():
        here = model.sample(y, SEEDS, **more)
        with PretendedCuda() as card:
            there, asked = copy.deepcopy(model).to("cuda"), y.to("cuda")
            moved = {
                name: value.to("cuda") if isinstance(value, torch.Tensor) else value for name, value in more.items()
            }
            if "start" in more:
                moved["start"] = (more["start"][0].to("cuda"), more["start"][1])
            card.waits.clear()
            x = there.sample(asked, SEEDS, **moved)
            assert x.device.type == "cuda"
            waits = list(card.waits)
            return here, x.cpu(), [wait for wait in waits if wait.kind == "read"], waits


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_images_are_those_of_the_cpu_and_steps_wait_for_nothing(sd, sampler):
    here, there, reads, waits = both(sd, sd.tokens(["a photo of a cat", "red"]), sampler=sampler)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-6)
    assert not reads
    assert len(waits) < STEPS, "uploads are before the loop"


def test_images_that_start_or_stop_on_the_way(sd):
    y, until = sd.tokens(["a photo of a cat", "red"]), torch.tensor([0, 2])
    for sampler in (Sampler(STEPS), Scheduled(STEPS)):
        here, there, reads, _ = both(sd, y, sampler=sampler, until=until)
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6)
        assert len(reads) == 1, "the step at which the last image stops"
        here, there, *_ = both(sd, y, sampler=sampler, start=(torch.ones(2, 4, 8, 8), 500))
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "model", [lambda: ClassUNet(classes=3, size=8), lambda: ConditionalDDPM(width=32)], ids=["ClassUNet", "CIFAR-10"]
)
def test_models_of_class_labels(model):
    torch.manual_seed(0)
    here, there, reads, _ = both(model().eval(), torch.tensor([0, 2]), sampler=Sampler(2, eta=1.0, guidance=2.0))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
    assert not reads


def test_dropout_that_stays_on_while_images_are_drawn(sd):
    for block in sd.unet.modules():
        if isinstance(block, torch.nn.Dropout):
            block.p = 0.5
    y, drawn = sd.tokens(["a photo of a cat", "red"]), []
    with torch.inference_mode():
        with dropping(sd, SEEDS):
            drawn.append(sd.sample(y, SEEDS, sampler=Scheduled(2)))
        with PretendedCuda():
            there = copy.deepcopy(sd).to("cuda")
            with dropping(there, SEEDS):
                drawn.append(there.sample(y.to("cuda"), SEEDS, sampler=Scheduled(2)).cpu())
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_images_in_half_precision_are_near_those_in_float32(sd, precision):
    with PretendedCuda(), torch.inference_mode():
        model, y = sd.to("cuda"), sd.tokens(["a photo of a cat", "red"])
        plain = model.sample(y, SEEDS, sampler=Scheduled(2))
        with Resources(precision).sampling("cuda"):
            inner = model.unet(torch.ones_like(plain), torch.tensor(3, device="cuda"), model.embed(y).states).sample
            rough = model.sample(y, SEEDS, sampler=Scheduled(2))
        assert inner.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision] and rough.dtype == plain.dtype
        assert F.cosine_similarity(plain.flatten(), rough.flatten(), dim=0) > 0.99
