"""Fine-tuning on what is retained: updates worked out in NumPy."""

import torch

from tests.support.fidelity import Fidelity
from tests.support.tiny_model import Adam, Linear, TinyTask, assert_weights, denoising, moved, weights
from tests.support.tiny_model import unlearned_by as unlearn
from unlearnbench.methods.finetune import Finetune


def test_finetune_descends_the_retain_loss():
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(Finetune(steps=4, lr=0.03, batch_size=5), task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for batch in task.batches(4, 5, "retain"):
        w = adam.step(w, denoising(w, batch)[1])
    assert_weights(model, w)
    assert moved(model, weights(Linear(0))) > 0.05


FIDELITY = Fidelity(
    method="finetune",
    paper="Warnecke et al., NDSS 2023, and others; no paper says how long it fine-tuned a diffusion model",
    departs='A control: no preset is "published" or "released", since no paper or code gives its number of steps.',
)
