"""A method with a `part` trains that part of the model and no other."""

import pytest
import torch

from tests.support.tiny_model import Linear, TinyTask
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import Unsupported
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.methods.erasediff_released import EraseDiffReleased
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.esd_retain import ESDRetain
from unlearnbench.methods.esd_u import ESDU
from unlearnbench.methods.random_label import RandomLabel
from unlearnbench.methods.selective_amnesia import SelectiveAmnesia
from unlearnbench.models.class_unet import ClassUNet

METHODS = (
    EraseDiff(steps=2, batch_size=3),
    EraseDiff(steps=2, batch_size=3, faithful_cost=True),
    EraseDiff(steps=2, batch_size=3, rule="barrier", target="substitute"),
    EraseDiffReleased(lr=1e-3, batch_size=3, K=1, rounds=1, epochs=1, ema=0.9),
    ESD(steps=2, batch_size=3, sampler_steps=5),
    ESDRetain(steps=2, batch_size=3, sampler_steps=5),
    ESDU(steps=2, batch_size=3, sampler_steps=5),
    RandomLabel(steps=2, batch_size=3),
    RandomLabel(steps=2, batch_size=3, target="images"),
    SelectiveAmnesia(steps=2, batch_size=3, replay_images=4, fisher_samples=2, fisher_timesteps=2),
)


def with_part(method, part):
    return type(method)(**{**method.settings(), "part": part})


def unlearned(method):
    model, task = Linear(0), TinyTask()
    model.sampler = Sampler(steps=5)
    return method.unlearn(model, task, method.prepare(model, task))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("part", "trained"), [("matrix", {"W"}), ("embedding", {"E"}), ("full", {"W", "E", "b"})])
def test_only_the_part_is_trained(method, part, trained):
    torch.manual_seed(0)
    model = unlearned(with_part(method, part))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, getattr(Linear(0), name))}
    assert changed == trained


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_an_unknown_part_names_those_that_there_are(method):
    with pytest.raises(Unsupported, match=r"no part 'xattn': it has embedding, full, matrix"):
        unlearned(with_part(method, "xattn"))


def test_the_networks_parts_share_nothing_and_make_up_the_whole():
    model = ClassUNet(classes=10, size=8, widths=(8, 16))
    full, unet, embedding = (set(model.select(part)) for part in ("full", "unet", "embedding"))
    assert full == {name for name, _ in model.named_parameters()}
    assert embedding == {"embedding.weight"}
    assert unet == full - embedding
