"""The class-conditional DDPM on CIFAR-10 of SA, SalUn, EraseDiff and SFRon, built on diffusers' `UNet2DModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.diffusion.model import Condition, Diffusion
from unlearnbench.errors import UserError

WIDTH, LEVELS, T = 128, (1, 2, 2, 2), 1000
BETAS = (1e-4, 0.02)


class _Time(nn.Module):
    """Map sinusoids (B, W) to the time's half of the joint embedding (B, 8 W); the class's half is zero here.

    diffusers' own module would be twice as wide, with zeros in one half that training could change.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)

    def forward(self, sinusoids: Tensor, condition: Tensor | None = None) -> Tensor:
        """Two layers, then zeros for the class."""
        half = self.linear_2(F.silu(self.linear_1(sinusoids)))
        return F.pad(half, (0, half.shape[1]))


class ConditionalDDPM(Diffusion):
    """The U-Net of Heng & Soh (NeurIPS 2023) with concatenated time and class embeddings; 38,632,323 parameters at
    width 128.

    y are classes (B,); `null_classes_emb` is the null class. x0 is in [-1, 1], the network predicts noise, and betas
    are linear from 1e-4 to 0.02. Parts: "full" is everything, which those papers train; "unet" and "embedding" are its
    halves.
    """

    def __init__(self, classes: int = 10, size: int = 32, width: int = WIDTH, dropout: float = 0.1):
        from diffusers.models.unets.unet_2d import UNet2DModel

        betas = torch.linspace(*BETAS, T, dtype=torch.float64)
        super().__init__((1 - betas).cumprod(dim=0), (3, size, size), clip=False)
        self.classes = classes
        attention = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
        self.unet: Any = UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            time_embedding_type="positional",
            time_embedding_dim=8 * width,
            freq_shift=1,
            flip_sin_to_cos=False,
            down_block_types=tuple(attention),
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(attention)),
            block_out_channels=tuple(width * level for level in LEVELS),
            layers_per_block=2,
            downsample_padding=0,
            dropout=dropout,
            attention_head_dim=None,
            norm_num_groups=32 if width % 32 == 0 else width // 4,
            norm_eps=1e-6,
            class_embed_type="identity",
        )
        self.unet.time_embedding = _Time(width)
        self.classes_emb = nn.Embedding(classes, width)
        self.null_classes_emb = nn.Parameter(torch.randn(width))
        self.cemb = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])
        self.to(memory_format=torch.channels_last)  # faster on GPUs in bf16, with the same values

    def embed(self, y: Tensor) -> Condition:
        """Rows of the class table (B, W) for labels y (B,)."""
        return Condition(self.classes_emb(y), ids=y)

    def null(self, n: int) -> Condition:
        """The null class's row, repeated n times; its label is one past the last."""
        ids = torch.full((n,), self.classes, device=self.alpha_bar.device)
        return Condition(self.null_classes_emb.expand(n, -1), ids=ids)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noise prediction (B, 3, H, W)."""
        half = self.cemb[1](F.silu(self.cemb[0](condition.states)))
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        return self.unet(x_t, t, class_labels=F.pad(half, (half.shape[1], 0)), return_dict=False)[0]

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """full = unet + embedding (class table, null row, their two layers)."""
        unet = list(self.unet.parameters())
        embedding = [*self.classes_emb.parameters(), self.null_classes_emb, *self.cemb.parameters()]
        return {"full": unet + embedding, "unet": unet, "embedding": embedding}


# ---- their checkpoints -----------------------------------------------------------------------------------------------

RENAMED = (
    (r"^temb\.dense\.0\.", "unet.time_embedding.linear_1."),
    (r"^temb\.dense\.1\.", "unet.time_embedding.linear_2."),
    (r"^cemb\.dense\.", "cemb."),
    (r"^conv_(in|out)\.", r"unet.conv_\1."),
    (r"^norm_out\.", "unet.conv_norm_out."),
    (r"^down\.(\d)\.block\.(\d)\.", r"unet.down_blocks.\1.resnets.\2."),
    (r"^down\.(\d)\.attn\.(\d)\.", r"unet.down_blocks.\1.attentions.\2."),
    (r"^down\.(\d)\.downsample\.", r"unet.down_blocks.\1.downsamplers.0."),
    (r"^mid\.block_1\.", "unet.mid_block.resnets.0."),
    (r"^mid\.block_2\.", "unet.mid_block.resnets.1."),
    (r"^mid\.attn_1\.", "unet.mid_block.attentions.0."),
)
WITHIN = (
    (r"\.temb_cemb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d)\.proj_out\.", r"\1.to_out.0."),
)


def renamed(key: str) -> str:
    """Translate a tensor's name from the papers' files. Levels of the upward path are counted from the other end."""
    key = key.removeprefix("module.")

    def upward(match: re.Match[str]) -> str:
        kind = {"block": "resnets", "attn": "attentions"}.get(match[2], "upsamplers")
        return f"unet.up_blocks.{len(LEVELS) - 1 - int(match[1])}.{kind}.{match[3] or '0'}."

    key = re.sub(r"^up\.(\d)\.(block|attn|upsample)\.(?:(\d)\.)?", upward, key)
    for pattern, text in (*RENAMED, *WITHIN):
        key = re.sub(pattern, text, key)
    return key


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the papers' state dictionary; the 1x1 convolutions of attention become linear layers."""
    result = {renamed(key): value for key, value in state.items()}
    return {
        key: value[:, :, 0, 0] if ".attentions." in key and value.dim() == 4 else value for key, value in result.items()
    }


def load_converted(model: ConditionalDDPM, state: Mapping[str, Tensor], where: str) -> None:
    """Load the papers' weights into the model. If keys do not fit, they are named and nothing is changed."""
    own, given = model.state_dict(), converted(state)
    strange, missing = sorted(set(given) - set(own)), sorted(set(own) - set(given))
    wrong = [key for key in given if key in own and given[key].shape != own[key].shape]
    if strange or missing or wrong:
        what = (
            f"it has {strange[0]!r}, which the model has not"
            if strange
            else f"{missing[0]!r} is missing"
            if missing
            else f"{wrong[0]!r} is {tuple(given[wrong[0]].shape)}, the model's {tuple(own[wrong[0]].shape)}"
        )
        count = len(strange) + len(missing) + len(wrong)
        raise UserError(
            f"{where} is of another architecture ({count} keys do not fit: {what}): give a checkpoint of the "
            "conditional DDPM on CIFAR-10"
        )
    model.load_state_dict(given)
