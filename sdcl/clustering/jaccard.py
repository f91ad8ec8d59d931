"""k-reciprocal Jaccard distance from nearest neighbours, all of it sparse and on the features' device.

Zhong et al., CVPR 2017; method page, section 3. Three steps are done by a module `steps_numba` or `steps_torch`.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from .neighbors import Neighbors


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

    def without_those_below(self, least: float) -> SparseRows:
        keep = self.values >= least
        ends = torch.bincount(self.rows[keep], minlength=len(self.indptr) - 1).cumsum(0)
        return SparseRows(torch.cat([ends.new_zeros(1), ends]), self.indices[keep], self.values[keep])

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same three as NumPy arrays, without a copy; for matrices on the CPU."""
        return self.indptr.numpy(), self.indices.numpy(), self.values.numpy()


def look_up(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each of `wanted` is among the ascending `keys`, and where. An entry (i, j) is the number i·N + j."""
    at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return keys[at] == wanted, at


def neighbor_weights(
    features: Tensor, neighbors: Neighbors, k1: int, k2: int, steps: ModuleType, unit_length: bool = True
) -> SparseRows:
    """V: row i holds the softmax weights of i's expanded k-reciprocal neighbours, averaged over its k2 nearest rows.

    neighbors: of `nearest_neighbors(features, k1)`; steps: the module `steps_numba` or `steps_torch`.
    """
    rank, similarity = neighbors
    half = min(round(k1 / 2) + 1, rank.shape[1])  # round() takes halves to the even number
    pattern = steps.expand(rank, half)
    rows = pattern.rows
    if unit_length:
        similarities = _similarities(features, rank, similarity, rows, pattern.indices, steps)
    else:  # the lists hold distances; shifted, since their exponentials might be beyond all bounds
        similarities = steps.inner_products(features, rows, pattern.indices)
        largest = similarities.new_full((len(rank),), -torch.inf).scatter_reduce_(0, rows, similarities, "amax")
        similarities = similarities - largest[rows] + 1
    # Formed in float64 and rounded once, so that a GPU's exponential is the CPU's; in [e^-4, 1] for unit rows.
    e = torch.exp((2 * similarities - 2).double()).float().double()
    # Their sums are whole multiples of 2^-29 then, so exact, in whichever order a GPU's threads add.
    sums = torch.zeros(len(rank), dtype=torch.float64, device=e.device).index_add_(0, rows, e)
    weights = pattern._replace(values=(e / sums[rows]).float())
    if not unit_length:
        weights = weights.without_those_below(1e-30)  # the steps take weights to be positive, and their means
    return weights if k2 == 1 else steps.average(weights, rank[:, :k2].contiguous())


def _similarities(
    features: Tensor, rank: Tensor, similarity: Tensor, rows: Tensor, columns: Tensor, steps: ModuleType
) -> Tensor:
    """Similarities of the pairs (rows, columns): five of six stand in the neighbour lists, the others are computed."""
    n = len(rank)
    listed, order = torch.sort(rank.long(), dim=1)
    keys = (torch.arange(n, device=rank.device)[:, None] * n + listed).flatten()
    found, at = look_up(keys, rows * n + columns)
    values = similarity.gather(1, order).flatten()[at]
    missing = torch.nonzero(~found)[:, 0]
    values[missing] = steps.inner_products(features, rows[missing], columns[missing])
    return values


def distance_graph(weights: SparseRows, max_distance: float | None, steps: ModuleType) -> sparse.csr_array:
    """1 - m/(2 - m), at least 0, for m(i, j) = Σ_c min(V[i, c], V[j, c]), where it is < 1 and <= max_distance.

    Distances and `max_distance` are compared as float32, as a dense float32 matrix compares with a Python number.
    """
    n = len(weights.indptr) - 1
    limit = 1.0 if max_distance is None else float(np.float32(min(max_distance, 1)))
    i, j, m = steps.overlapping_pairs(weights, 2 * (1 - limit) / (2 - limit))
    distance = (1 - m / (2 - m)).clamp_(min=0)
    keep = (distance <= limit) & (distance < 1)
    i, j, distance = (x[keep].cpu().numpy() for x in (i, j, distance))
    off = i != j
    # Built from index arrays, which keeps zeros as entries; a sum of sparse matrices would lose them.
    pairs = (np.concatenate([i, j[off]]), np.concatenate([j, i[off]]))
    return sparse.csr_array((np.concatenate([distance, distance[off]]), pairs), (n, n))
