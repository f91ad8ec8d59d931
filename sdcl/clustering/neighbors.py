"""Nearest neighbours of every row among all rows, itself included.

Every exact search gives the same answer: the k rows of highest inner product, equal ones in order of their index,
where "equal" means equal when the float64 sum is rounded to float32 (`inner_products`). Unit rows: the highest inner
product is the smallest Euclidean distance.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .choice import has, worth_compiling
from .features import PRODUCT_ERROR, as_features, full_precision, inner_products

Neighbors = tuple[Tensor, Tensor]  # rank [N, k] int32 row indices, best first; similarity [N, k] float32
Search = Callable[[Tensor, int], Neighbors]

ALL = slice(None)
# How many neighbours more than k a float32 search brings, so that near-ties around rank k can be settled.
SPARE = 8
# Clusters that an approximate search visits for a row.
IVF_PROBES = 32


def nearest_neighbors(features: Tensor | np.ndarray, k: int, knn: str = "exact", rows: slice = ALL) -> Neighbors:
    """The min(k, N) nearest rows of each row of `features` [N, d], of unit length.

    knn: "exact", or "ivf" (approximate, CPU, faiss). rows: for whom, as one of several processes that share the
    search asks; their answers one after another are that of one process, up to the similarities' last digit.

    Returns (rank int32, similarity float32), [N, k] or [rows, k], best first, on the device of the features, which
    the exact search uses. Raises ValueError for features that are not finite or not of unit length.
    """
    features = as_features(features)
    if knn == "ivf":
        if not has("faiss"):
            raise ValueError('knn="ivf" needs faiss: install faiss, or use knn="exact"')
        rank, similarity = settle(features.cpu(), k, partial(search_ivf, rows=rows), rows)
        return rank.to(features.device), similarity.to(features.device)
    if knn != "exact":
        raise ValueError(f'knn must be "exact" or "ivf", not {knn!r}')
    return settle(features, k, exact_search(features, rows), rows)


def exact_search(features: Tensor, rows: slice = ALL) -> Search:
    """The fastest exact search for these features; all have the same result once settled."""
    everything = rows.indices(len(features)) == (0, len(features), 1)
    if not features.is_cuda and everything and worth_compiling(len(features)):
        from .search_tiles import search_tiles

        return search_tiles
    by_torch = features.is_cuda or not has("faiss")
    return partial(search_torch if by_torch else search_faiss, rows=rows)


def settle(features: Tensor, k: int, search: Search, rows: slice = ALL) -> Neighbors:
    """A float32 search for `rows` made exact: near-ties are decided by the float64 inner products.

    Similarities further apart than twice the rounding error of a matrix product are in their true order already.
    Rows whose lists the search could not fill (rank -1) are searched in float64.
    """
    n = len(features)
    k = min(k, n)
    width = min(k + SPARE, n)
    with full_precision(features.device):
        asked = torch.arange(n, device=features.device)[rows]
        rank, similarity = search(features, width)
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
        similarity[some, places] = inner_products(features, asked[some], rank[some, places])
        some = some.unique_consecutive()
        by_index, order = rank[some].sort(1)
        by_both, again = similarity[some].gather(1, order).sort(dim=1, descending=True, stable=True)
        rank[some], similarity[some] = by_index.gather(1, again), by_both
        rank, similarity = rank[:, :k].contiguous(), similarity[:, :k].contiguous()
        if unsettled.any():
            rank[unsettled], similarity[unsettled] = search_float64(features, asked[unsettled], k)
    return rank, similarity


def search_faiss(features: Tensor, k: int, rows: slice = ALL) -> Neighbors:
    """Float32 search by faiss on the CPU, without a copy of the features."""
    import faiss

    x = features.numpy()
    similarity, rank = faiss.knn(x[rows], x, k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(rank.astype(np.int32)), torch.from_numpy(similarity)


def search_torch(features: Tensor, k: int, rows: slice | Tensor = ALL) -> Neighbors:
    """Float32 search by matrix products in blocks of rows, on the device of the features."""
    queries = features[rows]
    rank, similarity = _empty(features, len(queries), k)
    step = _block_rows(features, len(features))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarity[block], rank[block] = torch.topk(queries[block] @ features.T, k)
    return rank, similarity


def search_float64(features: Tensor, rows: Tensor, k: int) -> Neighbors:
    """Exact search for some rows, in float64: what the fast searches fall back to, e.g. for masses of copies."""
    n = len(features)
    rank, similarity = _empty(features, len(rows), k)
    step = max(1, _block_rows(features, n) // 4)
    columns = torch.arange(n - 1, -1, -1, device=features.device)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        mine = features[rows[block]].double()
        # in blocks too, since a float64 copy of all features would be as large again twice over
        products = torch.cat([(mine @ part.double().T).float() for part in features.split(4096)], 1)
        # One whole number per pair, ordered like the similarity and, when that is equal, by the lower index: float32
        # bits order like integers once those of negative numbers are turned round (adding 0 makes -0 into 0).
        bits = (products + 0.0).view(torch.int32)
        keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | columns
        best = torch.topk(keys, k).values
        best = (n - 1) - (best & 0xFFFFFFFF)
        similarity[block], rank[block] = products.gather(1, best), best.int()
    return rank, similarity


def search_ivf(features: Tensor, k: int, rows: slice = ALL) -> Neighbors:
    """Approximate search: k-means cells, of which the nearest few are searched. Missing neighbours have rank -1.

    For sets so large that the exact search takes too long on a CPU; what it misses depends on the data, so compare
    labels on a part first. With too few rows for more cells than are searched, the exact search is used.
    """
    import faiss

    n, d = features.shape
    cells = min(round(4 * math.sqrt(n)), n // 39)  # k-means wants 39 rows for a cell
    if cells <= IVF_PROBES:
        return search_faiss(features, k, rows)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(features.numpy())
    index.add(features.numpy())
    index.nprobe = IVF_PROBES
    similarity, rank = index.search(features[rows].numpy(), k)
    return torch.from_numpy(rank.astype(np.int32)), torch.from_numpy(similarity)


def _empty(features: Tensor, rows: int, k: int) -> Neighbors:
    return features.new_empty(rows, k, dtype=torch.int32), features.new_empty(rows, k)


def _block_rows(features: Tensor, n: int) -> int:
    """Rows whose float32 similarities to all n rows take 64 MB (1 GB on a GPU)."""
    return max(1, (1 << 28 if features.is_cuda else 1 << 24) // n)
