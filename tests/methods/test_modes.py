"""Dropout: off where masks and Fisher information are computed and images sampled, on in updates."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.support.tiny_model import Linear, TinyTask
from unlearnbench import Sampler
from unlearnbench.attacks.sequential import unlearn_again
from unlearnbench.diffusion.model import evaluating
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.method import Method, run_prepare, run_unlearn
from unlearnbench.methods.blindspot import BlindSpot
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.salun import SalUn
from unlearnbench.methods.scissorhands import Scissorhands
from unlearnbench.methods.selective_amnesia import SelectiveAmnesia
from unlearnbench.methods.sfron import SFRon
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.dry_run import probe
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification import conformance


class Dropping(Linear):
    """The linear model with dropout, on in a new model as in the papers' network."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.dropout, self.sampler = nn.Dropout(0.5), Sampler(steps=5)
        self.seen = []

    def predict(self, x_t, t, condition):
        self.seen.append(self.training)
        return super().predict(self.dropout(x_t), t, condition)


class DroppingTask(TinyTask):
    def architecture(self, seed):
        return Dropping(seed)

    def pretrained(self):
        return Dropping(0)


@dataclass(frozen=True)
class Strict(Method):
    """Refuses a model in the wrong mode."""

    def prepare(self, model, task):
        assert not any(module.training for module in model.modules())

    def unlearn(self, model, task, prepared=None):
        assert all(module.training for module in model.modules())
        return model


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "run",
    [
        lambda: unlearn(Cell(Strict(), DigitsClass("3"))),
        lambda: probe(Cell(Strict(), DigitsClass("3")), seconds=0.05),
        lambda: unlearn_again(Strict(), DigitsClass("3")),
        lambda: conformance.repeatable(Strict),
    ],
    ids=["run", "dry run", "a further concept", "conformance"],
)
def test_whoever_runs_a_method_sets_the_modes(run):
    run()


def prepared(method, task):
    torch.manual_seed(7)
    return run_prepare(method, task.pretrained(), task)


@pytest.mark.parametrize(
    "method",
    [
        SalUn(batch_size=3, mask_guidance=3.0),
        SFRon(fisher_guidance=3.0),
        Scissorhands(batch_size=3, share=0.3),
    ],
    ids=lambda method: method.name,
)
def test_masks_are_those_of_the_network_without_dropout(method):
    found, plain = prepared(method, DroppingTask()), prepared(method, TinyTask())
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    torch.manual_seed(7)
    training = method.prepare(Dropping(0), DroppingTask())
    assert any(not torch.equal(training[name], value) for name, value in plain.items()), "dropout would show"


def test_selective_amnesia_draws_and_weighs_without_dropout():
    method = SelectiveAmnesia(replay_images=4, fisher_samples=2, fisher_timesteps=3, surrogate="substitute")
    plain = Linear(0)
    plain.sampler = Sampler(steps=5)
    torch.manual_seed(7)
    expected = run_prepare(method, plain, TinyTask())
    found = prepared(method, DroppingTask())
    for side in ("replay", "surrogate"):
        assert torch.equal(getattr(found, side).x0, getattr(expected, side).x0)
    assert all(torch.equal(found.fisher[name], value) for name, value in expected.fisher.items())


def test_sampling_is_without_dropout_and_leaves_every_modules_mode():
    model, plain = Dropping(0), Linear(0)
    model.frozen_part = nn.Dropout(0.5).eval()
    y, seeds = torch.tensor([1, 2]), [3, 4]
    assert model.training
    found = model.sample(y, seeds)
    assert torch.equal(found, plain.sample(y, seeds, sampler=Sampler(steps=5)))
    assert model.training and model.dropout.training and not model.frozen_part.training
    assert not any(model.seen)


def test_modes_are_put_back_after_an_error():
    model = Dropping(0)
    with pytest.raises(KeyError), evaluating(model):
        assert not model.dropout.training
        raise KeyError
    assert model.dropout.training


def test_text_models_sample_in_evaluation_mode_with_their_own_schedulers_too(sd_folder):
    model = load_stable_diffusion(sd_folder).train()
    seen = []
    model.unet.register_forward_pre_hook(lambda module, given: seen.append(module.training))
    y = model.tokens(["a", "b"])
    for sampler in (Sampler(steps=2), Scheduled(steps=2)):
        model.sample(y, [0, 1], sampler=sampler)
    assert seen and not any(seen) and model.unet.training


def test_esds_samples_are_without_dropout_and_its_updates_with_it():
    task = DroppingTask()
    model = task.pretrained()
    run_unlearn(ESD(steps=1, batch_size=2, sampler_steps=3), model, task, None)
    assert model.seen[-1] and not any(model.seen[:-1])


def test_blindspot_trains_its_blind_model_with_dropout_and_follows_it_without():
    """Both starts: a fresh network and a copy of the original, which is in evaluation mode."""
    for start in ("fresh", "original"):
        task = DroppingTask()
        seen = []

        class Watched(Dropping):
            def predict(self, x_t, t, condition, seen=seen):
                seen.append(self.training)
                return super().predict(x_t, t, condition)

        task.architecture = Watched
        model = Watched(0)
        method = BlindSpot(start=start, blind_steps=2, steps=1, batch_size=3)
        blind = run_prepare(method, model, task)
        assert seen == [True, True] and not blind.training
        seen.clear()
        run_unlearn(method, model, task, copy.copy(blind))
        assert seen[0] is False and all(seen[1:]), "the blind model's prediction comes first"
