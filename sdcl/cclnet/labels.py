"""Pseudo-labels of an epoch of stage 0 or 2 (CCLNet page, section 4): made, checked, and judged for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.cclnet.memory import MatchedMemories, match_clusters
from sdcl.cclnet.settings import Config, EpochSettings
from sdcl.clustering import cluster
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.errors import UserError
from sdcl.frame.diagnostics import association_accuracy, count_clusters, diagnose_clusters
from sdcl.frame.guards import distance_histogram
from sdcl.memory import cluster_centers

__all__ = ["PseudoLabels", "build_memories", "cluster_modality", "make_labels"]


def cluster_modality(features: Tensor, eps: float, min_samples: int, k1: int, k2: int) -> tuple[Tensor, Tensor]:
    """Clusters a modality by itself.

    Args:
        features: [N, d] of unit length. The others as in `sdcl.clustering.cluster`.

    Returns:
        labels [N] int64, 0 … K-1, -1 = outlier, and centres [K, d]: means of the *normalised* features (SDCL's are of
        un-normalised ones), to unit length.
    """
    labels = torch.from_numpy(cluster(features, eps, min_samples, k1, k2)).to(features.device)
    if not bool((labels >= 0).any()):
        return labels, features[:0]
    return labels, F.normalize(cluster_centers(features, labels), dim=1)


@dataclass(frozen=True)
class PseudoLabels:
    """Clusters of both modalities, by "visible" and "infrared".

    Attributes:
        labels: [N] int64 of all training rows, -1 = outlier.
        centers: [K, d], unit length.
    """

    labels: dict[str, Tensor]
    centers: dict[str, Tensor]

    def describe(self, records: Mapping[str, Sequence[ImageRecord]], truth: bool) -> dict[str, float | list[int]]:
        """For the log: clusters and outliers, and the clusters of both modalities that are nearest to each other; with
        `truth` how well both agree with the records' identities, which train nothing."""
        out: dict[str, float | list[int]] = {}
        for m, y in self.labels.items():
            out |= count_clusters(m, y)
        first, second = match_clusters(self.centers["visible"], self.centers["infrared"])
        out["matched_clusters"] = len(first)
        if truth:
            ids = {m: [r.identity for r in rows] for m, rows in records.items()}
            for m, y in self.labels.items():
                out |= diagnose_clusters(m, y, ids[m])
            partner = torch.full((len(self.centers["visible"]) + 1,), -1, dtype=torch.long, device=first.device)
            partner[first] = second  # the last entry stays -1: that of outliers
            given = partner[self.labels["visible"]]
            right = association_accuracy(given, ids["visible"], self.labels["infrared"], ids["infrared"])
            out |= {} if right is None else {"matching_accuracy": right}
        return out


def make_labels(features: Mapping[str, Tensor], now: EpochSettings, config: Config) -> PseudoLabels:
    """Clusters both modalities.

    Args:
        features: by modality [N, d] of all training rows, unit length, in the order of the sorted paths.

    Raises:
        UserError: a modality has fewer clusters than a batch takes; the message tells the distances to choose by.
    """
    labels, centers = {}, {}
    for m in MODALITIES:
        labels[m], centers[m] = cluster_modality(features[m], config.eps, config.min_samples, config.k1, config.k2)
        if len(centers[m]) < config.identities:
            raise UserError(
                f"stage {now.stage}, epoch {now.number}: clustering found {len(centers[m])} clusters in "
                f"{len(labels[m])} {m} images, {int((labels[m] < 0).sum())} outliers, but a batch takes "
                f"{config.identities}. A larger --eps finds more where most images are outliers, a smaller one where "
                "few large clusters swallow everything; with weights that are no good start no setting helps. The "
                f"settings were --eps {config.eps} --k1 {config.k1} --min-samples {config.min_samples}. "
                + distance_histogram(features[m], config.k1, config.k2, config.min_samples)
            )
    return PseudoLabels(labels, centers)


def build_memories(found: PseudoLabels, now: EpochSettings, config: Config) -> MatchedMemories:
    """The memories of an epoch (section 5)."""
    visible, infrared = (found.centers[m] for m in MODALITIES)
    return MatchedMemories(visible, infrared, config.cluster_momentum, config.temperature, now.mix_share)
