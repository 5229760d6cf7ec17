"""Register a judge as a feature extractor of torch-fidelity, under the judge's own name."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from unlearnbench.judges import Judge

LAYER = "judge"


class ImageDataset(Dataset):
    """uint8 images (N, 3, H, W) as torch-fidelity reads them: one tensor per item."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def register(judge: Judge) -> str:
    """Register the judge's features with torch-fidelity. Returns the name for `feature_extractor=`."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (judge.features(images.cpu()),)

    name = f"{judge.name}-{judge.hash[:12]}"
    FEATURE_EXTRACTORS_REGISTRY[name] = Extractor  # written directly, since registering twice must not fail
    return name


def extract(judge: Judge, images: Tensor, batch: int = 250) -> Tensor:
    """Features (N, D) of uint8 images, through torch-fidelity's own loop."""
    from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

    extractor = create_feature_extractor(register(judge), [LAYER], cuda=False, verbose=False)
    return get_featuresdict_from_dataset(ImageDataset(images), extractor, batch, False, True, False)[LAYER]
