"""Pseudo-labels of an epoch: clusters of each modality, and in stage 2 their association (method page, sections 3 and
6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcl import distributed
from sdcl.clustering import cluster, nearest_neighbors
from sdcl.config import Config, EpochSettings
from sdcl.cra import associate
from sdcl.frame.diagnostics import count_clusters
from sdcl.models import Embeddings, clustering_features

__all__ = ["PseudoLabels", "make_labels"]


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of all training rows, int64, -1 = none.

    Attributes:
        visible_clusters: [N] DBSCAN's labels of the visible rows.
        infrared: [M] DBSCAN's labels of the infrared rows.
        visible: [N] the visible rows' labels in use: `visible_clusters` in stage 1, associated infrared labels in
            stage 2 (whether or not the row is an outlier of its own modality).
        stage: 1 or 2.
    """

    visible_clusters: Tensor
    infrared: Tensor
    visible: Tensor
    stage: int

    def to(self, device: torch.device) -> PseudoLabels:
        """The same on another device."""
        return PseudoLabels(
            self.visible_clusters.to(device), self.infrared.to(device), self.visible.to(device), self.stage
        )

    @property
    def visible_training(self) -> Tensor:
        """[N] labels of the visible rows that batches draw from: outliers of their own modality do not train (section
        6, point 4)."""
        return torch.where(self.visible_clusters >= 0, self.visible, -1)

    def counts(self) -> dict[str, int]:
        """For the log: clusters, outliers and clusters of a single training row in each modality; in stage 2 also the
        infrared clusters that visible rows were given, and the rows in clusters that were left without a partner in
        the other modality."""
        out = {**count_clusters("visible", self.visible_clusters), **count_clusters("infrared", self.infrared)}
        for name, labels in (("visible", self.visible_training), ("infrared", self.infrared)):
            out[f"{name}_singles"] = int((labels[labels >= 0].unique(return_counts=True)[1] == 1).sum())
        if self.stage == 2:
            training = self.visible_training
            out["associated_visible_clusters"] = len(training[training >= 0].unique())
            out["visible_unassociated"] = int(((self.visible_clusters >= 0) & (self.visible < 0)).sum())
            out["infrared_unassociated"] = int(((self.infrared >= 0) & ~torch.isin(self.infrared, training)).sum())
        return out

    def association(self, truth: Mapping[str, Any]) -> str:
        """What stage 2 associated, in words, beside `association_accuracy` where `truth` has it; empty in stage 1."""
        if self.stage == 1:
            return ""
        right = f", {truth['association_accuracy']:.2f} right" if "association_accuracy" in truth else ""
        return f"association {self.counts()['associated_visible_clusters']} clusters{right}"


def shared_search(features: Tensor, k1: int, knn: str) -> tuple[Tensor, Tensor]:
    """`nearest_neighbors` of all rows [N, D], on every process; each has searched for its share of them."""
    own = distributed.shares(len(features))[distributed.rank()]
    rank, similarity = nearest_neighbors(features, k1, knn, own)
    return distributed.gather_shares(rank, len(features)), distributed.gather_shares(similarity, len(features))


def make_labels(visible: Embeddings, infrared: Embeddings, settings: EpochSettings, config: Config) -> PseudoLabels:
    """Clusters both modalities and, in stage 2, gives the visible rows infrared labels.

    Processes share the neighbour search, which is nearly all of the work; the rest is done once, by process 0, and
    given to all.

    Args:
        visible, infrared: embeddings of all training rows, in the order of the sorted paths (cluster numbers depend
        on it).
    """
    searched = []
    for x, k1 in ((visible, settings.k1_visible), (infrared, settings.k1_infrared)):
        features = clustering_features(x, config.shallow)
        searched.append((features, k1, shared_search(features, k1, config.knn)))

    def make() -> tuple[Tensor, Tensor, Tensor]:
        own, infrared_labels = (
            torch.from_numpy(cluster(features, config.eps, config.min_samples, k1, config.k2, neighbors=neighbors))
            for features, k1, neighbors in searched
        )
        if settings.stage == 1:
            return own, infrared_labels, own
        v, i = (x if config.shallow else Embeddings(x.deep, x.deep) for x in (visible, infrared))
        labels = infrared_labels.to(v.deep.device)
        associated = associate(*v, *i, labels, config.association_k, config.smooth_k, search=nearest_neighbors)
        return own, infrared_labels, associated.cpu()

    own, infrared_labels, labels = (x.to(visible.deep.device) for x in distributed.from_main(make))
    return PseudoLabels(own, infrared_labels, labels, settings.stage)
