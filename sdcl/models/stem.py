"""The patch embedding of one modality: convolutional as published (method page, section 1, point 1), or plain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdcl.config import PATCH

__all__ = ["STEMS", "STEM_CHANNELS", "ConvStem", "InstanceBatchNorm", "PatchStem"]

STEM_CHANNELS = 64


class InstanceBatchNorm(nn.Module):
    """IBN: instance normalisation of the first half of the channels, batch normalisation of the second half.

    The first half uses each image's own statistics, in evaluation too, which takes out much of an image's style.
    Attribute names are those of published weight files. (Pan et al., Two at Once, ECCV 2018, the "IBN-a" layer.)

    Args:
        channels: C; the first C // 2 are instance-normalised.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        own, batch = x.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(own), self.BN(batch)], dim=1)


class ConvStem(nn.Module):
    """Images to patch tokens by four convolutions (the "ICS" stem of TransReID-SSL).

    Args:
        dim: D, the width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        c = STEM_CHANNELS
        # Positions in the Sequential are part of the names in published weight files: conv.0, 1, 3, 4, 6, 7.
        self.conv = nn.Sequential(
            nn.Conv2d(3, c, 7, stride=2, padding=3, bias=False), InstanceBatchNorm(c), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, padding=1, bias=False), InstanceBatchNorm(c), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True),
        )
        # Stride 2 of the first convolution times this stride makes a patch of 16 pixels.
        self.proj = nn.Conv2d(c, dim, PATCH // 2, stride=PATCH // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], H and W multiples of 16, to tokens [B, H/16 * W/16, D], row by row of the grid."""
        return self.proj(self.conv(images)).flatten(2).transpose(1, 2)


class PatchStem(nn.Module):
    """Images to patch tokens by one convolution of 16 x 16 pixels and as large a step, as in a plain ViT.

    Args:
        dim: D, the width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], H and W multiples of 16, to tokens [B, H/16 * W/16, D], row by row of the grid."""
        return self.proj(images).flatten(2).transpose(1, 2)


STEMS: dict[str, type[ConvStem] | type[PatchStem]] = {"conv": ConvStem, "patch": PatchStem}
"""By the names of the setting `stem`."""
