"""Every method unlearns and draws on the card, with tensors in their places and a known number of waits a step."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.support import tiny_sd
from tests.support.pretended_cuda import PretendedCuda
from tests.support.short_runs import short
from tests.support.unjudged import unlearned
from unlearnbench import registry
from unlearnbench.tasks.digits_text import DigitsText

METHODS = [name for name, entry in registry.methods().items() if entry.point is None]
NEEDY = {"retrain", "checkpoint"}
WAITS = {}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_sd.world(tmp_path_factory.mktemp("sdxl") / "model", "sdxl")


@pytest.fixture
def few_training_images(monkeypatch):
    """One in fifty, both sides among them: methods that go through all of one side have a few batches then."""
    real = DigitsText._showing

    def showing(task, side):
        kept = real(task, side)
        return kept & (torch.arange(len(kept)) % 50 == 0)

    monkeypatch.setattr(DigitsText, "_showing", showing)


@pytest.mark.usefixtures("few_training_images")
@pytest.mark.parametrize("name", sorted(set(METHODS) - NEEDY))
def test_every_method_unlearns_on_the_card(world, name):
    with PretendedCuda() as card:
        waited = {}

        def step(optimiser, *args):
            waited.setdefault(id(optimiser), []).append(len(card.waits))

        handle = register_optimizer_step_post_hook(step)
        try:
            cost = unlearned(short(name, batch_size=4, steps=4), DigitsText("red", protocol="smoke", weights=world, device="cuda"))
        finally:
            handle.remove()
    assert cost["peak_memory_kind"] == "allocated on CUDA"
    steps=max(waited.values(),key=len,default=[])
    import collections
    if len(steps)>2:
        w=card.waits[steps[-2]:steps[-1]]
        print("\nSTEP", name, len(steps), collections.Counter(x.kind for x in w), collections.Counter(f"{x.file}:{x.line} {x.operation}" for x in w))
