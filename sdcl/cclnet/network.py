"""CLIP's ResNet-50 with two stems: images to features and projections (CCLNet page, section 1).

Attribute names inside `Stem`, `Trunk` and `AttentionPool` are those of OpenAI's weight file, so that names map by their
prefix alone (`sdcl.cclnet.weights`). Differences to CLIP's own network: a stem for each modality, stride 1 in the last
layer, a position embedding for the images' own grid.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttentionPool", "Stem", "Trunk", "generalised_mean"]

STRIDES = (1, 2, 2, 1)
"""Of the four layers; CLIP's own last layer has 2."""
EXPANSION = 4
"""Channels that leave a bottleneck block, as a multiple of its inner ones."""


class Stem(nn.Module):
    """One modality's first layers: three convolutions and a pooling, [B, 3, H, W] to [B, width, H/4, W/4]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return F.avg_pool2d(x, 2)


class Bottleneck(nn.Module):
    """A residual block that shrinks by average pooling rather than by strides, so that no place is skipped.

    Args:
        channels: of the input. inner: channels inside; 4·inner leave. stride: of the pooling.
    """

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * inner
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != out:
            convolution = nn.Conv2d(channels, out, 1, bias=False)
            self.downsample = nn.Sequential(OrderedDict({"0": convolution, "1": nn.BatchNorm2d(out)}))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self._shrink(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(self._shrink(x))
        return F.relu(y + shortcut)

    def _shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class Trunk(nn.Module):
    """The four layers that both modalities share, [B, width, H/4, W/4] to [B, 32·width, H/16, W/16].

    Args:
        width: inner channels of the first layer; they double from layer to layer.
        depths: blocks of the four layers.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, width: int, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        channels = width
        for i, (depth, stride) in enumerate(zip(depths, STRIDES, strict=True)):
            inner, blocks = width * 2**i, []
            for block in range(depth):
                blocks.append(Bottleneck(channels, inner, stride if block == 0 else 1))
                channels = EXPANSION * inner
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class AttentionPool(nn.Module):
    """CLIP's pooling: the mean of all places asks all places, [B, C, h, w] to [B, projection], un-normalised.

    The output row of the mean's token is all that is used, so it alone is computed.

    Args:
        channels: C, a multiple of `head_width`. grid: (h, w). projection: width of the output.
    """

    head_width = 64

    def __init__(self, channels: int, grid: tuple[int, int], projection: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(1 + grid[0] * grid[1], channels))
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, projection)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)  # [B, h·w, C]
        tokens = torch.cat([places.mean(1, keepdim=True), places], dim=1) + self.positional_embedding
        q, k, v = (
            layer(t).unflatten(2, (-1, self.head_width)).transpose(1, 2)  # [B, heads, 1 or 1 + h·w, 64]
            for layer, t in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)  # [B, C]
        return self.c_proj(pooled)


def generalised_mean(x: Tensor) -> Tensor:
    """[B, C, h, w], nowhere negative, to [B, C]: the cube root of the mean cube of all places (section 1, point 3)."""
    return (x.pow(3).flatten(2).mean(2) + 1e-12).pow(1 / 3)
