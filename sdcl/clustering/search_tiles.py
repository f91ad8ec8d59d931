"""Exact nearest neighbours from low-precision matrix products: the fast search on CPUs, compiled.

The Gram matrix is symmetric, so only the tiles on and above its diagonal are computed, in bfloat16 where the processor
multiplies bfloat16 natively, and every similarity is offered to both its rows. A row keeps what comes within twice the
error bound of its k-th best so far, which cannot miss one of its true k best, and float32 products decide among them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .compiled import compiled, compiled_sums, in_blocks
from .features import NORM_TOLERANCE, PRODUCT_ERROR

TILE = 2048
# Similarities looked at together: a vector comparison tells whether any of them is worth keeping.
CHUNK = 32
# Candidates that a row holds, at least; four times k when that is more.
ROOM = 256
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # Intel and AMD; ARM


def search_tiles(queries: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best targets [N, d] of each of the queries [Q, d] (on the CPU) by float32 similarity: rank int32 [Q, k],
    best first, and similarity float32 [Q, k]. Twice as fast where the two are the same tensor.

    A row with more candidates within the error bound than its buffer holds (masses of near-copies) is left: rank -1.
    """
    among_itself = queries is targets
    rows, columns, error = _rounded(queries, targets)
    count, n = len(queries), len(targets)
    room = min(max(ROOM, 4 * k), n)
    ids, values = np.empty((count, room), np.int32), np.empty((count, room), np.float32)
    held, least = np.zeros(count, np.int32), np.full(count, -np.inf, np.float32)
    slack = np.float32(2 * error)
    state = (ids, values, held, least, k, slack)
    share = -(-TILE // (torch.get_num_threads() * 128)) * 128  # the threads share a tile
    for top, left, tile in _tiles(rows, columns, among_itself):
        in_blocks(lambda a, b: _offer_rows(tile, top, left, a, b, *state), tile.shape[0], share)  # noqa: B023
        if among_itself and left > top:
            in_blocks(lambda a, b: _offer_columns(tile, top, left, a, b, *state), tile.shape[1], share)  # noqa: B023
    rank, similarity = torch.empty(count, k, dtype=torch.int32), queries.new_empty(count, k)
    x, y, found = queries.numpy(), targets.numpy(), (rank.numpy(), similarity.numpy())
    worst = max(in_blocks(lambda a, b: _decide(x, y, ids, values, held, least, slack, a, b, *found), count, 1024))
    # Where this processor's products are worse than they ought to be, nothing found with them is certain.
    left_out = held == 0 if worst <= error else np.ones(count, bool)
    rank[left_out], similarity[left_out] = -1, -np.inf
    return rank, similarity


def _tiles(rows: Tensor, columns: Tensor, among_itself: bool) -> Iterator[tuple[int, int, np.ndarray]]:
    """First row, first column and similarities float32 of one tile after another, in one buffer; only those on and
    above the diagonal among itself, diagonal by diagonal: every row soon has candidates to measure others by."""
    n = len(columns)
    product = torch.empty(TILE * TILE, dtype=rows.dtype)
    widened = product if rows.dtype == torch.float32 else torch.empty(TILE * TILE, dtype=torch.float32)
    if among_itself:
        corners = [(top, top + offset) for offset in range(0, n, TILE) for top in range(0, n - offset, TILE)]
    else:
        corners = [(top, left) for top in range(0, len(rows), TILE) for left in range(0, n, TILE)]
    for top, left in corners:
        a, b = rows[top : top + TILE], columns[left : left + TILE]
        shape, size = (len(a), len(b)), len(a) * len(b)
        torch.mm(a, b.T, out=product[:size].view(shape))
        if widened is not product:
            widened[:size].copy_(product[:size])
        yield top, left, widened[:size].view(shape).numpy()


def _rounded(queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both as they are multiplied, and a bound on the error of a product of two of their rows."""
    length = 1 + NORM_TOLERANCE
    longer = any(float(torch.linalg.vector_norm(x, dim=1).max()) > length for x in (queries, targets))
    if longer or not _native_bfloat16():
        return queries, targets, PRODUCT_ERROR
    rows = queries.to(torch.bfloat16)
    columns = rows if queries is targets else targets.to(torch.bfloat16)
    e, f = _rounding_error(queries, rows), _rounding_error(targets, columns)
    inputs = e * length + length * f + e * f  # |x·y - x'·y'| <= |x - x'| |y| + |x'| |y - y'|
    sums = queries.shape[1] * 2.0**-23  # d float32 additions of terms that add up to about 1 at most
    output = (length + e) * (length + f) * 2.0**-9  # the product is rounded to bfloat16's 8 bits
    return rows, columns, inputs + sums + output


def _rounding_error(x: Tensor, rounded: Tensor) -> float:
    """Largest distance of a row from its rounded form."""
    parts = zip(x.split(4096), rounded.split(4096), strict=True)
    e = max(float(torch.linalg.vector_norm(a - b.float(), dim=1).max()) for a, b in parts)
    return e * (1 + 1e-4)  # for the rounding in its own computation


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
def _decide(x, y, ids, values, held, least, slack, start, stop, rank, similarity):
    """Ranks the candidates of rows start … stop by float32 products; returns the largest error that it sees."""
    k = rank.shape[1]
    worst = np.float32(0)
    for q in range(start, stop):
        if held[q] == 0:  # given up
            continue
        _prune(q, ids, values, held, least, k, slack)
        filled = 0
        for p in range(held[q]):
            s = _dot(x[q], y[ids[q, p]])
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
