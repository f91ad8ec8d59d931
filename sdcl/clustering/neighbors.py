"""Nearest neighbours of every row among all rows, itself included.

Every exact search gives the same answer: the k rows of highest inner product, equal ones in order of their index,
where "equal" means equal when the float64 sum is rounded to float32 (`inner_products`). Unit rows: the highest inner
product is the smallest Euclidean distance.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from .choice import has, worth_compiling
from .features import PRODUCT_ERROR, full_precision, inner_products

Neighbors = tuple[np.ndarray, np.ndarray]  # rank [N, k] int32 row indices, best first; similarity [N, k] float32
Search = Callable[[torch.Tensor, int], Neighbors]

# How many neighbours more than k a float32 search brings, so that near-ties around rank k can be settled.
SPARE = 8
# Clusters that an approximate search visits for a row.
IVF_PROBES = 32


def nearest_neighbors(features: torch.Tensor, k: int, knn: str = "exact") -> Neighbors:
    """The min(k, N) nearest rows of each row of `features` [N, d]; knn: "exact", or "ivf" (approximate, CPU, faiss).

    Returns (rank [N, k] int32, similarity [N, k] float32), best first. Searches on the device of the features.
    """
    if knn == "ivf":
        if not has("faiss"):
            raise ValueError('knn="ivf" needs faiss: install faiss, or use knn="exact"')
        return settle(features.cpu(), k, search_ivf)
    if knn != "exact":
        raise ValueError(f'knn must be "exact" or "ivf", not {knn!r}')
    return settle(features, k, exact_search(features))


def exact_search(features: torch.Tensor) -> Search:
    """The fastest exact search for these features; all have the same result once settled."""
    if features.is_cuda:
        return search_torch
    if worth_compiling(len(features)):
        from .search_tiles import search_tiles

        return search_tiles
    return search_faiss if has("faiss") else search_torch


def settle(features: torch.Tensor, k: int, search: Search) -> Neighbors:
    """A float32 search made exact: near-ties are decided by the float64 inner products.

    Similarities further apart than twice the rounding error of a matrix product are in their true order already.
    Rows whose lists the search could not fill (rank -1) are searched in float64.
    """
    n = len(features)
    k = min(k, n)
    width = min(k + SPARE, n)
    with full_precision(features.device):
        rank, similarity = search(features, width)
        near = similarity[:, :-1] - similarity[:, 1:] <= 2 * PRODUCT_ERROR
        unsettled = (rank < 0).any(1)
        if width < n:  # near-ties from rank k to the end of the list: rows beyond it may belong into it
            unsettled |= similarity[:, k - 1] - similarity[:, -1] <= 2 * PRODUCT_ERROR
        tied = np.zeros(rank.shape, bool)  # belongs to a group of near-ties,
        tied[:, 1:] |= near
        tied[:, :-1] |= near
        tied[:, k:] &= np.logical_and.accumulate(near[:, k - 1 :], axis=1)  # which is, or begins, among the first k
        tied[unsettled] = False
        rows, places = np.nonzero(tied)
        similarity[rows, places] = inner_products(features, rows, rank[rows, places])
        rows = np.unique(rows)
        order = np.lexsort((rank[rows], -similarity[rows]))
        rank[rows] = np.take_along_axis(rank[rows], order, 1)
        similarity[rows] = np.take_along_axis(similarity[rows], order, 1)
        rank, similarity = rank[:, :k].copy(), similarity[:, :k].copy()
        rows = np.flatnonzero(unsettled)
        rank[rows], similarity[rows] = search_float64(features, rows, k)
    return rank, similarity


def search_faiss(features: torch.Tensor, k: int) -> Neighbors:
    """Float32 search by faiss on the CPU, without a copy of the features."""
    import faiss

    x = features.numpy()
    similarity, rank = faiss.knn(x, x, k, metric=faiss.METRIC_INNER_PRODUCT)
    return rank.astype(np.int32), similarity


def search_torch(features: torch.Tensor, k: int, rows: np.ndarray | None = None) -> Neighbors:
    """Float32 search by matrix products in blocks of rows, on the device of the features; for all rows or some."""
    queries = features if rows is None else features[torch.from_numpy(rows).to(features.device)]
    rank, similarity = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
    step = _block_rows(features, len(features))
    for start in range(0, len(queries), step):
        best = torch.topk(queries[start : start + step] @ features.T, k)
        rank[start : start + step] = best.indices.to(torch.int32).cpu().numpy()
        similarity[start : start + step] = best.values.cpu().numpy()
    return rank, similarity


def search_float64(features: torch.Tensor, rows: np.ndarray, k: int) -> Neighbors:
    """Exact search for some rows, in float64: what the fast searches fall back to, e.g. for masses of copies."""
    n = len(features)
    rank, similarity = np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.float32)
    step = max(1, _block_rows(features, n) // 4)
    columns = torch.arange(n - 1, -1, -1, device=features.device)
    for start in range(0, len(rows), step):
        mine = features[torch.from_numpy(rows[start : start + step]).to(features.device)].double()
        # in blocks too, since a float64 copy of all features would be as large again twice over
        products = torch.cat([(mine @ part.double().T).float() for part in features.split(4096)], 1)
        # One whole number per pair, ordered like the similarity and, when that is equal, by the lower index: float32
        # bits order like integers once those of negative numbers are turned round (adding 0 makes -0 into 0).
        bits = (products + 0.0).view(torch.int32)
        keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | columns
        best = torch.topk(keys, k).values
        best = (n - 1) - (best & 0xFFFFFFFF)
        rank[start : start + step] = best.to(torch.int32).cpu().numpy()
        similarity[start : start + step] = products.gather(1, best).cpu().numpy()
    return rank, similarity


def search_ivf(features: torch.Tensor, k: int) -> Neighbors:
    """Approximate search: k-means cells, of which the nearest few are searched. Missing neighbours have rank -1.

    For sets so large that the exact search takes too long on a CPU; what it misses depends on the data, so compare
    labels on a part first. With too few rows for more cells than are searched, the exact search is used.
    """
    import faiss

    n, d = features.shape
    cells = min(round(4 * math.sqrt(n)), n // 39)  # k-means wants 39 rows for a cell
    if cells <= IVF_PROBES:
        return search_faiss(features, k)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(features.numpy())
    index.add(features.numpy())
    index.nprobe = IVF_PROBES
    similarity, rank = index.search(features.numpy(), k)
    return rank.astype(np.int32), similarity


def _block_rows(features: torch.Tensor, n: int) -> int:
    """Rows whose float32 similarities to all n rows take 64 MB (1 GB on a GPU)."""
    return max(1, (1 << 28 if features.is_cuda else 1 << 24) // n)
