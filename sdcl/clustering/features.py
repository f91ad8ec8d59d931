"""Embeddings on their way in: what is accepted, and inner products that do not depend on how they were computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .threads import in_blocks

NORM_TOLERANCE = 1e-3
# A float32 matrix product of unit rows is off by less than this, whatever the library and its blocking. Measured: 6e-7
# at width 1536, on all-positive rows too; what exceeds it would take a sum that loses a bit at every 16th addition.
PRODUCT_ERROR = 1e-5


def as_features(features: Tensor | np.ndarray) -> Tensor:
    """Checked features [N, d] as a contiguous float32 tensor on their own device.

    Raises ValueError when they are no floating-point matrix with at least one row, or a row is not finite or its
    length is not 1.
    """
    if isinstance(features, np.ndarray):
        # from_numpy wants an array that may be written to, although nothing here writes
        features = torch.from_numpy(features if features.flags.writeable else features.copy())
    if features.ndim != 2 or len(features) == 0 or not features.is_floating_point():
        raise ValueError(
            f"features must be a floating-point matrix [N, d] with N >= 1, not {features.dtype} {list(features.shape)}"
        )
    features = features.detach().to(torch.float32).contiguous()
    lengths = torch.linalg.vector_norm(features, dim=1)
    wrong = torch.nonzero(~((lengths - 1).abs() <= NORM_TOLERANCE))[:, 0]
    if len(wrong):
        row, length = int(wrong[0]), float(lengths[wrong[0]])
        found = f"{len(wrong)} of {len(features)} feature rows (first: row {row}, length {length:.4g})"
        if not torch.isfinite(lengths).all():
            raise ValueError(f"{found} are not finite or not of unit length: the embeddings have diverged")
        raise ValueError(f"{found} are not of unit length: L2-normalise the features, e.g. F.normalize(x, dim=1)")
    return features


def inner_products(features: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """features[i] · features[j] for index pairs [P]: float32 [P], the float64 sum rounded once.

    Matrix products round differently from one library, block size or thread count to another. These do not, so exact
    copies of a row tie exactly and every search agrees on near-ties.
    """
    if features.is_cuda:
        return inner_products_by_torch(features, i, j)
    out = features.new_empty(len(i))
    x, rows_i, rows_j, products = features.numpy(), i.numpy(), j.numpy(), out.numpy()

    def block(start: int, stop: int) -> None:
        for p in range(start, stop, 128):  # few rows at a time stay in cache
            part = slice(p, min(p + 128, stop))
            products[part] = np.einsum("pd,pd->p", x[rows_i[part]], x[rows_j[part]], dtype=np.float64)

    in_blocks(block, len(i), 1 << 12)
    return out


def inner_products_by_torch(features: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """`inner_products` on any device."""
    pairs = zip(i.long().split(1 << 14), j.long().split(1 << 14), strict=True)
    return torch.cat([(features[a].double() * features[b]).sum(1).float() for a, b in pairs])


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 matrix products in float32: no TF32, no bfloat16 behind the scenes, no autocast, no gradients."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        switches: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
        if all(hasattr(s, "fp32_precision") for s in switches):  # newer torch has one switch per backend
            before = [s.fp32_precision for s in switches]
            try:
                for s in switches:
                    s.fp32_precision = "ieee"
                yield
            finally:
                for s, value in zip(switches, before, strict=True):
                    s.fp32_precision = value
        else:
            legacy = torch.get_float32_matmul_precision()
            try:
                torch.set_float32_matmul_precision("highest")
                yield
            finally:
                torch.set_float32_matmul_precision(legacy)
