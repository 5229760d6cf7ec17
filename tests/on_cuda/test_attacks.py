"""Every attack searches on the card, with tensors in their places and a known number of waits a step."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.on_cuda.steps import waits_a_step
from tests.support import tiny_sd
from tests.support.pretended_cuda import PretendedCuda
from tests.support.short_runs import short
from unlearnbench import registry
from unlearnbench.attacks.search import arena
from unlearnbench.tasks.digits_text import DigitsText

FEW = {"targets": 2, "batch": 2, "after": (1, 3), "size": 2, "images": 3, "steps": 3, "every": 3, "iterations": 3}
FEW |= {"timesteps": 2, "population": 4, "k": 2, "refine": 2, "most": 1, "kept": 1}
WAITS = {"concept_inversion": (1, 5), "p4d": (1, 3), "relearn": (1, 1), "unlearndiffatk": (2, 1)}
"""Reads and uploads in a step of the search's optimiser. Others have none, or (`sequential`) a method's."""
OTHER_WAYS = {"latent_probe": [{"probe": "inversion"}, {"probe": "inpainting"}], "unlearndiffatk": [{"kind": "soft"}]}
CASES = [(name, own) for name in sorted(registry.load_attacks()) for own in ({}, *OTHER_WAYS.get(name, []))]
UNSEEN = "2 of 2 targets are missing: the judge failed"
"""Of an untrained autoencoder's pictures none shows what a target asks for."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_sd.world(tmp_path_factory.mktemp("sd1") / "model", "sd1")


@pytest.mark.parametrize(("name", "own"), CASES, ids=[f"{name} {own}" if own else name for name, own in CASES])
def test_every_attack_searches_on_the_card(world, name, own):
    attack = registry.load_attacks()[name]
    known = attack.settings()
    few = {key: value for key, value in FEW.items() if isinstance(known.get(key), type(value))}
    attack = replace(attack, **{**few, **own})
    with PretendedCuda() as card, waits_a_step(card) as found:
        task = DigitsText("red", protocol="smoke", weights=world, device="cuda")
        original = task.pretrained().eval().requires_grad_(False)
        score = attack.measure(arena(task, original, original, short("finetune", batch_size=2)))
    assert score.reason == (UNSEEN if name == "latent_probe" else None)
    assert score.n == 2 and score.limit > 0
    if name != "sequential" and not own:
        assert found.counts == WAITS.get(name), card.lines(found.waits)


def test_the_page_states_the_waits():
    page = (Path(__file__).parents[2] / "results" / "gpu.md").read_text(encoding="utf-8")
    assert not [name for name, (reads, uploads) in WAITS.items() if f"| {name} | {reads} | {uploads} |" not in page]
