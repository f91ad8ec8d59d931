"""An epoch's pseudo-labels before they are trained on: can they be, and how good are they?

True identities serve the log alone: nothing here steers training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.cnl import neighbor_mask
from sdcl.config import Config, EpochSettings
from sdcl.data.records import ImageRecord
from sdcl.frame.diagnostics import association_accuracy, diagnose_clusters, neighbor_accuracy
from sdcl.frame.guards import check_clusters, distance_histogram
from sdcl.models import Embeddings, clustering_features
from sdcl.training.labels import PseudoLabels

__all__ = ["check_labels", "diagnose", "diagnose_epoch", "diagnose_neighbors"]

Array = Tensor | np.ndarray | Sequence[int]


def check_labels(
    labels: PseudoLabels, visible: Embeddings, infrared: Embeddings, settings: EpochSettings, config: Config
) -> str | None:
    """What is wrong with an epoch's pseudo-labels, or None when they can be trained on.

    Degenerate are: fewer than two clusters in a modality (nothing to contrast), in stage 2 no visible row with an
    associated label, and too few rows for a batch. The text tells the settings and the distances to choose others by.
    """
    for name, x, clusters, training, k1, k1_option in (
        (
            "visible",
            visible,
            labels.visible_clusters,
            labels.visible_training,
            settings.k1_visible,
            "--k1" if settings.stage == 1 else "--k1-visible-stage2",
        ),
        ("infrared", infrared, labels.infrared, labels.infrared, settings.k1_infrared, "--k1"),
    ):
        settings_text = f"The settings were --eps {config.eps} {k1_option} {k1} --min-samples {config.min_samples}"
        found, outliers = int(clusters.max()) + 1, int((clusters < 0).sum())
        if name == "visible" and settings.stage == 2 and found >= 2 and not bool((training >= 0).any()):
            return (
                f"epoch {settings.epoch}: no visible image got an infrared label: of {len(labels.visible)} visible "
                f"images {int((labels.visible < 0).sum())} were associated with outliers and {outliers} are outliers "
                "themselves. A larger --eps leaves fewer outliers, a smaller --association-k looks at nearer images "
                "only"
            )
        problem = check_clusters(
            name, clusters.cpu().numpy(), training.cpu().numpy(), config.identities, config.instances
        )
        if problem is not None:
            features = clustering_features(x, config.shallow)
            histogram = distance_histogram(features, k1, config.k2, config.min_samples, config.knn)
            return f"epoch {settings.epoch}: {problem}. {settings_text}. {histogram}"
    return None


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
    out = {
        **diagnose_clusters("visible", labels.visible_clusters, visible_ids),
        **diagnose_clusters("infrared", labels.infrared, infrared_ids),
    }
    if labels.stage == 2:
        training = labels.visible_training
        out["associated_share"] = float((training >= 0).double().mean())
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
    ids = {"visible": np.asarray(visible_ids), "infrared": np.asarray(infrared_ids)}
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
