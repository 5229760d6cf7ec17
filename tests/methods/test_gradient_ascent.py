"""Gradient ascent: updates worked out in NumPy, of ours and of the algorithm that EraseDiff calls NegGrad."""

import pytest
import torch

from tests.support.tiny_model import Adam, Linear, TinyTask, assert_weights, combine, denoising, weights
from unlearnbench.methods.gradient_ascent import GradientAscent


def unlearn(method, task, seed=7):
    torch.manual_seed(seed)
    model = Linear(0)
    return method.unlearn(model, task, method.prepare(model, task))


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradient_ascent_subtracts_the_forget_loss(weight):
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(GradientAscent(steps=4, lr=0.03, batch_size=3, weight=weight), task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 3):
        a = denoising(w, retain)[1]
        w = adam.step(w, combine(a, denoising(w, forget)[1], -weight))
    assert_weights(model, w)
