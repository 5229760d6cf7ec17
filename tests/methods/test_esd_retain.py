"""ESD with a retain loss, which no paper has: its update worked out in NumPy."""

import pytest
import torch

from tests.methods.test_esd import esd_replayed, unlearn
from tests.support.fidelity import Fidelity
from tests.support.tiny_model import TinyTask, assert_weights, moved, weights
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.esd_retain import ESDRetain

FIDELITY = Fidelity(
    method="esd_retain",
    paper="Gandikota, Materzynska, Fiotto-Kaufman and Bau, Erasing Concepts from Diffusion Models, ICCV 2023",
    departs="The denoising loss of retain images is ours: no paper and no code ran it, so there is no other preset.",
)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_esd_retain_adds_the_retain_loss(weight):
    task = TinyTask()
    settings = {"steps": 4, "lr": 0.03, "batch_size": 6, "eta": 1.5, "start_guidance": 2.0, "sampler_steps": 5}
    torch.manual_seed(7)
    expected = esd_replayed(task, 4, 6, 0.03, 1.5, 2.0, weight)
    assert_weights(unlearn(ESDRetain(**settings, retain_weight=weight), task), expected, 3e-5)


def test_esd_retain_is_esd_where_the_weight_is_zero_and_not_by_default():
    settings = {"steps": 3, "lr": 0.03, "batch_size": 6, "sampler_steps": 5}
    plain = weights(unlearn(ESD(**settings), TinyTask()))
    assert_weights(unlearn(ESDRetain(**settings, retain_weight=0.0), TinyTask()), plain, 0)
    assert moved(unlearn(ESDRetain(**settings), TinyTask()), plain) > 1e-3
