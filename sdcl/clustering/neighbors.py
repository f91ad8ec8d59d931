"""Nearest neighbours of every row among all rows, itself included, or among other rows.

Every exact search gives the same answer: the k rows of highest inner product, equal ones in order of their index,
where "equal" means equal when the float64 sum is rounded to float32 (`inner_products`). For rows of unit length the
highest inner product is the smallest Euclidean distance; other rows are lifted to rows for which it is.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .compiled import usable
from .features import LIFT, PRODUCT_ERROR, as_features, full_precision, inner_products, lifted

Neighbors = tuple[Tensor, Tensor]  # rank [Q, k] int32 row indices, best first; similarity [Q, k] float32
Search = Callable[[Tensor, Tensor, int], Neighbors]  # of queries [Q, d] among targets [N, d], which can be the same

ALL = slice(None)
# How many neighbours more than k a float32 search brings, so that near-ties around rank k can be settled.
SPARE = 8
# Targets from which on the compiled search is worth its loading; on fewer, faiss is as fast.
TILES_FROM = 8192
# Clusters that an approximate search visits for a row.
IVF_PROBES = 32


def nearest_neighbors(
    features: Tensor | np.ndarray,
    k: int,
    knn: str = "exact",
    rows: slice = ALL,
    *,
    targets: Tensor | np.ndarray | None = None,
    unit_length: bool = True,
) -> Neighbors:
    """The min(k, N) nearest rows of each row of `features` [N, d], or the nearest of `targets` [N, d] instead.

    knn: "exact", or "ivf" (approximate, CPU, faiss). rows: for whom, as one of several processes that share the
    search asks; their answers one after another are that of one process, up to the similarities' last digit.
    unit_length: rows have unit length, which makes the search several times faster; False takes them as they are.

    Returns (rank int32, similarity float32), [N, k] or [rows, k], best first, on the device of the features, which
    the exact search uses. The similarity is the inner product, without unit length the negative squared Euclidean
    distance. Raises ValueError for features that are not finite or, if they should be, not of unit length.
    """
    if knn not in ("exact", "ivf"):
        raise ValueError(f'knn must be "exact" or "ivf", not {knn!r}')
    if knn == "ivf" and not usable("faiss"):
        raise ValueError('knn="ivf" needs faiss: install faiss, or use knn="exact"')
    given, features = features, as_features(features, unit_length)
    device = features.device
    others = features if targets is None or targets is given else as_features(targets, unit_length)
    if others.shape[1] != features.shape[1] or others.device != device:
        shapes = f"{list(features.shape)} on {device} and {list(others.shape)} on {others.device}"
        raise ValueError(f"features and targets must be of one width and on one device, not {shapes}")
    queries = features if rows.indices(len(features)) == (0, len(features), 1) else features[rows]
    if not unit_length:
        queries, others, factor = lifted(queries, others)
    if knn == "ivf":
        queries, others = (queries.cpu(),) * 2 if queries is others else (queries.cpu(), others.cpu())
    rank, similarity = settle(queries, others, k, search_ivf if knn == "ivf" else exact_search(others))
    if not unit_length:
        similarity = (similarity + LIFT) / factor
    return rank.to(device), similarity.to(device)


def exact_search(targets: Tensor) -> Search:
    """The fastest exact search among these; all have the same result once settled."""
    if targets.is_cuda:
        return search_torch
    if len(targets) >= TILES_FROM and usable("numba"):
        return search_compiled
    return search_faiss if usable("faiss") else search_torch


def settle(queries: Tensor, targets: Tensor, k: int, search: Search) -> Neighbors:
    """A float32 search made exact: near-ties are decided by the float64 inner products.

    Similarities further apart than twice the rounding error of a matrix product are in their true order already.
    Rows whose lists the search could not fill (rank -1) are searched in float64.
    """
    n = len(targets)
    k = min(k, n)
    width = min(k + SPARE, n)
    with full_precision(queries.device):
        rank, similarity = search(queries, targets, width)
        near = similarity[:, :-1] - similarity[:, 1:] <= 2 * PRODUCT_ERROR
        unsettled = (rank < 0).any(1)
        if width < n:  # near-ties from rank k to the end of the list: rows beyond it may belong into it
            unsettled |= similarity[:, k - 1] - similarity[:, -1] <= 2 * PRODUCT_ERROR
        tied = torch.zeros_like(rank, dtype=torch.bool)  # belongs to a group of near-ties,
        tied[:, 1:] |= near
        tied[:, :-1] |= near
        tied[:, k:] &= near[:, k - 1 :].cumprod(1).bool()  # which is, or begins, among the first k
        tied[unsettled] = False
        some, places = tied.nonzero(as_tuple=True)
        similarity[some, places] = inner_products(queries, some, rank[some, places], targets)
        some = some.unique_consecutive()
        by_index, order = rank[some].sort(1)
        by_both, again = similarity[some].gather(1, order).sort(dim=1, descending=True, stable=True)
        rank[some], similarity[some] = by_index.gather(1, again), by_both
        rank, similarity = rank[:, :k].contiguous(), similarity[:, :k].contiguous()
        if unsettled.any():
            rank[unsettled], similarity[unsettled] = search_float64(queries[unsettled], targets, k)
    return rank, similarity


def search_faiss(queries: Tensor, targets: Tensor, k: int) -> Neighbors:
    """Float32 search by faiss on the CPU, without a copy of the features."""
    import faiss

    similarity, rank = faiss.knn(queries.numpy(), targets.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(rank.astype(np.int32)), torch.from_numpy(similarity)


def search_compiled(queries: Tensor, targets: Tensor, k: int) -> Neighbors:
    """Float32 search by `search_tiles`; by torch for rows with too many near-copies, which it leaves."""
    from .search_tiles import search_tiles

    rank, similarity = search_tiles(queries, targets, k)
    left = torch.nonzero(rank[:, 0] < 0)[:, 0]
    if len(left):
        rank[left], similarity[left] = search_torch(queries[left], targets, k)
    return rank, similarity


def search_torch(queries: Tensor, targets: Tensor, k: int) -> Neighbors:
    """Float32 search by matrix products in blocks of rows, on the device of the features."""
    rank, similarity = _empty(queries, k)
    step = _block_rows(targets)
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarity[block], rank[block] = torch.topk(queries[block] @ targets.T, k)
    return rank, similarity


def search_float64(queries: Tensor, targets: Tensor, k: int) -> Neighbors:
    """Exact search in float64: what the fast searches fall back to for some rows, e.g. for masses of copies."""
    n = len(targets)
    rank, similarity = _empty(queries, k)
    step = max(1, _block_rows(targets) // 4)
    columns = torch.arange(n - 1, -1, -1, device=targets.device)
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        mine = queries[block].double()
        # in blocks too, since a float64 copy of all features would be as large again twice over
        products = torch.cat([(mine @ part.double().T).float() for part in targets.split(4096)], 1)
        # One whole number per pair, ordered like the similarity and, when that is equal, by the lower index: float32
        # bits order like integers once those of negative numbers are turned round (adding 0 makes -0 into 0).
        bits = (products + 0.0).view(torch.int32)
        keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | columns
        best = torch.topk(keys, k).values
        best = (n - 1) - (best & 0xFFFFFFFF)
        similarity[block], rank[block] = products.gather(1, best), best.int()
    return rank, similarity


def search_ivf(queries: Tensor, targets: Tensor, k: int) -> Neighbors:
    """Approximate search: k-means cells, of which the nearest few are searched. Missing neighbours have rank -1.

    For sets so large that the exact search takes too long on a CPU; what it misses depends on the data, so compare
    labels on a part first. With too few rows for more cells than are searched, the exact search is used.
    """
    import faiss

    n, d = targets.shape
    cells = min(round(4 * math.sqrt(n)), n // 39)  # k-means wants 39 rows for a cell
    if cells <= IVF_PROBES:
        return search_faiss(queries, targets, k)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(targets.numpy())
    index.add(targets.numpy())
    index.nprobe = IVF_PROBES
    similarity, rank = index.search(queries.numpy(), k)
    return torch.from_numpy(rank.astype(np.int32)), torch.from_numpy(similarity)


def _empty(queries: Tensor, k: int) -> Neighbors:
    return queries.new_empty(len(queries), k, dtype=torch.int32), queries.new_empty(len(queries), k)


def _block_rows(targets: Tensor) -> int:
    """Rows whose float32 similarities to all targets take 64 MB (1 GB on a GPU)."""
    return max(1, (1 << 28 if targets.is_cuda else 1 << 24) // len(targets))
