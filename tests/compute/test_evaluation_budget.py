"""The count of model evaluations against counts by hand, and the cap."""

import copy

import pytest
import torch

from tests.support.small_world import ROOT
from tests.support.tiny_model import Linear, TinyTask
from unlearnbench import Sampler
from unlearnbench.compute.evaluation_budget import Count, OverCap, capped, counted
from unlearnbench.methods.blindspot import BlindSpot
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.salun import SalUn
from unlearnbench.methods.selective_amnesia import SelectiveAmnesia
from unlearnbench.methods.sfron import SFRon
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.records.schema import read_record
from unlearnbench.verification.verify import rebuilt

STEPS, BATCH, FORGET, RETAIN, SAMPLER = 3, 4, 6, 10, 5
"""The last three are the tiny task's: images of each side, steps of its sampler."""


class Watched(Linear):
    """Notes how many steps each sampling takes at most."""

    taken: list

    def sample(self, y, seeds, *, sampler=None, until=0, **rest):
        self.taken.append(int(((sampler or self.sampler).steps - torch.as_tensor(until)).max()))
        return super().sample(y, seeds, sampler=sampler, until=until, **rest)


def spent(method, model=None):
    """Evaluations of one whole unlearning on the tiny task."""
    with capped(None) as count:
        unlearned(method, model)
    return count.evaluations


def unlearned(method, model=None):
    task, model = TinyTask(), model or Linear(0)
    model.sampler = Sampler(steps=SAMPLER)
    torch.manual_seed(7)
    with counted(model) as count:
        method.unlearn(model, task, method.prepare(model, task))
    return count


def test_esd_is_charged_its_own_sampling_on_both_sides_of_guidance_and_its_frozen_teacher():
    model = Watched(0)
    model.taken = []
    found = spent(ESD(steps=STEPS, batch_size=BATCH, sampler_steps=SAMPLER), model)
    assert sum(model.taken) > 0
    assert found == STEPS * 3 * BATCH + sum(model.taken) * 2 * BATCH


@pytest.mark.parametrize("K", [1, 4])
def test_erasediff_is_charged_its_inner_loop(K):
    settings = {"steps": STEPS, "batch_size": BATCH, "K": K, "rule": "barrier"}
    # L_r, then L_f at theta, K times on the way down, and at its end
    assert spent(EraseDiff(**settings)) == STEPS * BATCH * (1 + 1 + K + 1)
    # a substitute's prediction besides, for each L_f
    assert spent(EraseDiff(**settings, target="substitute")) == STEPS * BATCH * (1 + 2 * (1 + K + 1))


def test_salun_is_charged_its_mask():
    passes = -(-FORGET // BATCH)
    assert spent(SalUn(steps=STEPS, batch_size=BATCH)) == passes * BATCH + STEPS * 3 * BATCH
    guided = SalUn(steps=STEPS, batch_size=BATCH, mask_guidance=3.0)
    assert spent(guided) == passes * 2 * BATCH + STEPS * 3 * BATCH


def test_sfron_is_charged_the_fisher_passes_of_both_sides():
    assert spent(SFRon(steps=STEPS, batch_size=BATCH, fisher_samples=None)) == FORGET + RETAIN + STEPS * 2 * BATCH


def test_selective_amnesia_is_charged_replay_and_fisher():
    method = SelectiveAmnesia(
        steps=STEPS, batch_size=BATCH, replay_images=8, fisher_samples=2, fisher_timesteps=6, surrogate_images=5
    )
    assert spent(method) == 8 * SAMPLER + 2 * 6 + STEPS * 2 * BATCH


def test_a_network_drawn_anew_is_charged():
    method = BlindSpot(steps=STEPS, batch_size=BATCH, blind_steps=7, lam=0.0)
    assert spent(method) == 7 * BATCH + STEPS * 3 * BATCH


def test_a_u_net_and_its_copies_are_charged_however_they_are_called_and_other_networks_not():
    model = ClassUNet(classes=10, size=8)
    x, t, y = torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.long), torch.arange(3)
    with capped(None) as count, counted(model), torch.no_grad():
        model(x, t, y)
        copy.deepcopy(model).frozen().eps(x, t, y)
        model.unet(sample=x[:2], timestep=t[:2], class_labels=model.embedding(y[:2]))
        model.embed(y)
        torch.nn.Linear(4, 4)(torch.zeros(9, 4))
    assert count.evaluations == 3 + 3 + 2
    model(x, t, y)
    assert count.evaluations == 8, "the hook is gone with its block"


def test_the_pass_that_goes_beyond_the_cap_stops_the_unlearning_and_is_charged():
    settings = {"steps": STEPS, "batch_size": BATCH}
    with capped(3 * BATCH) as count, pytest.raises(OverCap, match="stopped at 16 evaluations: over the cap of 12"):
        unlearned(EraseDiff(**settings))
    assert count.evaluations == 4 * BATCH
    with capped(2 * STEPS * BATCH) as count:
        unlearned(EraseDiff(**settings))
    assert count.evaluations == 2 * STEPS * BATCH


def test_a_budget_ends_with_its_block():
    with capped(1):
        pass
    assert unlearned(EraseDiff(steps=1, batch_size=BATCH)) is None, "without a budget nothing is hooked"
    assert Count().cap is None


def test_committed_records_are_found_whether_or_not_evaluations_are_counted():
    record = read_record(ROOT / "results/digits-class/default/3/gradient_ascent/seed-0.json")
    cell = rebuilt(record, record.environment["device_type"])
    assert CellState.of(cell, ROOT / "results").found == record
