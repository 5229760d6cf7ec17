"""Every method unlearns and draws on the card, with tensors in their places and a known number of waits a step."""

from pathlib import Path

import pytest

from tests.on_cuda.steps import waits_a_step
from tests.support import tiny_sd
from tests.support.pretended_cuda import PretendedCuda
from tests.support.short_runs import ONE_STEP, short
from tests.support.unjudged import unlearned
from unlearnbench import registry
from unlearnbench.tasks.digits_text import DigitsText

METHODS = [name for name, entry in registry.methods().items() if entry.point is None]
NEEDY = {"retrain": "trains the original's network anew", "checkpoint": "needs a file"}
NEEDY |= {"original": "is drawn in each whole run of `test_runs.py`"}
UNTRAINED = {"destroy", "uce", "rece", "concept_prune", "sld", "negative_prompt", "prompt_filter", "safree"}
UNTRAINED |= {"speed", "adavd", "gloce"}
CHANGED = {"destroy", "uce", "rece", "speed", "gloce", "concept_prune"}
"""Of these, what changes weights or adds some."""
WAITS = {
    "advunlearn": (1, 8),
    "age": (6, 15),
    "ant": (2, 7),
    "ap": (6, 17),
    "blindspot": (1, 4),
    "concept_ablation": (2, 3),
    "erasediff": (2, 5),
    "erasediff_released": (1, 4),
    "esd": (2, 6),
    "esd_retain": (2, 8),
    "esd_u": (2, 6),
    "finetune": (1, 2),
    "forget_me_not": (3, 2),
    "gradient_ascent": (1, 4),
    "mace": (2, 0),
    "race": (2, 9),
    "random_label": (1, 4),
    "receler": (5, 6),
    "saeuron": (2, 1),
    "salun": (2, 5),
    "scissorhands": (2, 5),
    "selective_amnesia": (1, 2),
    "sfron": (1, 0),
    "spm": (2, 7),
    "stereo": (2, 7),
    "trce": (3, 11),
}
"""Reads and uploads in a step of the main optimiser."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of an untrained XL, which has all that the smaller ones have and a second text encoder."""
    return tiny_sd.world(tmp_path_factory.mktemp("sdxl") / "model", "sdxl")


@pytest.mark.usefixtures("few_training_images")
@pytest.mark.parametrize("name", sorted(set(METHODS) - set(NEEDY)))
def test_every_method_unlearns_on_the_card(world, name):
    with PretendedCuda() as card, waits_a_step(card) as found:
        task = DigitsText("red", protocol="smoke", weights=world, device="cuda")
        cost = unlearned(short(name, batch_size=4, retain_batch=4, **{**ONE_STEP, "steps": 2}), task)
        assert 0 < cost["peak_memory"] <= card.peak and cost["peak_memory_kind"] == "allocated on CUDA"
    assert found.counts == WAITS.get(name), card.lines(found.waits)
    assert (cost["trained_parameters"] > 0) == (name not in UNTRAINED - CHANGED)


def test_every_method_that_takes_steps_is_counted():
    assert set(WAITS) | UNTRAINED | set(NEEDY) == set(METHODS)


def test_the_page_states_the_waits():
    page = (Path(__file__).parents[2] / "results" / "gpu.md").read_text(encoding="utf-8")
    missing = [name for name, (reads, uploads) in WAITS.items() if f"| {name} | {reads} | {uploads} |" not in page]
    assert not missing
