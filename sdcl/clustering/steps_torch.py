"""The steps after the neighbour search in torch, on the features' device: the functions of `steps_numba`, for GPUs,
small sets, and where there is no numba.

An entry (i, j) is the whole number i·N + j, so that sorting and searching do what sparse matrices would, in blocks of
rows that bound the memory.

The results are those of the other steps, whatever the order in which a GPU's threads add: what is added at random is
whole numbers (counts, and overlaps in fixed point, which tell the pairs that are near enough), and float32 sums
(`_sums_in_order`) are formed as everywhere here, one entry after another.
"""

from itertools import pairwise

import torch
from torch import Tensor

from .features import inner_products
from .jaccard import SparseRows, look_up

__all__ = ["average", "expand", "inner_products", "overlapping_pairs"]

# Numbers that an intermediate result holds, about; eight bytes each.
BLOCK = 1 << 26


def expand(rank: Tensor, half: int) -> SparseRows:
    """As `steps_numba.expand`."""
    n, k = rank.shape
    columns, place = (x.flatten() for x in torch.sort(rank.long(), dim=1))
    rows = torch.arange(n, device=rank.device).repeat_interleave(k)
    keys = rows * n + columns
    found, at = look_up(keys, columns * n + rows)  # is i on the list of j, and where
    near = found & (torch.maximum(place, place[at]) < half)
    halves, full = columns[near], keys[found]
    end = torch.bincount(rows[near], minlength=n).cumsum(0)
    start = torch.cat([end.new_zeros(1), end[:-1]])
    row, member = full // n, full % n
    size = (end - start)[member]
    parts = [full]
    for a, b in _blocks(size):
        owner, at = _ranges(start[member[a:b]], size[a:b])  # R_half(c) of each c in R(i)
        key = row[a:b][owner] * n + halves[at]
        known, _ = look_up(full, key)
        hits = size.new_zeros(b - a).index_add_(0, owner, known.long())
        parts.append(torch.unique(key[(3 * hits > 2 * size[a:b])[owner] & ~known]))
    keys = torch.unique(torch.cat(parts))
    return _from_keys(keys, torch.ones_like(keys, dtype=torch.float32), n)


def average(weights: SparseRows, rank: Tensor) -> SparseRows:
    """As `steps_numba.average`."""
    n, k = rank.shape
    sizes = weights.indptr.diff()[rank.long()]
    parts = []
    for a, b in _blocks(sizes.sum(1)):
        owner, at = _ranges(weights.indptr[rank[a:b].flatten().long()], sizes[a:b].flatten())
        keys, order = torch.sort((a + owner // k) * n + weights.indices[at], stable=True)  # stable: in order of rank
        parts.append(_sums_in_order(keys, weights.values[at[order]]))
    keys, sums = (torch.cat(x) for x in zip(*parts, strict=True))
    # A tensor, since a GPU takes the reciprocal of a Python number first, which rounds twice
    return _from_keys(keys, sums / torch.full_like(sums, k), n)


def overlapping_pairs(weights: SparseRows, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `steps_numba.overlapping_pairs`."""
    n = len(weights.indptr) - 1
    rows, values = weights.rows, weights.values
    by_column = torch.argsort(weights.indices, stable=True)
    place = torch.empty_like(by_column)  # where each entry stands in its column
    place[by_column] = torch.arange(len(place), device=place.device)
    end = torch.bincount(weights.indices, minlength=n).cumsum(0)
    length = end[weights.indices] - place  # entries of its column from there on: rows j >= i
    # rounded up, so that the sums bound the overlaps from above and no overlap is 0
    fixed = torch.ceil(values * 2.0**30).int()
    limit = max(1, int((least - 1e-4) * 2**30))
    work = torch.zeros(n, dtype=torch.int64, device=values.device).index_add_(0, rows, length)
    parts = []
    for a, b in _blocks(work + n):
        own = slice(int(weights.indptr[a]), int(weights.indptr[b]))
        owner, at = _ranges(place[own], length[own])
        owner, at = owner + own.start, by_column[at]
        key = (rows[owner] - a) * n + rows[at]
        bound = fixed.new_zeros((b - a) * n).index_add_(0, key, torch.minimum(fixed[owner], fixed[at]))
        keep = bound[key] >= limit
        key, order = torch.sort(key[keep], stable=True)  # stable: column after column
        pairs, m = _sums_in_order(key, torch.minimum(values[owner[keep]], values[at[keep]])[order])
        parts.append((pairs // n + a, pairs % n, m))
    i, j, m = (torch.cat(x) for x in zip(*parts, strict=True))
    return i, j, m


def _ranges(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """start[p], start[p] + 1, … for `length[p]` numbers, all p one after another: (p of each number, the number)."""
    owner = torch.repeat_interleave(length)
    before = length.cumsum(0) - length
    return owner, torch.arange(len(owner), device=owner.device) + (start - before)[owner]


def _blocks(work: Tensor) -> list[tuple[int, int]]:
    """Ranges of the rows whose `work` adds up to about BLOCK (or that are a single row)."""
    total = work.cumsum(0)
    marks = torch.arange(BLOCK, max(BLOCK, int(total[-1])), BLOCK, device=total.device)
    ends = torch.searchsorted(total, marks) + 1
    return list(pairwise(sorted({0, *ends.tolist(), len(work)})))


def _sums_in_order(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones of the ascending `keys`, and the sum of each one's values, added one after another."""
    unique, counts = torch.unique_consecutive(keys, return_counts=True)
    order = torch.argsort(counts, descending=True)
    start = (counts.cumsum(0) - counts)[order]
    longer = len(counts) - torch.bincount(counts).cumsum(0)  # sums of more than 0, 1, 2, … values
    sums = torch.zeros(len(counts), dtype=values.dtype, device=values.device)
    for term, active in enumerate(longer[:-1].tolist()):
        sums[:active] += values[start[:active] + term]
    out = torch.empty_like(sums)
    out[order] = sums
    return unique, out


def _from_keys(keys: Tensor, values: Tensor, n: int) -> SparseRows:
    ends = torch.bincount(keys // n, minlength=n).cumsum(0)
    return SparseRows(torch.cat([ends.new_zeros(1), ends]), (keys % n).int(), values)
