"""A class-conditional U-Net (diffusers' `UNet2DModel`) as a `Diffusion`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.model import Condition, Diffusion


class ClassUNet(Diffusion):
    """`UNet2DModel` whose class embedding is a separate module with one extra row for the null class.

    The embedding is passed through `class_embed_type="identity"`, so that gradients reach it for attacks and edits.
    Parts: "full" is the network with its embedding, which class-conditional papers train; "unet" and "embedding" are
    its halves.
    """

    def __init__(
        self,
        classes: int,
        size: int,
        channels: int = 1,
        widths: tuple[int, ...] = (32, 64),
        layers: int = 1,
        T: int = 1000,
    ):
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        schedule = DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
        super().__init__(schedule.alphas_cumprod, (channels, size, size), clip=True)
        self.classes = classes
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            norm_num_groups=8,
            add_attention=False,
            class_embed_type="identity",
        )
        self.embedding = nn.Embedding(classes + 1, 4 * widths[0])
        self.to(memory_format=torch.channels_last)  # 10 % faster on CPU with the same values

    def embed(self, y: Tensor) -> Condition:
        """Rows of the embedding (B, D) for labels y (B,)."""
        return Condition(self.embedding(y), ids=y)

    def null(self, n: int) -> Condition:
        """The extra row, repeated n times."""
        return self.embed(torch.full((n,), self.classes, device=self.alpha_bar.device))

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noise prediction (B, C, H, W)."""
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        return self.unet(x_t, t, class_labels=condition.states, return_dict=False)[0]

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """full = unet + embedding."""
        unet, embedding = list(self.unet.parameters()), list(self.embedding.parameters())
        return {"full": unet + embedding, "unet": unet, "embedding": embedding}
