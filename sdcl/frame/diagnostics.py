"""How good are the pseudo-labels? Compared with the true identities, for the log alone: nothing here steers training.

Every function takes plain arrays (torch or NumPy) and returns plain numbers, so that they go into a log line as they
are. A number that is not defined (no cluster, no pair) is left out: JSON knows no NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from sdcl.cnl import neighbor_mask
from sdcl.config import Config
from sdcl.data.records import ImageRecord
from sdcl.models import Embeddings
from sdcl.training.labels import PseudoLabels

__all__ = [
    "SIZE_BINS",
    "association_accuracy",
    "cluster_sizes",
    "compare_clusters",
    "diagnose",
    "diagnose_epoch",
    "diagnose_neighbors",
    "majority_identity",
    "neighbor_accuracy",
]

SIZE_BINS = (2, 4, 8, 16, 32, 64, 128)
"""Lower ends of the bins of `cluster_sizes`, images in a cluster: 1, 2-3, 4-7, …, 64-127, 128 and more."""

Array = Tensor | np.ndarray | Sequence[int]


def diagnose(labels: PseudoLabels, visible_ids: Array, infrared_ids: Array) -> dict[str, float | list[int]]:
    """An epoch's pseudo-labels against the true identities, by the names they have in log.jsonl.

    Args:
        labels: of all training rows.
        visible_ids, infrared_ids: [N], [M] true identities of the same rows.

    Returns:
        For each modality, "visible" or "infrared": `<m>_identities` (their number, what `<m>_clusters` should come
        to), `<m>_ari` and `<m>_purity` (`compare_clusters`), `<m>_cluster_sizes` (`cluster_sizes`). In stage 2 also
        `association_accuracy` (0 … 1, over the visible rows that train) and `associated_share`, their share of all.
    """
    out: dict[str, float | list[int]] = {}
    for name, y, ids in (
        ("visible", labels.visible_clusters, visible_ids),
        ("infrared", labels.infrared, infrared_ids),
    ):
        out[f"{name}_identities"] = len(np.unique(_numpy(ids)))
        out |= {f"{name}_{k}": v for k, v in compare_clusters(y, ids).items()}
        out[f"{name}_cluster_sizes"] = cluster_sizes(y)
    if labels.stage == 2:
        training = _numpy(labels.visible_training)
        out["associated_share"] = float((training >= 0).mean())
        accuracy = association_accuracy(training, visible_ids, labels.infrared, infrared_ids)
        if accuracy is not None:
            out["association_accuracy"] = accuracy
    return out


def diagnose_epoch(
    labels: PseudoLabels,
    visible: Embeddings,
    infrared: Embeddings,
    records: dict[str, list[ImageRecord]],
    config: Config,
) -> dict[str, float | list[int]]:
    """What the log says of an epoch's pseudo-labels and neighbours, judged by the records' true identities."""
    visible_ids, infrared_ids = ([r.identity for r in records[m]] for m in ("visible", "infrared"))
    if not config.shallow:  # the neighbour losses look at the deep level alone
        visible, infrared = (Embeddings(x.deep, x.deep) for x in (visible, infrared))
    return {
        **diagnose(labels, visible_ids, infrared_ids),
        **diagnose_neighbors(visible, infrared, visible_ids, infrared_ids, config.neighbor_threshold),
    }


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


def diagnose_neighbors(
    visible: Embeddings,
    infrared: Embeddings,
    visible_ids: Array,
    infrared_ids: Array,
    threshold: float = 0.9,
    sample: int = 512,
) -> dict[str, float]:
    """How right the neighbour losses' pairs are at the start of an epoch, when the memories hold these embeddings.

    Args:
        visible, infrared: embeddings of all training rows, un-normalised [N, d], [M, d].
        visible_ids, infrared_ids: [N], [M] identities.
        threshold: of `neighbor_mask`.
        sample: anchors that are looked at, evenly spaced over the modality's rows.

    Returns:
        `neighbors_<anchor>_<target>`, share of right pairs (0 … 1), for the four pairs of modalities, as far as there
        are any pairs.
    """
    unit = {"visible": [F.normalize(x, dim=1) for x in visible], "infrared": [F.normalize(x, dim=1) for x in infrared]}
    ids = {"visible": _numpy(visible_ids), "infrared": _numpy(infrared_ids)}
    out = {}
    for anchor in ("visible", "infrared"):
        n = len(ids[anchor])
        rows = torch.linspace(0, n - 1, min(sample, n)).round().long()
        anchors = [x[rows.to(x.device)] for x in unit[anchor]]
        for target in ("visible", "infrared"):
            mask = neighbor_mask(anchors[0], anchors[1], unit[target][0], unit[target][1], threshold)
            share = neighbor_accuracy(mask, ids[anchor][rows.numpy()], ids[target], rows if anchor == target else None)
            if share is not None:
                out[f"neighbors_{anchor}_{target}"] = share
    return out


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _same_length(labels: Array, ids: Array) -> tuple[np.ndarray, np.ndarray]:
    labels, ids = _numpy(labels), _numpy(ids)
    if labels.shape != ids.shape:
        raise ValueError(f"{len(labels)} labels but {len(ids)} identities")
    return labels, ids
