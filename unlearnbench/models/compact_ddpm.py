"""A class-conditional U-Net for 32x32 photographs, small enough to be trained on a CPU, as a `Diffusion`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.diffusion.model import Condition, Diffusion

FOLD = 2
"""Each block of FOLD x FOLD pixels becomes one position with FOLD^2 times the channels."""


class CompactDDPM(Diffusion):
    """diffusers' `UNet2DModel` on folded pixels, with v-prediction on the cosine schedule: 4,005,516 parameters.

    Folding takes (3, 32, 32) to (12, 16, 16), so that the network works at 16x16 and 8x8, with attention at 8x8. It
    loses nothing: callers see images (3, 32, 32) in [-1, 1] only. Classes are embedded by a module of its own with one
    extra row for the null class, which feeds `class_embed_type="identity"`, so that attacks and edits reach it by
    gradient. The parts are those of `ClassUNet`: "full", and its two halves "unet" and "embedding".
    """

    def __init__(
        self,
        classes: int = 10,
        size: int = 32,
        widths: tuple[int, int] = (64, 128),
        layers: int = 2,
        head: int = 32,
        groups: int = 16,
        T: int = 1000,
    ):
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        schedule = DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
        super().__init__(schedule.alphas_cumprod, (3, size, size), prediction="v_prediction", clip=True)
        self.classes = classes
        self.unet = UNet2DModel(
            sample_size=size // FOLD,
            in_channels=3 * FOLD**2,
            out_channels=3 * FOLD**2,
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=head,
            norm_num_groups=groups,
            class_embed_type="identity",
        )
        self.embedding = nn.Embedding(classes + 1, 4 * widths[0])
        self.to(memory_format=torch.channels_last)  # faster on CPU, the same values

    def embed(self, y: Tensor) -> Condition:
        """Rows of the embedding (B, D)."""
        return Condition(self.embedding(y), ids=y)

    def null(self, n: int) -> Condition:
        """The extra row, n times."""
        return self.embed(torch.full((n,), self.classes, device=self.alpha_bar.device))

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The predicted v (B, 3, H, W)."""
        folded = fold(x_t).contiguous(memory_format=torch.channels_last)
        return unfold(self.unet(folded, t, class_labels=condition.states, return_dict=False)[0])

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """full = unet + embedding."""
        unet, embedding = list(self.unet.parameters()), list(self.embedding.parameters())
        return {"full": unet + embedding, "unet": unet, "embedding": embedding}


def fold(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4 C, H / 2, W / 2)."""
    return F.pixel_unshuffle(x, FOLD)


def unfold(x: Tensor) -> Tensor:
    """The inverse of `fold`."""
    return F.pixel_shuffle(x, FOLD)
