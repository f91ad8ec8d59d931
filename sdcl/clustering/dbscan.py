"""DBSCAN on a graph of neighbours (Ester et al., KDD 1996)."""

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components


def dbscan_labels(graph: sparse.csr_array, min_samples: int) -> np.ndarray:
    """Labels int64 [N] from the symmetric graph of the pairs within eps; values are not looked at, stored zeros count.

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
