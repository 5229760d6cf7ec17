"""Prompts around names, and what comes in turn."""

from __future__ import annotations

import torch

from tests.support.tiny_text import TinyText
from unlearnbench.techniques.prompts import filled, in_turn, spelt


def test_all_come_equally_often():
    torch.manual_seed(0)
    rows = in_turn(3, 2)
    drawn = torch.cat([next(rows) for _ in range(6)])
    assert torch.bincount(drawn).tolist() == [4, 4, 4]
    assert next(in_turn(2, 5)).bincount().tolist() in ([2, 3], [3, 2])


def test_names_are_read_from_their_tokens_and_put_into_templates(tmp_path):
    model = TinyText(tmp_path / "model").original
    names = spelt(model, model.tokens(["seven", "a red cat"]))
    assert names == ["seven", "a red cat"]
    assert filled(names, ["{}", "{} in a photo"]) == ["seven", "seven in a photo", "a red cat", "a red cat in a photo"]
