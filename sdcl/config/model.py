"""The settings of the network."""

from __future__ import annotations

from dataclasses import dataclass

from sdcl.errors import UserError

__all__ = ["PATCH", "ModelConfig"]

PATCH = 16
"""Pixels per patch side: the stem's stride 2 times its projection's stride 8."""


@dataclass(frozen=True)
class ModelConfig:
    """The network (method page, section 1). The defaults are the published ViT-B/16 at 288 x 144."""

    image_height: int = 288
    """Height of the images that the network sees, in pixels; a multiple of 16."""
    image_width: int = 144
    """Width of the images that the network sees, in pixels; a multiple of 16."""
    dim: int = 768
    """Width D of the transformer and of each embedding."""
    depth: int = 12
    """Number of transformer blocks; the last one becomes the deep and the shallow head."""
    heads: int = 12
    """Attention heads; they divide `dim`."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP as a multiple of `dim`."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    pretrained: str | None = None
    """File of backbone weights (ICS, DINO or timm ViT) to start from; None: random weights."""

    def __post_init__(self) -> None:
        for name in ("image_height", "image_width"):
            if getattr(self, name) < PATCH or getattr(self, name) % PATCH:
                raise UserError(
                    f"{name.replace('_', '-')} is {getattr(self, name)}: it must be a multiple of {PATCH} "
                    f"(the patch size), such as {max(1, round(getattr(self, name) / PATCH)) * PATCH}"
                )
        if self.depth < 2:
            raise UserError(f"depth is {self.depth}: at least 2 blocks are needed, one of them for the heads")
        if self.heads < 1 or self.dim % self.heads:
            raise UserError(f"heads is {self.heads}: it must divide dim ({self.dim})")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across, (18, 9) at 288 x 144."""
        return self.image_height // PATCH, self.image_width // PATCH
