"""The steps after the neighbour search, compiled for the CPU.

The kernels work on a range of rows and release the interpreter lock, so that plain Python threads share the rows.
Compiled code is kept on disk; compiling it the first time takes some seconds.
"""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from .compiled import compiled, compiled_sums, in_blocks
from .jaccard import SparseRows

__all__ = ["average", "expand", "inner_products", "overlapping_pairs"]

BLOCK_ROWS = 1024
# Room for the pairs that a block of rows finds before they are handed over (more rows than that: one row's worth).
ROOM = 1 << 18


def expand(rank: Tensor, half: int) -> SparseRows:
    """Expanded k-reciprocal neighbours R* of every row, as the columns of a matrix whose values mean nothing.

    rank: int32 [N, k]; half: how many columns of it R_half looks at.
    """
    n, k = rank.shape
    lists = rank.numpy()
    reach = np.empty_like(lists)
    in_blocks(lambda start, stop: _reach(lists, start, stop, reach), n, BLOCK_ROWS)
    most = min(n, k + k * half)  # neighbours of one row

    def block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        sizes, indices = np.empty(stop - start, np.int64), np.empty((stop - start) * most, np.int32)
        used = _expand(lists, reach, half, start, stop, np.zeros(n, np.int64), sizes, indices)
        return sizes, indices[:used].copy()

    sizes, indices = _joined(in_blocks(block, n, BLOCK_ROWS))
    return _sorted(sizes, indices, np.ones(len(indices), np.float32))


def average(weights: SparseRows, rank: Tensor) -> SparseRows:
    """Mean of the weight rows rank[i] for every i: the query expansion. rank: int32 [N, k2]."""
    n, lists = len(rank), rank.numpy()
    indptr, indices, data = weights.to_arrays()
    sizes_before = np.diff(indptr)

    def block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        room = int(sizes_before[lists[start:stop]].sum())
        sizes, columns, values = np.empty(stop - start, np.int64), np.empty(room, np.int32), np.empty(room, np.float32)
        used = _average(lists, indptr, indices, data, start, stop, np.zeros(n, np.float32), sizes, columns, values)
        return sizes, columns[:used].copy(), values[:used].copy()

    return _sorted(*_joined(in_blocks(block, n, BLOCK_ROWS)))


def overlapping_pairs(weights: SparseRows, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i <= j with m(i, j) = Σ_c min(V[i, c], V[j, c]) of about `least` or more: whole numbers i and j [P] and
    m float32 [P] > 0.

    No pair with m >= least is missed; some below it may be listed.
    """
    indptr, indices, data = weights.to_arrays()
    n = len(indptr) - 1
    columns = sparse.csr_array((np.arange(len(data)), indices, indptr), (n, n)).tocsc()
    place = np.empty(len(data), np.int64)  # where each entry stands in its column
    place[columns.data] = np.arange(len(data))
    column_end, rows, values = columns.indptr.astype(np.int64)[1:], columns.indices.astype(np.int32), data[columns.data]

    def block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sums, touched = np.zeros(n, np.float32), np.empty(n, np.int32)
        room = max(ROOM, n)
        found = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32)
        parts = []
        while start < stop:
            start, used = _overlaps(
                indptr, indices, data, place, column_end, rows, values, least - 1e-4, start, stop, sums, touched, *found
            )
            parts.append(tuple(array[:used].copy() for array in found))
        return _joined(parts)

    i, j, m = (torch.from_numpy(array) for array in _joined(in_blocks(block, n, BLOCK_ROWS)))
    return i, j, m


def inner_products(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """As `features.inner_products`."""
    out = x.new_empty(len(i))
    rows, a, b, products = x.numpy(), i.long().numpy(), j.long().numpy(), out.numpy()
    in_blocks(lambda start, stop: _dots(rows, a[start:stop], b[start:stop], products[start:stop]), len(i), 1 << 12)
    return out


def _joined(parts: list) -> tuple:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _sorted(sizes: np.ndarray, columns: np.ndarray, values: np.ndarray) -> SparseRows:
    """The matrix from rows of unsorted columns; transposing twice sorts in linear time."""
    n = len(sizes)
    matrix = sparse.csr_array((values, columns, np.concatenate([[0], np.cumsum(sizes)])), (n, n))
    return SparseRows.from_scipy(matrix.tocsc().tocsr())


@compiled
def _reach(rank, start, stop, reach):
    """reach[i, a]: how long lists must at least be for i and its neighbour rank[i, a] to be on each other's, less one.

    They are mutual neighbours in lists of length L where reach < L; k = not mutual.
    """
    k = rank.shape[1]
    for i in range(start, stop):
        for a in range(k):
            j = rank[i, a]
            reach[i, a] = k
            for b in range(k):
                if rank[j, b] == i:
                    reach[i, a] = max(a, b)
                    break


@compiled
def _expand(rank, reach, half, start, stop, mark, sizes, indices):
    """Writes the expanded neighbours of rows start … stop one after another, unsorted; returns how many."""
    k = rank.shape[1]
    used = 0
    for i in range(start, stop):
        # mark[j]: `mutual` for j in R(i), `added` for what the expansion adds; marks of earlier rows are lower
        added = 2 * (i - start) + 1
        mutual = added + 1
        first = used
        for a in range(k):
            if reach[i, a] < k:
                mark[rank[i, a]] = mutual
                indices[used] = rank[i, a]
                used += 1
        for p in range(first, used):
            c = indices[p]
            size = 0
            hits = 0
            for b in range(half):
                if reach[c, b] < half:
                    size += 1
                    hits += mark[rank[c, b]] == mutual
            if 3 * hits > 2 * size:
                for b in range(half):
                    j = rank[c, b]
                    if reach[c, b] < half and mark[j] < added:
                        mark[j] = added
                        indices[used] = j
                        used += 1
        sizes[i - start] = used - first
    return used


@compiled
def _average(rank, indptr, indices, data, start, stop, sums, sizes, columns, values):
    """Writes the mean of the rows rank[i] for i in start … stop one after another, unsorted; returns the length."""
    k = rank.shape[1]
    count = np.float32(k)
    used = 0
    for i in range(start, stop):
        first = used
        for a in range(k):
            for p in range(indptr[rank[i, a]], indptr[rank[i, a] + 1]):
                c = indices[p]
                if sums[c] == 0:  # weights are positive
                    columns[used] = c
                    used += 1
                sums[c] += data[p]
        for p in range(first, used):
            values[p] = sums[columns[p]] / count
            sums[columns[p]] = 0
        sizes[i - start] = used - first
    return used


@compiled
def _overlaps(
    indptr, indices, data, place, column_end, rows, values, least, start, stop, sums, touched, i_out, j_out, m_out
):
    """Pairs (i, j >= i) with overlap >= least for rows from `start`; stops before `stop` when the room is used up.

    Returns (row to go on with, pairs written). Columns are walked in ascending order from each entry's own place on,
    so that a pair's sum is formed once, and in the same order whichever row it belongs to.
    """
    used = 0
    for i in range(start, stop):
        count = 0
        for p in range(indptr[i], indptr[i + 1]):
            v = data[p]
            for q in range(place[p], column_end[indices[p]]):
                j = rows[q]
                if sums[j] == 0:
                    touched[count] = j
                    count += 1
                sums[j] += min(v, values[q])
        if used + count > len(i_out):
            for t in range(count):
                sums[touched[t]] = 0
            return i, used
        for t in range(count):
            j = touched[t]
            if sums[j] >= least:
                i_out[used] = i
                j_out[used] = j
                m_out[used] = sums[j]
                used += 1
            sums[j] = 0
    return stop, used


@compiled_sums
def _dots(x, i, j, out):
    for p in range(len(i)):
        a, b = x[i[p]], x[j[p]]
        total = 0.0
        for t in range(len(a)):
            total += np.float64(a[t]) * np.float64(b[t])
        out[p] = total
