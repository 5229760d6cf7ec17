"""The papers' protocols from end to end on fresh weights: one on a narrow network, all of them at full width."""

from __future__ import annotations

import csv
import io

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity_inception
from torch import nn

from tests.judges.test_cifar import LightInception, Narrow
from tests.studies import papers_width
from tests.support import random_inception
from unlearnbench.tasks.cifar10_class import Cifar10Class


class Averages(LightInception):
    """Features that half precision holds."""

    def forward(self, x):
        return (super().forward(x)[0] / 1024,)


def rows(said):
    return list(csv.DictReader(io.StringIO(said)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path))


def test_a_protocol_on_narrow_networks(capsys, monkeypatch):
    monkeypatch.setattr("torchvision.models.resnet34", Narrow)
    monkeypatch.setattr(fidelity_inception, "FeatureExtractorInceptionV3", Averages)
    monkeypatch.setattr(
        random_inception, "write", lambda path: torch.save(nn.Linear(3, 5).state_dict(prefix="fc."), path)
    )
    before = dict(Cifar10Class.protocols)
    assert papers_width.main(["--width", "8", "--protocol", "salun-iclr24"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["protocol"] == "salun-iclr24" and int(row["scores"]) > 15
    assert Cifar10Class.protocols == before


@pytest.mark.slow
def test_every_protocol_at_the_papers_width(capsys):
    assert papers_width.main([]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["protocol"] for row in found] == list(papers_width.PAPERS)
    assert {"default", "raw", "erasediff-cvpr25", "salun-iclr24", "first-hour", "steps-250"} <= set(papers_width.PAPERS)
    assert all(int(row["scores"]) > 15 for row in found)
