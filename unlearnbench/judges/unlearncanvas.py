"""UnlearnCanvas's classifiers of styles and objects, two ViT-L/16, as one judge of two domains."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest, file_hash
from unlearnbench.judges import Verdict
from unlearnbench.judges.cifar import BATCH, prepared
from unlearnbench.judges.inception import Extractor, Featured
from unlearnbench.models.external.state_files import named_tensors, read_file

NETWORK = "vit_large_patch16_224.augreg_in21k"
"""OPTML-Group/UnlearnCanvas@920cfd1, machine_unlearning/evaluation/quantitative/accuracy.py:41."""
QUALITY = 75
"""Quality of JPEG: pillow's default, with which its sampling scripts save what the classifiers then read."""


class UnlearnCanvasViTs(Featured):
    """The published classifiers: of 50 styles and photographs, and of 20 objects.

    Labels are the styles, then photographs, then the objects. It never abstains, as in the benchmark's script: every
    image has the most probable style and the most probable object.
    """

    name, version, threshold, costly = "unlearncanvas-vit", "1", 0.0, True

    def __init__(
        self, styles: Path, objects: Path, counts: tuple[int, int], photo: int, extractor: Extractor, device: str
    ):
        """Load both networks.

        Args:
            styles: File of the style classifier, `cls_model/style50.pth` of the release.
            objects: File of the object classifier, `cls_model/style50_cls.pth`.
            counts: Number of styles without photographs, and of objects.
            photo: The style classifier's output for photographs.
            extractor: Features of images.
            device: Where the networks compute.

        Raises:
            UserError: A file is missing, or holds another network.
        """
        many, things = counts
        order = [*range(photo), *range(photo + 1, many + 1), photo]
        self._heads = (
            (Offloaded(_network(styles, many + 1), device), order),
            (Offloaded(_network(objects, things), device), list(range(things))),
        )
        self._domains = (range(many + 1), range(many + 1, many + 1 + things))
        self.classes, self.device, self.extractor = many + 1 + things, device, extractor
        self.hash = digest([file_hash(styles), file_hash(objects), extractor.hash])

    @property
    def domains(self) -> tuple[range, ...]:
        """Styles with photographs, and objects."""
        return self._domains

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, H, W): each is saved as JPEG and read again, then resized to 224 pixels."""
        seen = torch.stack([through_jpeg(image) for image in images])
        parts = []
        for offloaded, order in self._heads:
            net = offloaded.network
            with exact():
                logits = [net(prepared(some).to(self.device)).float().cpu() for some in seen.split(BATCH)]
            parts.append(torch.cat(logits)[:, order].softmax(dim=1))
        return Verdict(torch.cat(parts, dim=1), torch.zeros(len(images), len(parts), dtype=torch.bool))


def through_jpeg(image: Tensor) -> Tensor:
    """What is left of an image uint8 (3, H, W) that was saved as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=QUALITY)
    with Image.open(file) as again:
        return torch.from_numpy(np.array(again)).permute(2, 0, 1)


def _network(path: Path, classes: int) -> Any:
    """One classifier from a file of torch.save, with the weights alone or under `model_state_dict`."""
    import timm

    if not path.is_file():
        raise UserError(
            f"no classifier of UnlearnCanvas at {path}: download `cls_model` from the folder of checkpoints that the "
            "README.md of https://github.com/OPTML-Group/UnlearnCanvas names, and give the folder that has it with "
            "--data"
        )
    found = read_file(path)
    inner = found.get("model_state_dict", found) if isinstance(found, Mapping) else found
    state = {name: value.float() for name, value in named_tensors(path, inner).items()}
    with torch.device("meta"):  # draws no random numbers
        net: Any = timm.create_model(NETWORK, pretrained=False, num_classes=classes)
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} holds no {NETWORK} of {classes} classes ({one_line(error)[:120]}): give the file of "
            "UnlearnCanvas's 50 styles"
        ) from error
    return net.eval()
