"""How good are the pseudo-labels? Compared with the true identities, for the log alone: nothing here steers training.

Every function takes plain arrays (torch or NumPy) and returns plain numbers, so that they go into a log line as they
are. A number that is not defined (no cluster, no pair) is left out: JSON knows no NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = [
    "SIZE_BINS",
    "association_accuracy",
    "cluster_sizes",
    "compare_clusters",
    "count_clusters",
    "diagnose_clusters",
    "majority_identity",
    "neighbor_accuracy",
]

SIZE_BINS = (2, 4, 8, 16, 32, 64, 128)
"""Lower ends of the bins of `cluster_sizes`, images in a cluster: 1, 2-3, 4-7, …, 64-127, 128 and more."""

Array = Tensor | np.ndarray | Sequence[int]


def diagnose_clusters(modality: str, labels: Array, ids: Array) -> dict[str, float | list[int]]:
    """A modality's pseudo-labels against the true identities, by the names they have in log.jsonl.

    Args:
        labels: [N] clusters, -1 = outlier.
        ids: [N] identities.

    Returns:
        `<m>_identities` (their number, what `<m>_clusters` should come to), `<m>_ari` and `<m>_purity`
        (`compare_clusters`), `<m>_cluster_sizes` (`cluster_sizes`).
    """
    return {
        f"{modality}_identities": len(np.unique(_numpy(ids))),
        **{f"{modality}_{k}": v for k, v in compare_clusters(labels, ids).items()},
        f"{modality}_cluster_sizes": cluster_sizes(labels),
    }


def count_clusters(modality: str, labels: Tensor) -> dict[str, int]:
    """`<m>_clusters` and `<m>_outliers` of labels [N] int64, -1 = outlier, for the log."""
    return {f"{modality}_clusters": int(labels.max()) + 1, f"{modality}_outliers": int((labels < 0).sum())}


def compare_clusters(labels: Array, ids: Array) -> dict[str, float]:
    """Agreement of clusters and identities over the rows that are in a cluster; outliers are left out.

    Args:
        labels: [N] clusters, -1 = outlier.
        ids: [N] identities.

    Returns:
        `ari`: adjusted Rand index, 1 = the same partition, 0 = what chance gives. `purity`: share of rows that are of
        their cluster's most frequent identity (1 also where an identity is split over many clusters). Empty when
        every row is an outlier.
    """
    labels, ids = _same_length(labels, ids)
    kept = labels >= 0
    if not kept.any():
        return {}
    from sklearn.metrics import adjusted_rand_score  # here: a second that programs without labels need not wait for

    majority = majority_identity(labels, ids)
    return {
        "ari": float(adjusted_rand_score(ids[kept], labels[kept])),
        "purity": float((majority[labels[kept]] == ids[kept]).mean()),
    }


def majority_identity(labels: Array, ids: Array) -> np.ndarray:
    """[K] int64: each cluster's most frequent identity, the smallest among equals; a number without rows has -1.

    Args:
        labels: [N] clusters 0 … K-1, -1 = outlier.
        ids: [N] identities, not negative.
    """
    labels, ids = _same_length(labels, ids)
    kept = labels >= 0
    majority = np.full(labels.max(initial=-1) + 1, -1, dtype=np.int64)
    pairs, counts = np.unique(np.stack([labels[kept], ids[kept]]), axis=1, return_counts=True)
    # Written from the rarest to the most frequent, and among equals from the largest identity down: the last one stays.
    order = np.lexsort((-pairs[1], counts))
    majority[pairs[0, order]] = pairs[1, order]
    return majority


def association_accuracy(
    visible_labels: Array, visible_ids: Array, infrared_labels: Array, infrared_ids: Array
) -> float | None:
    """Share (0 … 1) of associated visible rows whose infrared cluster is mostly of their own identity.

    Args:
        visible_labels: [N] infrared clusters given to the visible rows, -1 = none (not counted).
        infrared_labels: [M] the infrared rows' own clusters, -1 = outlier.
        visible_ids, infrared_ids: [N], [M] identities.

    Returns:
        None when no visible row has a label.
    """
    visible_labels, visible_ids = _same_length(visible_labels, visible_ids)
    kept = visible_labels >= 0
    if not kept.any():
        return None
    majority = majority_identity(infrared_labels, infrared_ids)
    return float((majority[visible_labels[kept]] == visible_ids[kept]).mean())


def cluster_sizes(labels: Array) -> list[int]:
    """Number of clusters of 1, 2-3, 4-7, 8-15, … images: a histogram whose bins start at 1 and `SIZE_BINS`."""
    labels = _numpy(labels)
    sizes = np.bincount(labels[labels >= 0])
    return np.bincount(np.digitize(sizes[sizes > 0], SIZE_BINS), minlength=len(SIZE_BINS) + 1).tolist()


def neighbor_accuracy(mask: Array, anchor_ids: Array, target_ids: Array, own_rows: Array | None = None) -> float | None:
    """Share (0 … 1) of a neighbour mask's pairs that are of one identity.

    Args:
        mask: [B, N] bool, from `neighbor_mask`.
        anchor_ids, target_ids: [B], [N] identities.
        own_rows: [B] the anchors' own rows among the targets, where the two are of one modality: an anchor is always
            its own neighbour, and these pairs are not counted.

    Returns:
        None when there is no pair.
    """
    mask = np.array(_numpy(mask), dtype=bool)
    if own_rows is not None:
        mask[np.arange(len(mask)), _numpy(own_rows)] = False
    anchors, targets = mask.nonzero()
    if len(anchors) == 0:
        return None
    return float((_numpy(anchor_ids)[anchors] == _numpy(target_ids)[targets]).mean())


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _same_length(labels: Array, ids: Array) -> tuple[np.ndarray, np.ndarray]:
    labels, ids = _numpy(labels), _numpy(ids)
    if labels.shape != ids.shape:
        raise ValueError(f"{len(labels)} labels but {len(ids)} identities")
    return labels, ids
