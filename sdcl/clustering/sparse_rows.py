"""The sparse matrices that go from step to step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


class SparseRows(NamedTuple):
    """A matrix [N, N], row after row: row i has values[p] in column indices[p] for p from indptr[i] to indptr[i + 1].

    Columns ascend in a row. All three are on one device.
    """

    indptr: Tensor  # int64 [N + 1]
    indices: Tensor  # int32 [P]
    values: Tensor  # float32 [P]

    @property
    def rows(self) -> Tensor:
        """The row of each value: int64 [P]."""
        return torch.repeat_interleave(self.indptr.diff())

    @classmethod
    def from_scipy(cls, matrix: sparse.csr_array) -> SparseRows:
        arrays = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False), matrix.data
        return cls(*(torch.from_numpy(array) for array in arrays))

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same three as NumPy arrays, without a copy; for matrices on the CPU."""
        return self.indptr.numpy(), self.indices.numpy(), self.values.numpy()

    def to_scipy(self) -> sparse.csr_array:
        """For matrices on the CPU; the values are not copied."""
        indptr, indices, values = self.to_arrays()
        return sparse.csr_array((values, indices, indptr), (len(indptr) - 1,) * 2)


def look_up(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each of `wanted` is among the ascending `keys`, and where. An entry (i, j) is the number i·N + j."""
    at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return keys[at] == wanted, at
