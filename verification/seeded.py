"""Tensors that follow from a name and a seed alone, on every machine: the weights and images of the vectors of whole
networks, which would be too large to keep.

The numbers are torch's uniform ones from its CPU generator, in float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["checksums", "images", "uniform", "weights"]

RANGES: Sequence[tuple[str, float, float]] = (
    ("conv.0.weight", -0.17, 0.17), ("conv.3.weight", -0.1, 0.1), ("conv.6.weight", -0.1, 0.1),
    ("patch_embed.proj.weight", -0.004, 0.004), ("patch_embed2.proj.weight", -0.004, 0.004),
    ("attn.qkv.weight", -0.07, 0.07), ("attn.proj.weight", -0.05, 0.05),
    ("mlp.fc1.weight", -0.05, 0.05), ("mlp.fc2.weight", -0.03, 0.03),
    ("cls_token", -0.06, 0.06), ("pos_embed", -0.06, 0.06),
    ("running_var", 0.5, 1.5), ("running_mean", -0.3, 0.3), ("bias", -0.1, 0.1),
)  # fmt: skip
"""How a weight's name ends, and its range; the first that fits counts."""


def uniform(name: str, seed: int, shape: Sequence[int], low: float, high: float) -> Tensor:
    """Float32 [shape], uniform in low … high; another name or seed gives other numbers."""
    key = zlib.crc32(name.encode()) ^ (seed * 2_654_435_761)
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(key % 2**31)) * (high - low) + low


def weights(shapes: Mapping[str, Sequence[int]], seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a network by its published name; prefix: before each name where the numbers are drawn."""
    return {name: _weight(prefix + name, seed, shape) for name, shape in shapes.items()}


def _weight(name: str, seed: int, shape: Sequence[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000 + zlib.crc32(name.encode()) % 1000)
    if name in ("bottleneck.bias", "bottlenecks.bias"):  # frozen at 0
        return torch.zeros(shape)
    of_norm = (0.7, 1.3) if len(shape) == 1 else (-0.05, 0.05)
    low, high = next(((low, high) for end, low, high in RANGES if name.endswith(end)), of_norm)
    return uniform(name, seed, shape, low, high)


def images(name: str, seed: int, count: int, height: int, width: int, patch: int = 48) -> Tensor:
    """Normalised images [count, 3, height, width]: flat patches of colour under fine noise."""
    coarse = uniform(f"{name}.coarse", seed, (count, 3, height // patch, width // patch), -2.0, 2.0)
    flat = coarse.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return flat + uniform(f"{name}.fine", seed, (count, 3, height, width), -0.6, 0.6)


def checksums(*tensors: Tensor) -> Tensor:
    """A float64 number for each tensor, by which another machine sees that it drew the same."""
    flat = [t.double().flatten() for t in tensors]
    return torch.stack([x @ torch.linspace(1, 2, len(x), dtype=torch.float64) for x in flat])
