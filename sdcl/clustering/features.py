"""Embeddings on their way in: what is accepted, and inner products that do not depend on how they were computed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

NORM_TOLERANCE = 1e-3
# A float32 matrix product of unit rows is off by less than this, whatever the library and its blocking. Measured: 6e-7
# at width 1536, on all-positive rows too; what exceeds it would take a sum that loses a bit at every 16th addition.
PRODUCT_ERROR = 1e-5
# Added to the squared distances of lifted rows, in their scale. Rounded to float32, a distance of 0 would keep the
# noise of its float64 sum, and copies of a row would not tie.
LIFT = 2.0**-20


def as_features(features: Tensor | np.ndarray, unit_length: bool = True) -> Tensor:
    """Checked features [N, d] as a contiguous float32 tensor on their own device.

    Raises ValueError when they are no floating-point matrix with at least one row, a row is not finite, or, unless
    `unit_length` is False, its length is not 1.
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
    good = (lengths - 1).abs() <= NORM_TOLERANCE if unit_length else torch.isfinite(lengths)
    wrong = torch.nonzero(~good)[:, 0]
    if len(wrong):
        row, length = int(wrong[0]), float(lengths[wrong[0]])
        found = f"{len(wrong)} of {len(features)} feature rows (first: row {row}, length {length:.4g})"
        if not torch.isfinite(lengths).all():
            kind = "finite or not of unit length" if unit_length else "finite"
            raise ValueError(f"{found} are not {kind}: the embeddings have diverged")
        raise ValueError(f"{found} are not of unit length: L2-normalise the features, e.g. F.normalize(x, dim=1)")
    return features


def lifted(queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """Rows q' and t', wider by four columns, and c with q'·t' = -c·‖q - t‖² - LIFT: a search by inner product among
    them is one by Euclidean distance.

    -‖q - t‖² = 2q·t - ‖q‖² - ‖t‖² is the inner product of [2q, ‖q‖², 1] and [t, -1, -‖t‖²]. The squared lengths take
    two float32 columns each, so that they keep 48 bits. A power of two, which rounds nothing, first brings the longest
    row to at most 1/2: then the terms of a product add up to 1 at most, as with unit rows, and the error bound holds.
    """
    longest = max(float(torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).max()) for x in (queries, targets))
    scale = 2.0 ** -math.ceil(math.log2(2 * longest)) if longest > 0 else 1.0
    queries, targets = queries * scale, targets * scale

    def squares(x: Tensor, plus: float) -> Tensor:
        exact = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64).square() + plus
        high = exact.float()
        return torch.cat([high, (exact - high).float()], 1)

    one, other = (torch.ones_like(x[:, :1]).expand(-1, 2) for x in (queries, targets))
    rows = torch.cat([2 * queries, squares(queries, LIFT), one], 1)
    return rows, torch.cat([targets, -other, -squares(targets, 0.0)], 1), scale**2


def inner_products(x: Tensor, i: Tensor, j: Tensor, y: Tensor | None = None) -> Tensor:
    """x[i] · y[j] (without y: x[j]) for index pairs [P]: float32 [P], the float64 sum rounded once.

    Matrix products round differently from one library, block size or thread count to another. These do not, so exact
    copies of a row tie exactly and every search agrees on near-ties.
    """
    y = x if y is None else y
    step = max(1, (1 << 24 if x.is_cuda else 1 << 18) // x.shape[1])  # few rows at a time stay in a CPU's cache
    pairs = zip(i.long().split(step), j.long().split(step), strict=True)
    return torch.cat([(x[a].double() * y[b]).sum(1).float() for a, b in pairs])


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
