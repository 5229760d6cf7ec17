"""The compact network: its size, folding without loss, and what methods and attacks ask of any model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearnbench import Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.methods.esd import ESD
from unlearnbench.models.compact_ddpm import CompactDDPM, fold, unfold
from unlearnbench.training import seeded
from unlearnbench.verification.conformance import TinyDigits

TINY = {"size": 8, "widths": (8, 16), "layers": 1, "head": 8, "groups": 4}


def tiny(seed: int = 0) -> CompactDDPM:
    with seeded(seed):
        model = CompactDDPM(**TINY)
    model.sampler = Sampler(steps=2, guidance=2.0)
    return model


def test_it_has_four_million_parameters_and_attention_at_8x8_alone():
    model = CompactDDPM()
    assert sum(value.numel() for value in model.parameters()) == 4_005_516
    assert model.embedding.weight.shape == (11, 256)
    sizes = []
    for name, module in model.named_modules():
        if type(module).__name__ == "Attention":
            assert module.heads == 4, name
            module.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1:]))
    with torch.inference_mode():
        output = model(torch.zeros(2, 3, 32, 32), torch.tensor([0, 999]), torch.tensor([0, 9]))
    assert output.shape == (2, 3, 32, 32)
    assert sizes and {shape.numel() for shape in sizes} == {128 * 8 * 8}


def test_folding_is_undone_by_unfolding_and_keeps_neighbours_together():
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unfold(fold(x)), x)
    assert fold(x).shape == (2, 12, 4, 3)
    assert torch.equal(fold(x)[0, :4, 1, 2], x[0, 0, 2:4, 4:6].flatten())


def test_the_null_class_is_a_row_of_its_own_and_classes_reach_the_output():
    model = tiny().eval()
    assert torch.equal(model.null(3).states, model.embedding.weight[-1:].expand(3, -1))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500])
    outputs = [model(x, t, model.embed(torch.tensor([k]))) for k in (0, 1)] + [model(x, t, model.null(1))]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_it_predicts_v():
    """With v = a noise - b x0 in place of the network's output, eps is the noise."""
    model = tiny()
    noise, x0 = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8) * 2 - 1
    t = torch.tensor([30, 700])
    a = model.alpha_bar[t].view(-1, 1, 1, 1)
    assert torch.allclose(model.target(x0, noise, t), a.sqrt() * noise - (1 - a).sqrt() * x0)
    model.predict = lambda *_: a.sqrt() * noise - (1 - a).sqrt() * x0
    assert torch.allclose(model.eps(model.add_noise(x0, noise, t), t, torch.tensor([0, 1])), noise, atol=1e-5)


def test_its_parts_are_disjoint_and_together_everything():
    model = tiny()
    parts = {name: {id(value) for value in values} for name, values in model.parts().items()}
    assert parts["full"] == parts["unet"] | parts["embedding"] == {id(value) for value in model.parameters()}
    assert not parts["unet"] & parts["embedding"]


def test_the_embedding_is_reached_by_gradient():
    model = tiny()
    states = model.embed(torch.tensor([4])).states.detach().requires_grad_()
    model(
        torch.randn(1, 3, 8, 8), torch.tensor([500]), model.embed(torch.tensor([4]))._replace(states=states)
    ).sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0


class TinyPhotographs(TinyDigits):
    """Digits of three equal channels, for the compact network."""

    def architecture(self, seed: int) -> Diffusion:
        return tiny(seed).to(self.device)

    def data(self, which):
        batch = super().data(which)
        return batch._replace(x0=batch.x0.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("part", ["full", "embedding"])
def test_esd_trains_the_part_that_it_is_given(part):
    task = TinyPhotographs()
    model = task.pretrained()
    before = {name: value.clone() for name, value in model.named_parameters()}
    method = ESD(part=part)
    with seeded(1):
        result = method.unlearn(model, task, method.prepare(model, task))
    assert isinstance(result, nn.Module)
    moved = {name for name, value in result.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert part == "full" or moved == {"embedding.weight"}
    images = result.sample(torch.tensor([3, 7]), [1, 2])
    assert images.shape == (2, 3, 8, 8) and images.abs().max() <= 1
