"""Every attack searches on the card, with tensors in their places and a known number of waits a step."""

from dataclasses import replace

import pytest

from tests.on_cuda.steps import waits_a_step
from tests.support import tiny_sd
from tests.support.pretended_cuda import PretendedCuda
from tests.support.short_runs import short
from unlearnbench import registry
from unlearnbench.attacks.search import arena
from unlearnbench.tasks.digits_text import DigitsText

FEW = {"targets": 2, "batch": 2, "after": (1, 3), "size": 2, "images": 3, "steps": 3, "every": 2, "iterations": 3}
FEW |= {"timesteps": 2, "population": 4, "k": 2, "refine": 2, "most": 1, "kept": 1}
WAITS = {}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_sd.world(tmp_path_factory.mktemp("sd1") / "model", "sd1")


@pytest.mark.parametrize("name", sorted(registry.load_attacks()))
def test_every_attack_searches_on_the_card(world, name):
    attack = registry.load_attacks()[name]
    own = attack.settings()
    few = {key: value for key, value in FEW.items() if isinstance(own.get(key), type(value))}
    attack = replace(attack, **few)
    with PretendedCuda() as card, waits_a_step(card) as found:
        task = DigitsText("red", protocol="smoke", weights=world, device="cuda")
        original = task.pretrained().eval().requires_grad_(False)
        score = attack.measure(arena(task, original, original, short("finetune", batch_size=2)))
    assert score.reason is None, score.reason
    import collections
    print("\nSTEP", name, score.n, score.missing, found.steps, collections.Counter(f"{x.kind} {x.file}:{x.line} {x.operation}" for x in found.waits), len(card.waits), collections.Counter(f"{x.kind} {x.file}:{x.line} {x.operation}" for x in card.waits).most_common(12))
