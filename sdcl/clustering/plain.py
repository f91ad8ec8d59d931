"""The definition, dense and without tricks: what `jaccard_distance` is tested against and timed against.

Takes memory for two N x N matrices and minutes at N = 20,000.
"""

import numpy as np


def plain_neighbors(features: np.ndarray, k1: int) -> np.ndarray:
    """rank [N, min(k1, N)]: nearest rows by Euclidean distance, equal ones by index; features: [N, d] unit rows."""
    x = features.astype(np.float64)
    return np.argsort(-(x @ x.T).astype(np.float32), axis=1, kind="stable")[:, :k1]


def plain_jaccard(features: np.ndarray, rank: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Distance float32 [N, N] from features [N, d] and rank [N, min(k1, N)] (method page, section 3)."""
    n = len(features)

    def mutual(i: int, k: int) -> np.ndarray:
        mine = rank[i, : k + 1]
        return mine[(rank[mine, : k + 1] == i).any(1)]

    near, nearer = [mutual(i, k1) for i in range(n)], [mutual(i, round(k1 / 2)) for i in range(n)]
    weights = np.zeros((n, n), np.float32)
    for i in range(n):
        close = [nearer[c] for c in near[i] if 3 * np.isin(nearer[c], near[i]).sum() > 2 * len(nearer[c])]
        expanded = np.unique(np.concatenate([near[i], *close]))
        e = np.exp(2 * (features[expanded] @ features[i]) - 2)
        weights[i, expanded] = e / e.sum()
    if k2 != 1:
        weights = np.stack([weights[rank[i, :k2]].mean(0) for i in range(n)])

    containing = [np.flatnonzero(weights[:, c]) for c in range(n)]
    distance = np.empty((n, n), np.float32)
    for i in range(n):
        overlap = np.zeros(n, np.float32)
        for c in np.flatnonzero(weights[i]):
            overlap[containing[c]] += np.minimum(weights[i, c], weights[containing[c], c])
        distance[i] = np.maximum(1 - overlap / (2 - overlap), 0)
    return distance
