"""The compiled network: used for drawing alone, named in records, and the same but for last bits."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch import nn

from tests.support.small_world import write_nudge
from unlearnbench import registry
from unlearnbench.compute.precision import Resources
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import UserError
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted
from unlearnbench.records.folder import load_all
from unlearnbench.tasks.digits_class import DigitsClass


class Wrapped(nn.Module):
    """In place of what torch.compile makes, which takes minutes."""

    def __init__(self, inner, calls):
        super().__init__()
        self._orig_mod, self.calls = inner, calls

    def forward(self, *given, **named):
        self.calls.append(1)
        return self._orig_mod(*given, **named)


@pytest.fixture
def calls(monkeypatch):
    """How often a compiled network was asked."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: Wrapped(module, made))
    return made


def test_within_the_block_the_unet_is_compiled_and_afterwards_as_before(calls):
    model = DigitsClass("3").pretrained()
    plain, names = model.unet, list(model.state_dict())
    with pytest.raises(KeyboardInterrupt), Resources(compile=True).compiled(model) as compiled:
        assert compiled is model and isinstance(model.unet, Wrapped)
        raise KeyboardInterrupt
    assert model.unet is plain and list(model.state_dict()) == names
    with Resources().compiled(model):
        assert model.unet is plain


def test_a_run_draws_with_it_trains_without_and_says_so(cli, calls, small, tmp_path):
    mine = write_nudge(tmp_path)
    said = cli("run", "--method", mine, "--compile", "--results", "here")
    assert said.code == 0, said.err
    records = load_all(tmp_path / "here")
    assert all(record.environment["compile"] is True for record in records)
    task = DigitsClass("3")
    chunks = -(-len(task.plan()) // task.protocol.chunk)
    assert len(calls) == len(records) * chunks * task.protocol.sampler.steps
    again = cli("run", "--method", mine, "--results", "there")
    assert again.code == 0 and all("compile" not in record.environment for record in load_all(tmp_path / "there"))


def test_keys_tell_it_apart():
    method, task = registry.load_method("finetune")(), DigitsClass("3")
    plain, compiled = (drafted(Cell(method, task, resources=Resources(compile=c)), {}) for c in (False, True))
    assert plain.key != compiled.key and compiled.environment["compile"] is True


@pytest.mark.parametrize("must", [True, False])
def test_what_does_not_compile_is_one_line_or_runs_as_it_is(must):
    model = ClassUNet(classes=10, size=8, widths=(8,)).eval()
    model.sampler = Sampler(steps=2, eta=0.0, guidance=1.25)

    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    plain = torch.compile
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(torch, "compile", lambda module, dynamic: plain(module, backend=broken, dynamic=dynamic))
        torch._dynamo.reset()
        if must:
            says = r"does not compile here \(.*no compiler here.*: leave out --compile"
            with pytest.raises(UserError, match=says), Resources(compile=True).compiled(model):
                model.sample(torch.arange(2), range(2))
        else:
            with Resources(compile=True).compiled(model, must=False):
                found = model.sample(torch.arange(2), range(2))
            torch.testing.assert_close(found, model.sample(torch.arange(2), range(2)))
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_images():
    """A minute or two of compiling."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, y = DigitsClass("3").pretrained().eval(), torch.arange(20) % 10
    with torch.inference_mode():
        plain = model.sample(y, range(20))
        with Resources(compile=True).compiled(model):
            compiled = model.sample(y, range(20))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"
