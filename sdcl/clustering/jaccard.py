"""k-reciprocal Jaccard distance from nearest neighbours, all of it sparse.

Zhong et al., CVPR 2017; method page, section 3.
"""

from types import ModuleType

import numpy as np
import torch
from scipy import sparse

from .choice import worth_compiling


def steps_for(n: int) -> ModuleType:
    """The module with the sparse steps for n rows: compiled, when that is worth while. Their results are the same."""
    if worth_compiling(n):
        from . import steps_numba

        return steps_numba
    from . import steps_scipy

    return steps_scipy


def distances(
    features: torch.Tensor,
    rank: np.ndarray,
    similarity: np.ndarray,
    k1: int,
    k2: int,
    max_distance: float | None,
    steps: ModuleType,
) -> sparse.csr_array:
    """The distances below 1, or those up to `max_distance`: float32 [N, N], symmetric.

    rank, similarity: [N, min(k1, N)] from `nearest_neighbors`; steps: the module `steps_scipy` or one like it.
    """
    weights = neighbor_weights(features, rank, similarity, k1, k2, steps)
    return distance_graph(weights, max_distance, steps)


def neighbor_weights(
    features: torch.Tensor, rank: np.ndarray, similarity: np.ndarray, k1: int, k2: int, steps: ModuleType
) -> sparse.csr_array:
    """V: row i holds the softmax weights of i's expanded k-reciprocal neighbours, averaged over its k2 nearest rows."""
    n, k = rank.shape
    half = min(round(k1 / 2) + 1, k)  # round() takes halves to the even number
    indptr, indices = steps.expand(rank, half)
    pattern = sparse.csr_array((np.ones(len(indices), np.int64), indices, indptr), (n, n))
    values = _similarities(features, rank, similarity, pattern, steps)
    weights = sparse.csr_array((np.exp(2 * values - 2), indices, indptr), (n, n))  # in [-4, 0]: no shift is needed
    weights.data /= np.repeat(weights @ np.ones(n), np.diff(indptr))  # summed in float64
    return weights if k2 == 1 else steps.average(weights, rank[:, :k2])


def _similarities(
    features: torch.Tensor, rank: np.ndarray, similarity: np.ndarray, pattern: sparse.csr_array, steps: ModuleType
) -> np.ndarray:
    """Similarity of each entry of `pattern`: five of six stand in the neighbour lists, the others are computed."""
    n, k = rank.shape
    order = np.argsort(rank, axis=1)
    places = 1 + np.arange(n)[:, None] * k + order  # where in the lists, from 1 so that 0 can mean "not there"
    columns = np.take_along_axis(rank, order, 1).ravel()
    listed = sparse.csr_array((places.ravel(), columns, np.arange(n + 1) * k), (n, n))
    place = (pattern + pattern.multiply(listed)).tocsr().data - 1  # pattern holds ones: the sum keeps all its entries
    values = similarity.ravel()[place - 1]
    missing = np.flatnonzero(place == 0)
    row = np.repeat(np.arange(n), np.diff(pattern.indptr))[missing]
    values[missing] = steps.inner_products(features, row, pattern.indices[missing])
    return values


def distance_graph(weights: sparse.csr_array, max_distance: float | None, steps: ModuleType) -> sparse.csr_array:
    """1 - m/(2 - m), at least 0, for m(i, j) = Σ_c min(V[i, c], V[j, c]), where it is < 1 and <= max_distance.

    Distances and `max_distance` are compared as float32, as a dense float32 matrix compares with a Python number.
    """
    one, two = np.float32(1), np.float32(2)
    limit = one if max_distance is None else np.float32(min(max_distance, 1))
    i, j, m = steps.overlapping_pairs(weights, 2 * (1 - float(limit)) / (2 - float(limit)))
    distance = np.maximum(one - m / (two - m), np.float32(0))
    keep = (distance <= limit) & (distance < one)
    i, j, distance = i[keep], j[keep], distance[keep]
    off = i != j
    # Built from index arrays, which keeps zeros as entries; a sum of sparse matrices would lose them.
    pairs = (np.concatenate([i, j[off]]), np.concatenate([j, i[off]]))
    return sparse.csr_array((np.concatenate([distance, distance[off]]), pairs), weights.shape)
