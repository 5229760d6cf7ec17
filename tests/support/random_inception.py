"""An Inception in the layout of torch-fidelity's file, with random weights: the real ones are not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity_inception
from torch import nn


def write(path: Path) -> Path:
    """Weights are scaled so that features keep their size through layers."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(fidelity_inception, "load_state_dict_from_url", lambda *given, **named: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *given, **named: None)
        torch.manual_seed(0)
        net = fidelity_inception.FeatureExtractorInceptionV3("random", ["2048"])
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    net.fc.bias.fill_(1.0)
    torch.save(net.state_dict(), path)
    return path
