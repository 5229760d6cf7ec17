"""The conditional DDPM of the CIFAR-10 papers written out from its description, under its own checkpoints' names."""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def swish(x):
    return x * torch.sigmoid(x)


def norm(channels, groups):
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Block(nn.Module):
    def __init__(self, into, out, width, groups):
        super().__init__()
        self.norm1, self.conv1 = norm(into, groups), nn.Conv2d(into, out, 3, padding=1)
        self.temb_cemb_proj = nn.Linear(8 * width, out)
        self.norm2, self.conv2 = norm(out, groups), nn.Conv2d(out, out, 3, padding=1)
        if into != out:
            self.nin_shortcut = nn.Conv2d(into, out, 1)

    def forward(self, x, temb, cemb):
        h = self.conv1(swish(self.norm1(x)))
        h = h + self.temb_cemb_proj(swish(torch.cat([temb, cemb], dim=1)))[:, :, None, None]
        h = self.conv2(swish(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.q, self.k, self.v))
        weights = (torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5).softmax(dim=2)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))


class Level(nn.Module):
    def __init__(self, blocks, attention):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attention)


class Resample(nn.Module):
    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if down else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2, mode="nearest"))


class Dense(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])

    def forward(self, x):
        return self.dense[1](swish(self.dense[0](x)))


class Reference(nn.Module):
    def __init__(self, classes=10, width=128, groups=32, levels=(1, 2, 2, 2), attended=1):
        super().__init__()
        self.width, self.attended, count = width, attended, len(levels)
        widths = [width * level for level in levels]
        self.classes_emb, self.null_classes_emb = nn.Embedding(classes, width), nn.Parameter(torch.randn(width))
        self.temb, self.cemb, self.conv_in = Dense(width), Dense(width), nn.Conv2d(3, width, 3, padding=1)
        self.down, self.up, skips, into = nn.ModuleList(), nn.ModuleList(), [width], width
        for i, out in enumerate(widths):
            blocks = [Block(into if j == 0 else out, out, width, groups) for j in range(2)]
            level = Level(blocks, [Attention(out, groups) for _ in range(2) if i == attended])
            skips += [out, out]
            if i < count - 1:
                level.downsample = Resample(out, down=True)
                skips.append(out)
            self.down.append(level)
            into = out
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = Block(into, into, width, groups), Attention(into, groups)
        self.mid.block_2 = Block(into, into, width, groups)
        made = []
        for i in reversed(range(count)):
            blocks = []
            for _ in range(3):
                blocks.append(Block(into + skips.pop(), widths[i], width, groups))
                into = widths[i]
            level = Level(blocks, [Attention(into, groups) for _ in range(3) if i == attended])
            if i > 0:
                level.upsample = Resample(into, down=False)
            made.insert(0, level)
        self.up.extend(made)
        self.norm_out, self.conv_out = norm(into, groups), nn.Conv2d(into, 3, 3, padding=1)

    def forward(self, x, t, c):
        """c holds classes, -1 for none."""
        half = self.width // 2
        angles = t[:, None].float() * torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        temb = self.temb(torch.cat([angles.sin(), angles.cos()], dim=1))
        table = torch.where((c < 0)[:, None], self.null_classes_emb, self.classes_emb(c.clamp(min=0)))
        cemb = self.cemb(table)
        skips = [self.conv_in(x)]
        for level in self.down:
            for j, block in enumerate(level.block):
                h = block(skips[-1], temb, cemb)
                skips.append(level.attn[j](h) if len(level.attn) else h)
            if hasattr(level, "downsample"):
                skips.append(level.downsample(skips[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(skips[-1], temb, cemb)), temb, cemb)
        for level in reversed(self.up):
            for j, block in enumerate(level.block):
                h = block(torch.cat([h, skips.pop()], dim=1), temb, cemb)
                h = level.attn[j](h) if len(level.attn) else h
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(swish(self.norm_out(h)))
