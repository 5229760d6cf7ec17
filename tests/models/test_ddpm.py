"""The papers' CIFAR-10 network: equal to an independent one under its checkpoints' names, and exactly as large."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.ddpm_reference import Reference
from unlearnbench import Batch, minimise
from unlearnbench.errors import UserError
from unlearnbench.models.ddpm import ConditionalDDPM, converted, load_converted
from unlearnbench.models.ddpm_train import RECIPE


def alike(**size):
    """The reference, and ours with its weights, both without dropout."""
    torch.manual_seed(0)
    reference, ours = Reference(**size).eval(), ConditionalDDPM(**size).eval()
    load_converted(ours, {f"module.{key}": value for key, value in reference.state_dict().items()}, "made")
    return reference, ours


@pytest.fixture(scope="module")
def pair():
    return alike()


@pytest.fixture(scope="module")
def narrow_pair():
    """A quarter of the width, with as many layers."""
    return alike(width=32)


def test_it_is_exactly_as_large_as_theirs(pair):
    reference, ours = pair
    for model in pair:
        assert sum(value.numel() for value in model.parameters()) == 38_632_323
        assert len(model.state_dict()) == 334
    assert set(converted(reference.state_dict())) == set(ours.state_dict())


def test_predictions_are_those_of_the_reference(narrow_pair):
    """With classes and without, side by side in a batch."""
    reference, ours = narrow_pair
    x, t, c = torch.randn(4, 3, 32, 32), torch.tensor([0, 731, 999, 20]), torch.tensor([3, 9, -1, 0])
    with torch.inference_mode():
        null = ours.null(4)
        condition = ours.embed(c.clamp(min=0)).where(c >= 0, null)
        found = ours.eps(x, t, condition)
        assert (found - reference(x, t, c)).abs().max() < 1e-5
        assert (found - ours.eps(x, t, ours.embed((c + 5) % 10))).abs().max() > 1e-3


def test_what_it_costs_is_what_results_say(pair):
    """Multiplications and additions for an image, forwards and in training: results/cifar10-class.md."""
    text = (Path(__file__).parents[2] / "results" / "cifar10-class.md").read_text()
    x, c = torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)
    # The fused attention that torch takes on some processors is not counted.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forwards, torch.no_grad():
            pair[1](x, c, c)
        with FlopCounterMode(display=False) as training:
            pair[1](x, c, c).sum().backward()
    for count in (forwards, training):
        assert f"{count.get_total_flops() / 1e9:.1f} GFLOP" in text
    total = training.get_total_flops() * RECIPE["steps"] * RECIPE["batch"]
    assert f"{total / 1e18:.1f} EFLOP" in text
    for share in (0.2, 0.35):
        assert f"{total / (share * 990e12) / 3600:.1f} h" in text, "of an H100's 990 TFLOP/s in bf16"


def test_the_schedule_is_linear_in_beta():
    alpha_bar = ConditionalDDPM(width=32).alpha_bar
    assert len(alpha_bar) == 1000
    assert alpha_bar[0].item() == pytest.approx(1 - 1e-4)
    assert (alpha_bar[999] / alpha_bar[998]).item() == pytest.approx(1 - 0.02)


def test_nothing_is_trained_that_theirs_does_not_have():
    """A port that pads the time's layers with zeros would give training more room than the papers' network has."""
    model = ConditionalDDPM(width=32)
    names = {name: value.numel() for name, value in model.select("full").items()}
    assert sum(names.values()) == sum(value.numel() for value in model.parameters())
    batch = Batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    minimise((model.loss(batch) for _ in range(2)), model.select("full"), 1e-3)
    half = model.unet.time_embedding(torch.randn(2, 32))
    assert half.shape == (2, 256)
    assert (half[:, 128:] == 0).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: state.update({"extra.weight": torch.zeros(1)}),
            r"1 keys .*'extra.weight', which the model has not",
        ),
        (lambda state: state.pop("conv_in.bias"), r"'unet.conv_in.bias' is missing"),
        (lambda state: state.update({"conv_in.bias": torch.zeros(7)}), r"'unet.conv_in.bias' is \(7,\), the model's"),
    ],
)
def test_another_architecture_is_named_by_its_keys_and_changes_nothing(change, says):
    reference, ours = Reference(width=32), ConditionalDDPM(width=32)
    before = ours.unet.conv_in.weight.clone()
    state = dict(reference.state_dict())
    change(state)
    with pytest.raises(UserError, match=says):
        load_converted(ours, state, "file.pth")
    assert torch.equal(ours.unet.conv_in.weight, before)
