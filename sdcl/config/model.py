"""The settings of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sdcl.errors import UserError
from sdcl.settings import Count, Positive, Range, check_ranges

__all__ = ["PATCH", "ModelConfig"]

PATCH = 16
"""Pixels per patch side: the stem's stride 2 times its projection's stride 8."""


@dataclass(frozen=True)
class ModelConfig:
    """The network (method page, section 1). The defaults are the published ViT-B/16 at 288 x 144."""

    image_height: Annotated[int, Range(1, 4096)] = 288
    """Height of the images that the network sees, in pixels; a multiple of 16."""
    image_width: Annotated[int, Range(1, 4096)] = 144
    """Width of the images that the network sees, in pixels; a multiple of 16."""
    dim: Annotated[int, Range(1, 16384)] = 768
    """Width D of the transformer and of each embedding."""
    depth: Annotated[int, Range(2, 1000)] = 12
    """Number of transformer blocks, at least 2; the last one becomes the deep and the shallow head."""
    heads: Count = 12
    """Attention heads; they divide `dim`."""
    mlp_ratio: Positive = 4.0
    """Width of a block's MLP as a multiple of `dim`."""
    drop_path: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    stem: Literal["conv", "patch"] = "conv"
    """Patch embeddings: conv, the four convolutions of the published network, or patch, one convolution of 16 x 16
    pixels, for pre-trained weights of plain ViTs (MAE, timm, DINO, PersonViT, HAP). A copy for each modality."""
    pretrained: str | None = None
    """File of weights to start from: a pre-trained ViT (ICS as published, DINO, MAE, timm, PASS), or a whole trained
    model of this project or the published format. None: random weights."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("image_height", "image_width"):
            if getattr(self, name) < PATCH or getattr(self, name) % PATCH:
                raise UserError(
                    f"{name.replace('_', '-')} is {getattr(self, name)}: it must be a multiple of {PATCH} "
                    f"(the patch size), such as {max(1, round(getattr(self, name) / PATCH)) * PATCH}"
                )
        if self.dim % self.heads:
            raise UserError(f"heads is {self.heads}: it must divide dim ({self.dim})")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across, (18, 9) at 288 x 144."""
        return self.image_height // PATCH, self.image_width // PATCH
