"""The steps after the neighbour search with NumPy and SciPy alone. `steps_numba` has the same functions, compiled."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from .features import inner_products
from .sparse_rows import SparseRows
from .threads import in_ranges

__all__ = ["average", "expand", "inner_products", "overlapping_pairs"]

# Products that one sparse matrix product may form: bounds the memory of an intermediate result.
BLOCK_WORK = 1 << 23
# Pairs whose overlap is summed at a time.
BLOCK_PAIRS = 1 << 14


def expand(rank: Tensor, half: int) -> SparseRows:
    """Expanded k-reciprocal neighbours R* of every row, as the columns of a matrix whose values mean nothing.

    rank: int32 [N, k]; half: how many columns of it R_half looks at.
    """
    full, halves = _mutual(rank.numpy(), rank.shape[1]), _mutual(rank.numpy(), half)
    hits = (full @ halves).multiply(full).tocsr()  # |R_half(c) ∩ R(i)|, for c in R(i); `halves` is symmetric
    sizes = np.diff(halves.indptr)
    hits.data = (3 * hits.data > 2 * sizes[hits.indices]).astype(hits.dtype)
    hits.eliminate_zeros()
    expanded = (full + hits @ halves).tocsr()
    expanded.sort_indices()
    return SparseRows.from_scipy(expanded)


def _mutual(rank: np.ndarray, length: int) -> sparse.csr_array:
    """1 at (i, j) where i and j are among the first `length` of each other's neighbours."""
    n = len(rank)
    indices = np.sort(rank[:, :length], axis=1).ravel()
    listed = sparse.csr_array((np.ones(n * length, np.int32), indices, np.arange(n + 1) * length), (n, n))
    return listed.multiply(listed.T.tocsr()).tocsr()


def average(weights: SparseRows, rank: Tensor) -> SparseRows:
    """Mean of the weight rows rank[i] for every i: the query expansion. rank: int32 [N, k2]."""
    n, k = rank.shape
    # the columns stay in the order of rank, so the sums are formed in that order
    pick = sparse.csr_array((np.ones(n * k, np.float32), rank.numpy().ravel(), np.arange(n + 1) * k), (n, n))
    mean = pick @ weights.to_scipy()
    mean.data /= np.float32(k)
    mean.sort_indices()
    return SparseRows.from_scipy(mean)


def overlapping_pairs(weights: SparseRows, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i <= j with m(i, j) = Σ_c min(V[i, c], V[j, c]) of about `least` or more: whole numbers i and j [P] and
    m float32 [P] > 0.

    No pair with m >= least is missed; some below it may be listed. Since min(a, b) <= sqrt(a·b), the product of the
    square roots bounds m from above, and closely: about 1.5 candidates per pair.
    """
    matrix = weights.to_scipy()
    root, left_out = _square_roots(matrix, least)
    most_left_out = left_out.max()
    margin = 1e-4  # far above float32 rounding

    def block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        bound = (root[start:stop] @ root[start:].T).tocoo()  # rows above `start` have met these already
        keep = np.flatnonzero(bound.data >= least - margin - 2 * most_left_out)  # leaves few for the exact comparison
        i, j = bound.row[keep] + start, bound.col[keep] + start
        keep = (bound.data[keep] + left_out[i] + left_out[j] >= least - margin) & (i <= j)
        i, j = i[keep], j[keep]
        return i, j, _overlaps(matrix, i, j)

    parts = zip(*in_ranges(block, _blocks(root)), strict=True)
    i, j, m = (torch.from_numpy(np.concatenate(arrays)) for arrays in parts)
    return i, j, m


def _square_roots(weights: sparse.csr_array, least: float) -> tuple[sparse.csr_array, np.ndarray]:
    """Square roots of the weights without the small ones, and the sum of the weights left out of each row, [N].

    They are many and say little: without them the product takes half the time. A row gives up no more than a quarter
    of `least`, so that a pair that overlaps in `least` still meets in others.
    """
    n = weights.shape[0]
    row = np.repeat(np.arange(n), np.diff(weights.indptr))
    small = weights.data < 0.3 * n / max(weights.nnz, 1)  # 0.3 of the mean, as rows sum to 1
    left_out = np.bincount(row, weights.data * small, minlength=n)
    left_out[left_out > least / 4] = 0
    keep = ~small | (left_out[row] == 0)
    indptr = np.concatenate([[0], np.cumsum(keep)])[weights.indptr]
    root = sparse.csr_array((np.sqrt(weights.data[keep]), weights.indices[keep], indptr), weights.shape)
    return root, left_out


def _overlaps(weights: sparse.csr_array, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    m = np.empty(len(i), np.float32)
    ones = np.ones(weights.shape[1], np.float32)  # a product adds column after column; sum() would add pairwise
    for start in range(0, len(i), BLOCK_PAIRS):
        part = slice(start, start + BLOCK_PAIRS)
        m[part] = weights[i[part]].minimum(weights[j[part]]) @ ones
    return m


def _blocks(weights: sparse.csr_array) -> list[tuple[int, int]]:
    """Row ranges whose product with the transposed matrix takes about BLOCK_WORK multiplications each."""
    column_sizes = np.bincount(weights.indices, minlength=weights.shape[1])
    work = np.concatenate([[0], np.cumsum(column_sizes[weights.indices])])[weights.indptr]  # before each row
    edges = np.unique(np.searchsorted(work, np.arange(0, work[-1], BLOCK_WORK), side="left"))
    edges = np.unique(np.concatenate([[0], edges, [weights.shape[0]]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
