"""AML's pseudo-labels of the target: each modality clustered by itself, clusters matched one to one (method page,
section 6).

Rows are test features [p1 ; p2] *as they are*, of no particular length (section 13.2): a longer row weighs more in a
centre. Labels are int64 [N], 0 … K-1, −1 = outlier.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sdcl.memory import cluster_centers

__all__ = ["centers", "kmeans", "match", "merge", "number", "unify"]

ROUNDS = 100
TOLERANCE = 1e-4


def kmeans(features: Tensor, initial: Tensor, rounds: int = ROUNDS, tolerance: float = TOLERANCE) -> Tensor:
    """k-means with assignment by cosine and plain means as centroids, from given rows.

    Labels are the assignment *before* the last update. It ends after `rounds`, or when the squared movement summed over
    all centroids is at most `tolerance`: with rows of absolute sum 1 movements are tiny, and it ends far earlier than
    with unit rows. The centroid of an empty cluster becomes 0; `number` drops empty clusters.

    Args:
        features: float32 [N, d], as they are.
        initial: int64 [k], rows to start from, distinct (section 13.8: with a row twice one cluster ends up empty).

    Returns:
        int64 [N], 0 … k-1, not all of which need occur.

    Raises:
        ValueError: more clusters than rows, or a start row is out of range or there twice.
    """
    k, n = len(initial), len(features)
    if k < 1 or k > n:
        raise ValueError(f"{k} clusters of {n} rows: k-means needs at least one, and at least as many rows")
    if len(torch.unique(initial)) < k or int(initial.min()) < 0 or int(initial.max()) >= n:
        raise ValueError(f"k-means starts from distinct rows 0 … {n - 1}")
    unit = F.normalize(features, dim=1)
    centroids = features[initial.to(features.device)]
    labels = torch.empty(n, dtype=torch.int64, device=features.device)
    for _ in range(max(1, rounds)):
        directions = F.normalize(centroids, dim=1).T
        labels = torch.cat([(rows @ directions).argmax(1) for rows in unit.split(1 << 14)])
        # float64 sums: independent of the order in which a device adds up the rows, to float32 precision
        sums = torch.zeros(k, features.shape[1], dtype=torch.float64, device=features.device)
        sums.index_add_(0, labels, features.double())
        moved_to = (sums / torch.bincount(labels, minlength=k).clamp(min=1)[:, None]).to(features.dtype)
        movement = float((moved_to - centroids).square().sum())
        centroids = moved_to
        if movement <= tolerance:
            break
    return labels


def number(labels: Tensor) -> Tensor:
    """The labels in use, in order, as 0 … K-1; −1 stays.

    A label that no row has would shift every higher one against its memory (section 13.8).
    """
    used, places = torch.unique(labels, return_inverse=True)
    return places - int((used < 0).any())


def merge(features: Tensor, labels: Tensor, groups: int) -> Tensor:
    """Clusters merged to `groups` of them, or to fewer where ties allow no such cut (section 13.9).

    Ward linkage of the clusters' mean rows as they are, cut by SciPy's `maxclust`; a cluster's new number is its
    group's, as SciPy numbers them, from 0.

    features: [N, d]. labels: int64 [N], 0 … K-1 without gaps, −1 stays; K > groups ≥ 1.
    """
    means = cluster_centers(features, labels).double().cpu().numpy()
    group = fcluster(linkage(means, method="ward"), groups, criterion="maxclust") - 1
    lookup = torch.from_numpy(np.append(group, -1)).to(labels)  # −1 finds the last entry
    return lookup[labels]


def match(visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of visible and infrared clusters of the least total squared distance of their L2-normalised centres.

    visible, infrared: centres [K_v, d], [K_i, d]. Returns (visible, infrared, distance): the pairs' numbers int64 [K],
    K the smaller of the two, every cluster of the smaller set in one, and their squared distances float64 [K].
    """
    a, b = (F.normalize(x.double(), dim=1) for x in (visible, infrared))
    cost = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).cpu().numpy()
    rows, columns = linear_sum_assignment(cost)
    pairs = torch.from_numpy(rows), torch.from_numpy(columns)
    return (*pairs, torch.from_numpy(cost[rows, columns]))


def unify(
    visible: Tensor, infrared: Tensor, visible_labels: Tensor, infrared_labels: Tensor, *, merging: bool = True
) -> tuple[Tensor, Tensor]:
    """Labels of both modalities in one numbering (section 6, steps 1 to 3).

    The modality with more clusters is merged to as many as the other has (`merge`), then clusters are matched one to
    one (`match`); visible rows take the number of their infrared partner. A cluster without a partner, which there is
    only when a merge gives fewer groups than asked or without merging, becomes outliers, and what remains is numbered
    anew.

    Args:
        visible, infrared: features [N_v, d], [N_i, d].
        visible_labels, infrared_labels: int64 [N_v], [N_i]; labels that no row has are dropped.
        merging: False for k-means, whose clusters are as many in both but for empty ones.

    Returns:
        (visible, infrared) labels, 0 … K-1, each in use in both modalities; −1 = outlier.

    Raises:
        ValueError: a modality has no cluster at all.
    """
    visible_labels, infrared_labels = number(visible_labels), number(infrared_labels)
    counts = [int(labels.max()) + 1 if len(labels) else 0 for labels in (visible_labels, infrared_labels)]
    if not all(counts):
        raise ValueError(f"{counts[0]} visible and {counts[1]} infrared clusters: nothing to match")
    if merging and counts[0] > counts[1]:
        visible_labels = merge(visible, visible_labels, counts[1])
    if merging and counts[1] > counts[0]:
        infrared_labels = merge(infrared, infrared_labels, counts[0])
    centres = [cluster_centers(visible, visible_labels), cluster_centers(infrared, infrared_labels)]
    rows, columns, _ = match(*centres)
    order = columns.argsort()  # infrared clusters keep their order, and their numbers where all have a partner
    return (
        _renumbered(visible_labels, rows[order], len(centres[0])),
        _renumbered(infrared_labels, columns[order], len(centres[1])),
    )


def centers(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Memory centres of both networks: means over the rows of *both* modalities of each label, L2-normalised.

    features: [N, 2d], p1 and p2 side by side. labels: int64 [N], 0 … K-1 without gaps; −1 is left out.
    Returns two [K, d] with rows of unit length. Raises ValueError as `cluster_centers` does.
    """
    first, second = cluster_centers(features, labels).chunk(2, dim=1)
    return F.normalize(first, dim=1), F.normalize(second, dim=1)


def _renumbered(labels: Tensor, kept: Tensor, count: int) -> Tensor:
    """Label kept[i] becomes i; all others −1."""
    lookup = torch.full((count + 1,), -1, dtype=torch.int64)  # −1 finds the last entry
    lookup[kept] = torch.arange(len(kept))
    return lookup.to(labels.device)[labels]
