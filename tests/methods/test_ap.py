"""AP against AGE's replay in NumPy, with the empty prompt as its target."""

import numpy as np
import pytest
import torch

from tests.methods.test_age import ETA, LAM, SIZE, TEMPERATURE, Replay
from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask, assert_weights, moved, weights
from unlearnbench.errors import Unsupported
from unlearnbench.methods.ap import AP


@pytest.mark.parametrize("as_coded", [True, False])
def test_updates_by_hand(as_coded):
    method = AP(
        steps=3, lr=0.03, batch_size=SIZE, eta=ETA, keep_weight=LAM, search_lr=0.2, temperature=TEMPERATURE,
        sampler_steps=5, as_coded=as_coded,
    )  # fmt: skip
    task, model, hand = TinyTask(), Linear(0), Replay("null", as_coded, "x0")
    torch.manual_seed(5)
    method.unlearn(model, task, method.prepare(model, task))
    torch.manual_seed(5)
    hand.update()
    for _ in range(2):
        hand.step_of_search()
        hand.update()
    assert_weights(model, hand.w, 3e-4)
    assert moved(model, weights(Linear(0))) > 0.05
    assert (np.abs(hand.logits["pi"] - 0.5).max() > 0.1) == as_coded


def test_released_is_for_nudity_and_styles():
    nudity, style = (AP.configured(AP.preset("released", task)) for task in ("sd-nudity", "sd-style"))
    assert (nudity.target, nudity.centres, nudity.part) == ("null", 50, "noxattn")
    assert (style.target, style.centres, style.part, style.erase) == ("null", 100, "xattn", None)
    with pytest.raises(Unsupported, match="no settings for sd-object"):
        AP.preset("released", "sd-object")


CODE, SCRIPT = Repository("tuananhbui89/Erasing-Adversarial-Preservation", "7222925"), "train_adversarial_gumbel.py"


def constants(task, run, **lines):
    """The settings that its runs on nudity and on styles share, and those of one of them."""
    values = {
        "steps": (1000, CODE.at(SCRIPT, 507), ""),
        "lr": (1e-5, CODE.at(run, 11), ""),
        "batch_size": (1, CODE.at(SCRIPT, 372), "one start code"),
        "eta": (1.0, CODE.at(SCRIPT, 506), ""),
        "keep_weight": (1.0, CODE.at(SCRIPT, 410), "a plain sum"),
        "target": ("null", CODE.at(SCRIPT, 354), ""),
        "search_steps": (1, CODE.at(SCRIPT, 530), "every second of 2,000 steps"),
        "search_lr": (1e-2, CODE.at(run, 12), ""),
        "temperature": (2.0, CODE.at(run, 13), ""),
        "mix": (1, CODE.at(run, 14), "--gumbel_hard 1"),
        "compare": ("x0", CODE.at(SCRIPT, 397), ""),
        "start_guidance": (3.0, CODE.at(SCRIPT, 505), ""),
        "sampler_steps": (50, CODE.at(SCRIPT, 515), ""),
        "as_coded": (True, CODE.at(SCRIPT, 374), "no_grad around all that the original predicts"),
        **lines,
    }
    return tuple(Constant("released", task, field, *line) for field, line in values.items())


NUDITY, STYLES = "run_nudity.sh", "run_artist.sh"
FIDELITY = Fidelity(
    method="ap",
    paper="Bui et al., Erasing Undesirable Concepts in Diffusion Models with Adversarial Preservation, NeurIPS 2024; "
    "tuananhbui89/Erasing-Adversarial-Preservation@7222925",
    constants=(
        *constants(
            "sd-nudity",
            NUDITY,
            erase=(("nudity",), CODE.at(NUDITY, 4), ""),
            vocabulary=("3,000 English words", CODE.at(NUDITY, 19), ""),
            closest=(2000, CODE.at(NUDITY, 18), ""),
            centres=(50, CODE.at(NUDITY, 15), ""),
            part=("noxattn", CODE.at(NUDITY, 6), ""),
        ),
        *constants(
            "sd-style",
            STYLES,
            vocabulary=("3,000 English words", CODE.at(SCRIPT, 529), ""),
            closest=(1000, CODE.at(STYLES, 19), ""),
            centres=(100, CODE.at(STYLES, 15), ""),
            part=("xattn", CODE.at(STYLES, 7), ""),
        ),
    ),
    differences=(
        Difference("released", "update", None, "test_updates_by_hand",
                   "Not run beside the script, which needs CompVis' networks: its formulas are worked out in NumPy."),
        Difference("released", "words", None, "test_updates_by_hand",
                   "Not compared: they depend on real text states, and on the release of scikit-learn, whose k-means "
                   "starts once now and started ten times then."),
    ),
    defects=(
        f"The search moves the model's prediction of what is kept alone, not the original's ({CODE.at(SCRIPT, 374)}).",
        f"t is drawn 39 to 58 above the level of x_t ({CODE.at(SCRIPT, 370)}).",
    ),
    departs="On Stable Diffusion the code's numbers, with t at the level of x_t and the task's names as vocabulary; on "
    "digits fewer, larger steps. The paper's settings are not checked: there is no published preset.",
)  # fmt: skip
