"""The protocols of `cifar10-class` on the compact network: what the package ships, its judges, and training it."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from unlearnbench.data.image_sets import Images
from unlearnbench.data.sources import check_source
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Damaged
from unlearnbench.hashing import digest, state_hash
from unlearnbench.judges import Judge
from unlearnbench.judges.inception import Extractor
from unlearnbench.judges.resnet8 import SmallResNetInceptionJudge, SmallResNetJudge
from unlearnbench.judges.resnet56 import ResNet56Judge, read_resnet
from unlearnbench.models.compact_ddpm import CompactDDPM
from unlearnbench.models.compact_train import (
    BATCH,
    CompactTraining,
    Decay,
    native_bf16,
    read_training_state,
    told_to_stop,
    train_compact,
)
from unlearnbench.models.ddpm_train import TrainingImages
from unlearnbench.reporting import show_progress
from unlearnbench.storage.files import replace_file
from unlearnbench.storage.weights import load_checked
from unlearnbench.tasks._cifar10 import CLASSES, INCEPTION, OUTSIDE, SIZE, CompactProtocol
from unlearnbench.training import seeded

ASSETS = Path(__file__).parent / "assets" / "cifar10-class"
"""Weights of the compact network and of its judge."""
CALIBRATED = 100
"""Test images that the outside judge's threshold comes from."""


def compact_network(protocol: CompactProtocol, seed: int) -> CompactDDPM:
    """Freshly initialised, from a seed of torch."""
    with seeded(seed):
        return CompactDDPM(len(CLASSES), SIZE, (protocol.width, 2 * protocol.width))


def retrained_name(forget: str, seed: int) -> str:
    """The file of weights that were trained without a class, which `retrain` takes if the folder has it."""
    return f"retrain-{forget}-{seed}.safetensors"


def train_compact_steps(
    model: CompactDDPM, pictures: TrainingImages, steps: int, decay: int, seed: int, keep: Path
) -> Diffusion:
    """Train for `steps` steps, over the last `decay` of which the learning rate falls, and return the running mean.

    The state is written to `keep` every few minutes and when training is stopped, and a later call goes on from there.
    Raises KeyboardInterrupt when it was stopped.
    """
    device = model.alpha_bar.device.type
    training = CompactTraining(model, pictures, seed, bf16=device == "cuda" or native_bf16())
    if keep.is_file():
        training.load(read_training_state(keep), keep)
    training.decay = Decay(steps - decay, decay) if decay else None
    main = threading.current_thread() is threading.main_thread()  # signals reach no other
    with told_to_stop() if main else nullcontext(lambda: False) as told:

        def stop() -> bool:
            show_progress("steps", training.done, steps)
            return told() or training.done >= steps

        train_compact(training, keep, stop)
    if training.done < steps:
        raise KeyboardInterrupt
    model.load_state_dict(training.mean)
    for path in (keep, keep.with_suffix(".csv")):
        path.unlink(missing_ok=True)
    return model.eval()


def compact_recipe(steps: int, decay: int) -> dict[str, float]:
    """What a manifest says of the network's training."""
    return {"steps": steps, "decay steps": decay, "batch": BATCH}


def small_judge(folder: Path, device: str) -> Judge:
    """The reported judge, from its weights in a folder."""
    return SmallResNetJudge(*load_checked(folder, "judge.safetensors"), device)


def inception_judge(folder: Path, data: Path, device: str, task: str) -> Judge:
    """The reported judge with Inception's features, whose weights are a file of the data's folder."""
    inception = Extractor(check_source(data, INCEPTION, task), device)
    return SmallResNetInceptionJudge(*load_checked(folder, "judge.safetensors"), inception, device)


def outside_judge(data: Path, calibration: Images, device: str, task: str, cache: Path) -> Judge:
    """The judge of tuning: weights that others trained, with a threshold from test images that is found once."""
    network = read_resnet(check_source(data, OUTSIDE, task))
    few = np.unique(np.linspace(0, len(calibration.y) - 1, min(CALIBRATED, len(calibration.y))).astype(int))
    images, labels = (torch.from_numpy(np.array(column[few])) for column in calibration)
    about = [ResNet56Judge.version, state_hash(network.state_dict()), images.flatten().tolist(), labels.tolist()]
    kept = cache / f"{digest(about)[:32]}.txt"
    if not kept.is_file():
        threshold = ResNet56Judge(network, float("inf"), device).calibrated(images, labels)
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, repr(threshold).encode())
    try:
        return ResNet56Judge(network, float(kept.read_text(encoding="utf-8")), device)
    except ValueError as error:
        raise Damaged(f"{kept} holds no threshold: delete it, and it is found again") from error
