"""What AML's networks see of a batch (method page, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdcl.data.transforms import MEAN, STD

__all__ = ["draw_channels", "normalise", "one_channel", "transformed", "views"]

GENERATED_SHARE = 0.2


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0 … 255 [B, 3, H, W] to float32, normalised by ImageNet's mean and deviation of each channel."""
    mean, std = (pixels.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def draw_channels(count: int, generator: torch.Generator | None = None) -> Tensor:
    """A channel 0, 1 or 2 for each image, independent and uniform: int64 [count], on the CPU."""
    return torch.randint(3, (count,), generator=generator)


def one_channel(x: Tensor, channels: Tensor) -> Tensor:
    """Copies channel channels[i] of image i over all three of them: [B, 3, H, W] to the same shape.

    Of *normalised* images, so that a copied channel keeps its own mean and deviation (section 13.14).
    channels: int64 [B], 0 … 2.
    """
    rows = torch.arange(len(x), device=x.device)
    return x[rows, channels.to(x.device)][:, None].expand_as(x).contiguous()


def transformed(x: Tensor, generated: Tensor | None, channels: Tensor, share: float = GENERATED_SHARE) -> Tensor:
    """The transformed view of normalised images [B, 3, H, W]: their channel view, mixed with `share` of their
    generated partners [B, 3, H, W], also normalised, where there are any (source)."""
    view = one_channel(x, channels)
    return view if generated is None else share * generated + (1 - share) * view


def views(
    pixels: Tensor, generated: Tensor | None, channels: Tensor, share: float = GENERATED_SHARE
) -> tuple[Tensor, Tensor]:
    """Visible and transformed view, normalised float32 [B, 3, H, W], of augmented images.

    Args:
        pixels: 0 … 255 [B, 3, H, W].
        generated: the same of their generated infrared partners (source), or None (target).
        channels: int64 [B], 0 … 2 (`draw_channels`).
        share: of the generated partner in the transformed view.
    """
    visible = normalise(pixels)
    return visible, transformed(visible, None if generated is None else normalise(generated), channels, share)
