"""Exact nearest neighbours from low-precision matrix products: the fast search on CPUs, compiled.

The Gram matrix is symmetric, so only the tiles on and above its diagonal are computed, in bfloat16 where the processor
multiplies bfloat16 natively, and every similarity is offered to both its rows. A row keeps what comes within twice the
error bound of its k-th best so far, which cannot miss one of its true k best, and float32 products decide among them.
"""

from pathlib import Path

import numpy as np
import torch
from numba import njit

from .features import NORM_TOLERANCE, PRODUCT_ERROR
from .neighbors import Neighbors, search_torch
from .threads import in_blocks

TILE = 2048
# Similarities looked at together: a vector comparison tells whether any of them is worth keeping.
CHUNK = 32
# Candidates that a row holds, at least; four times k when that is more.
ROOM = 256
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # Intel and AMD; ARM

compiled = njit(cache=True, nogil=True)
compiled_sums = njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})


def search_tiles(features: torch.Tensor, k: int) -> Neighbors:
    """The k best of each row of features [N, d] (on the CPU) by float32 similarity.

    A row with more candidates within the error bound than its buffer holds (masses of near-copies) is searched by
    `search_torch`.
    """
    n = len(features)
    rounded, error = _rounded(features)
    room = min(max(ROOM, 4 * k), n)
    ids, values = np.empty((n, room), np.int32), np.empty((n, room), np.float32)
    held, least = np.zeros(n, np.int32), np.full(n, -np.inf, np.float32)
    slack = np.float32(2 * error)
    product = torch.empty(TILE * TILE, dtype=rounded.dtype)
    widened = product if rounded.dtype == torch.float32 else features.new_empty(TILE * TILE)
    for offset in range(0, n, TILE):  # diagonal by diagonal: every row soon has candidates to measure others by
        for top in range(0, n - offset, TILE):
            left = top + offset
            rows, columns = rounded[top : top + TILE], rounded[left : left + TILE]
            shape, size = (len(rows), len(columns)), len(rows) * len(columns)
            torch.mm(rows, columns.T, out=product[:size].view(shape))
            if widened is not product:
                widened[:size].copy_(product[:size])
            tile = widened[:size].view(shape).numpy()
            state = (ids, values, held, least, k, slack)
            share = -(-TILE // (torch.get_num_threads() * 128)) * 128  # both passes split the tile among the threads
            in_blocks(lambda a, b: _offer_rows(tile, top, left, a, b, *state), shape[0], share)  # noqa: B023
            if left > top:
                in_blocks(lambda a, b: _offer_columns(tile, top, left, a, b, *state), shape[1], share)  # noqa: B023
    x = features.numpy()
    rank, similarity = torch.empty(n, k, dtype=torch.int32), features.new_empty(n, k)
    found = rank.numpy(), similarity.numpy()
    worst = max(in_blocks(lambda a, b: _decide(x, ids, values, held, least, slack, a, b, *found), n, 1024))
    if worst > error:  # this processor's products are worse than they ought to be: nothing found with them is certain
        return search_torch(features, k)
    given_up = torch.from_numpy(np.flatnonzero(held == 0))
    if len(given_up):
        rank[given_up], similarity[given_up] = search_torch(features, k, given_up)
    return rank, similarity


def _rounded(features: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The features as they are multiplied, and a bound on the error of a product of two of its rows."""
    if not _native_bfloat16():
        return features, PRODUCT_ERROR
    rounded = features.to(torch.bfloat16)
    e = max(
        float(torch.linalg.vector_norm(a - b.float(), dim=1).max())
        for a, b in zip(features.split(4096), rounded.split(4096), strict=True)
    )
    e *= 1 + 1e-4  # for the rounding in its own computation
    length = 1 + NORM_TOLERANCE
    inputs = e * (2 * length + e)  # |x·y - x'·y'| <= |x - x'| |y| + |x'| |y - y'|
    sums = features.shape[1] * 2.0**-23  # d float32 additions of terms that add up to about 1 at most
    output = (length + e) ** 2 * 2.0**-9  # the product is rounded to bfloat16's 8 bits
    return rounded, inputs + sums + output


def _native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware. Emulated it is slower than float32."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return any(name in flags.split() for name in NATIVE_BFLOAT16)


@compiled
def _offer_rows(tile, top, left, start, stop, ids, values, held, least, k, slack):
    """Offers each row of the tile its similarities; rows start … stop."""
    width = tile.shape[1]
    for r in range(start, stop):
        q = top + r
        for first in range(0, width, CHUNK):
            last = min(first + CHUNK, width)
            limit = least[q]
            found = False
            for c in range(first, last):
                found |= tile[r, c] >= limit
            if found:
                for c in range(first, last):
                    if tile[r, c] >= least[q]:
                        _keep(q, left + c, tile[r, c], ids, values, held, least, k, slack)


@compiled
def _offer_columns(tile, top, left, start, stop, ids, values, held, least, k, slack):
    """Offers each column of the tile its similarities; columns start … stop, read along the rows."""
    for r in range(tile.shape[0]):
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            found = False
            for c in range(first, last):
                found |= tile[r, c] >= least[left + c]
            if found:
                for c in range(first, last):
                    if tile[r, c] >= least[left + c]:
                        _keep(left + c, top + r, tile[r, c], ids, values, held, least, k, slack)


@compiled
def _keep(q, j, value, ids, values, held, least, k, slack):
    """Adds candidate j to row q; a full row drops those that can no longer be among its k best."""
    at = held[q]
    ids[q, at] = j
    values[q, at] = value
    held[q] = at + 1
    if at + 1 == ids.shape[1]:
        _prune(q, ids, values, held, least, k, slack)
        if held[q] > ids.shape[1] - CHUNK:  # too many near-ties: give the row up
            held[q] = 0
            least[q] = np.inf


@compiled
def _prune(q, ids, values, held, least, k, slack):
    """Raises the limit of row q to what its k best so far allow, and drops the candidates below it."""
    count = held[q]
    least[q] = _kth_largest(values[q, :count].copy(), k) - slack
    kept = 0
    for p in range(count):
        if values[q, p] >= least[q]:
            ids[q, kept] = ids[q, p]
            values[q, kept] = values[q, p]
            kept += 1
    held[q] = kept


@compiled
def _kth_largest(v, k):
    """Hoare's quickselect; reorders v."""
    low, high = 0, len(v) - 1
    while low < high:
        pivot = v[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while v[i] > pivot:
                i += 1
            while v[j] < pivot:
                j -= 1
            if i <= j:
                v[i], v[j] = v[j], v[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return v[k - 1]


@compiled_sums
def _dot(a, b):
    total = np.float32(0)
    for t in range(len(a)):
        total += a[t] * b[t]
    return total


@compiled
def _decide(x, ids, values, held, least, slack, start, stop, rank, similarity):
    """Ranks the candidates of rows start … stop by float32 products; returns the largest error that it sees."""
    k = rank.shape[1]
    worst = np.float32(0)
    for q in range(start, stop):
        if held[q] == 0:  # given up
            continue
        _prune(q, ids, values, held, least, k, slack)
        filled = 0
        for p in range(held[q]):
            s = _dot(x[q], x[ids[q, p]])
            worst = max(worst, abs(s - values[q, p]))
            if filled < k:
                filled += 1
            elif s <= similarity[q, k - 1]:
                continue
            at = filled - 1  # insertion sort; the last one falls off
            while at > 0 and s > similarity[q, at - 1]:
                similarity[q, at] = similarity[q, at - 1]
                rank[q, at] = rank[q, at - 1]
                at -= 1
            similarity[q, at] = s
            rank[q, at] = ids[q, p]
    return worst
