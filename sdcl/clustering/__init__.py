"""Pseudo-labels: DBSCAN on the k-reciprocal Jaccard distance, exact, and linear in the number of rows after the search.

Nothing N x N is ever formed. Three stages, the first two with more than one way to the same result:

- `neighbors`: the k1 nearest rows of every row, by faiss, by torch or by `search_tiles` (compiled);
- `jaccard`: sparse weights of their k-reciprocal neighbours and the distances that are below 1, in steps that are
  compiled (`steps_numba`) or torch (`steps_torch`);
- `dbscan_labels`: labels from the graph of the pairs within eps.

Features on a GPU stay there until the pairs within eps are known, a dozen a row, which the CPU makes labels of; both
stages before it run in torch. On the CPU, compiled code is used from some number of rows on, where it repays its
loading. Without numba or faiss, absent or broken, torch does their part, more slowly.

`plain` holds the dense definition that all of it is tested and timed against. The folder stands alone: copy it.
"""

from types import ModuleType

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from .compiled import usable
from .features import as_features
from .jaccard import distance_graph, neighbor_weights
from .neighbors import Neighbors, nearest_neighbors

__all__ = ["cluster", "dbscan_labels", "jaccard_distance", "nearest_neighbors"]

# Rows from which on the compiled steps repay their loading, 0.8 s.
COMPILED_FROM = 1024


def jaccard_distance(
    features: torch.Tensor | np.ndarray,
    k1: int = 30,
    k2: int = 6,
    *,
    max_distance: float | None = None,
    knn: str = "exact",
    neighbors: Neighbors | None = None,
    unit_length: bool = True,
) -> sparse.csr_array:
    """k-reciprocal Jaccard distance of every pair of rows (Zhong et al., CVPR 2017; method page, section 3).

    features: [N, d] rows of unit length, used as they are; torch (all but the result is on their device) or numpy.
    unit_length: False takes rows of any length: neighbours by Euclidean distance, weights by inner products of the rows
    as they are (softmax over -(2 - 2 f_i·f_j)). Slower: no half of the products is spared, and none is rounded.
    k1: neighbours that are looked at, the row itself included, clamped to N. k2: rows averaged in the query
    expansion; 1 turns it off. max_distance: store only distances up to this, which is several times faster.
    knn: "exact", or "ivf" for an approximate search on CPU with faiss (for sets too large for the exact one).
    neighbors: `nearest_neighbors(features, k1, knn)` (and the same `unit_length`) where it is known already, e.g. from
    several processes that each searched a share of the rows; found here without it.

    Neighbours of equal similarity rank by index; so copies of a row are in no special place, and a row with k1 copies
    before it is not among its own neighbours.

    Returns float32 [N, N], symmetric, with sorted rows. Every distance < 1 is stored, zeros on and off the diagonal
    too (so no eliminate_zeros() on it); every entry not stored is exactly 1 (or beyond max_distance).
    Raises ValueError for features that are not finite or, if they should be, not of unit length, and for settings out
    of range.
    """
    _check_settings(k1=k1, k2=k2)
    if max_distance is not None and not max_distance >= 0:
        raise ValueError(f"max_distance must be at least 0, not {max_distance}")
    features = as_features(features, unit_length)
    if neighbors is None:
        neighbors = nearest_neighbors(features, k1, knn, unit_length=unit_length)
    want = (len(features), min(k1, len(features)))
    if any(x.shape != want for x in neighbors):
        raise ValueError(f"neighbors must be two tensors {list(want)}, not {[list(x.shape) for x in neighbors]}")
    steps = steps_for(features)
    return distance_graph(neighbor_weights(features, neighbors, k1, k2, steps, unit_length), max_distance, steps)


def cluster(
    features: torch.Tensor | np.ndarray,
    eps: float = 0.6,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    *,
    knn: str = "exact",
    neighbors: Neighbors | None = None,
    unit_length: bool = True,
) -> np.ndarray:
    """Pseudo-labels: DBSCAN on `jaccard_distance(features, k1, k2)`.

    eps: largest distance of neighbours, 0 < eps < 1. min_samples: neighbours, the row itself included, that make a
    row a core row. The others as in `jaccard_distance`.

    Returns int64 [N]: clusters 0 … K-1, numbered by their first core row; -1 = outlier. It is NumPy whatever the
    features were, because the last step is SciPy's, on the CPU; `torch.from_numpy` takes it without a copy.
    Raises ValueError as `jaccard_distance` does.
    """
    _check_settings(min_samples=min_samples)
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie between 0 and 1 (every distance is at most 1), not {eps}")
    graph = jaccard_distance(
        features, k1, k2, max_distance=eps, knn=knn, neighbors=neighbors, unit_length=unit_length
    )
    return dbscan_labels(graph, min_samples)


def dbscan_labels(graph: sparse.csr_array, min_samples: int) -> np.ndarray:
    """DBSCAN (Ester et al., KDD 1996): labels int64 [N] from the symmetric graph of the pairs within eps.

    The graph's values are not looked at, stored zeros count.
    A row counts itself among its neighbours, stored or not. Clusters are numbered by their first core row; a row
    near the cores of several clusters belongs to the lowest number; -1 = outlier. Labels are those of scikit-learn.
    """
    n = graph.shape[0]
    row = np.repeat(np.arange(n), np.diff(graph.indptr))
    column = graph.indices
    row, column = row[row != column], column[row != column]
    core = 1 + np.bincount(row, minlength=n) >= min_samples
    labels = np.full(n, -1, np.int64)
    linked = core[row] & core[column]
    edges = (np.ones(linked.sum(), bool), (row[linked], column[linked]))
    component = connected_components(sparse.csr_array(edges, (n, n)), directed=False)[1]
    # np.unique gives the first core row of each component; their order numbers the clusters
    _, first, member = np.unique(component[core], return_index=True, return_inverse=True)
    labels[core] = np.argsort(np.argsort(first))[member]
    border = ~core[row] & core[column]
    nearest = np.full(n, n, np.int64)
    np.minimum.at(nearest, row[border], labels[column[border]])
    return np.where(nearest < n, nearest, labels)


def steps_for(features: torch.Tensor) -> ModuleType:
    """The module with the sparse steps for these features. Their results are the same."""
    if not features.is_cuda and len(features) >= COMPILED_FROM and usable("numba"):
        from . import steps_numba

        return steps_numba
    from . import steps_torch

    return steps_torch


def _check_settings(**settings: int) -> None:
    for name, value in settings.items():
        if int(value) != value or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
