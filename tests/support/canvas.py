"""UnlearnCanvas's folder of checkpoints, small: a diffusers model, and classifiers in the release's layout.

The layout was read in OPTML-Group/UnlearnCanvas@920cfd1: `diffusion_model_finetuning/README.md` (places of the model),
`machine_unlearning/evaluation/quantitative/accuracy.py` (network, head, `model_state_dict`) and
`.../evaluation/constants/const.py` (51 styles with `Seed_Images`, 20 objects); the classifiers' file names in
cywinski/SAeUron@1a4302a, `Diffusion-MU-Attack/configs/style/text_grad_esd_style_classifier.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny_data, tiny_sd

CLASSIFIERS = {"cls_model/style50.pth": 51, "cls_model/style50_cls.pth": 20}
MODEL = "diffusion/diffuser/style50"
NETWORK = "vit_large_patch16_224.augreg_in21k"
PLACES = [
    "Abstractionism",
    "Artist_Sketch",
    "Blossom_Season",
    "Bricks",
    "Byzantine",
    "Cartoon",
    "Cold_Warm",
    "Color_Fantasy",
    "Comic_Etch",
    "Crayon",
    "Cubism",
    "Dadaism",
    "Dapple",
    "Defoliation",
    "Early_Autumn",
    "Expressionism",
    "Fauvism",
    "French",
    "Glowing_Sunset",
    "Gorgeous_Love",
    "Greenfield",
    "Impressionism",
    "Ink_Art",
    "Joy",
    "Liquid_Dreams",
    "Magic_Cube",
    "Meta_Physics",
    "Meteor_Shower",
    "Monet",
    "Mosaic",
    "Neon_Lines",
    "On_Fire",
    "Pastel",
    "Pencil_Drawing",
    "Picasso",
    "Pop_Art",
    "Red_Blue_Ink",
    "Rust",
    "Seed_Images",
    "Sketch",
    "Sponge_Dabbed",
    "Structuralism",
    "Superstring",
    "Surrealism",
    "Ukiyoe",
    "Van_Gogh",
    "Vibrant_Flow",
    "Warm_Love",
    "Warm_Smear",
    "Watercolor",
    "Winter",
]
"""The style classifier's outputs in order: `theme_available`."""


def narrow_vit(name: str, pretrained: bool, num_classes: int) -> Any:
    """A vision transformer of the same parts and another width, in the place of ViT-L/16."""
    from timm.models.vision_transformer import VisionTransformer

    assert (name, pretrained) == (NETWORK, False)
    return VisionTransformer(patch_size=112, embed_dim=8, depth=1, num_heads=1, num_classes=num_classes)


@contextmanager
def narrow_classifiers() -> Iterator[None]:
    """Both classifiers have that network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.create_model", narrow_vit)
        yield


def classifiers(place: Path, seed: int = 0) -> None:
    """Both files, as the training script of the release saved them."""
    torch.manual_seed(seed)
    for name, classes in CLASSIFIERS.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        state = narrow_vit(NETWORK, False, classes).state_dict()
        torch.save({"epoch": 9, "model_state_dict": state, "loss": torch.tensor(0.1)}, place / name)


def folder(place: Path) -> Path:
    """What `--data` wants."""
    from unlearnbench.tasks._sd.canvas import OBJECTS, STYLES

    words = " ".join((*STYLES, *OBJECTS, "a image in style photo")).lower().split()
    tiny_sd.save(place / MODEL, "sd1", sorted(set(words)))
    classifiers(place)
    for seed, name in enumerate(("clip-vit-b-32", "clip-vit-l-14")):
        tiny_data.clip(place / name, seed)
    return place
