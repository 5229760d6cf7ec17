"""A method with a `part` trains that part of the model and no other."""

import pytest
import torch

from tests.tiny_model import Linear, TinyTask
from unlearnbench.errors import Unsupported
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.esd_retain import ESDRetain
from unlearnbench.models.unet import ClassUNet

METHODS = (
    EraseDiff(steps=2, batch_size=3),
    EraseDiff(steps=2, batch_size=3, faithful_cost=True),
    EraseDiff(steps=2, batch_size=3, rule="barrier", target="substitute"),
    EraseDiff(batch_size=3, rule="released", rounds=1, epochs=1, ema=0.9, target="random"),
    ESD(steps=2, batch_size=3, sampler_steps=5),
    ESDRetain(steps=2, batch_size=3, sampler_steps=5),
)


def with_part(method, part):
    return type(method)(**{**method.settings(), "part": part})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("part", "trained"), [("matrix", {"W"}), ("embedding", {"E"}), ("full", {"W", "E", "b"})])
def test_only_the_part_is_trained(method, part, trained):
    torch.manual_seed(0)
    model = with_part(method, part).unlearn(Linear(0), TinyTask(), None)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, getattr(Linear(0), name))}
    assert changed == trained


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_an_unknown_part_names_those_that_there_are(method):
    with pytest.raises(Unsupported, match=r"no part 'xattn': it has embedding, full, matrix"):
        with_part(method, "xattn").unlearn(Linear(0), TinyTask(), None)


def test_the_networks_parts_share_nothing_and_make_up_the_whole():
    model = ClassUNet(classes=10, size=8, widths=(8, 16))
    full, unet, embedding = (set(model.select(part)) for part in ("full", "unet", "embedding"))
    assert full == {name for name, _ in model.named_parameters()}
    assert embedding == {"embedding.weight"}
    assert unet == full - embedding
