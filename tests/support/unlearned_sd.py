"""What the tests of checkpoints share: states in the layouts that are released, and what must come of them."""

from __future__ import annotations

import pytest
import torch

from tests.support import compvis
from unlearnbench.errors import UserError
from unlearnbench.models.external.apply import apply_checkpoint


def unet(model):
    return model.unet.state_dict()


def text(model):
    return {"text_model." + name: value for name, value in model.text_encoders[0].state_dict().items()}


def attention(model):
    return {name: value for name, value in unet(model).items() if "attn2.to_k" in name or "attn2.to_v" in name}


def whole(model):
    return {**compvis.checkpoint(model), "model_ema.decay": torch.tensor(1.0)}


def expected(before, after, changed):
    """The weights before, those of the changed parts as after."""
    wanted = {name: value.clone() for name, value in before.state_dict().items()}
    for name, value in after.state_dict().items():
        part = "unet" if name.startswith("unet.") else "text" if name.startswith("text_encoders.") else "vae"
        special = "attn2.to_k" in name or "attn2.to_v" in name
        if part in changed or ("attention" in changed and part == "unet" and special):
            wanted[name] = value
    return wanted


def same(model, wanted):
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-5, msg=name)


def refused(model, path, *said, named=True):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        apply_checkpoint(model, path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*said, *([str(path)] if named else [])):
        assert word in message, message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
