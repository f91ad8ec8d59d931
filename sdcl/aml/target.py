"""A phase of stage 2: both networks learn clusters of the unlabelled target (method page, sections 6 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl import distributed
from sdcl.aml.batches import target_batches
from sdcl.aml.labels import centers, kmeans, unify
from sdcl.aml.losses import StepLosses, stage2_losses
from sdcl.aml.network import Pair, embed_pair
from sdcl.aml.schedule import make_optimizer, take_step
from sdcl.aml.settings import Config, Part, PhaseSettings
from sdcl.aml.views import draw_channels, views
from sdcl.clustering import cluster
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.sampler import batch_problem
from sdcl.errors import UserError
from sdcl.frame.diagnostics import association_accuracy, diagnose_clusters
from sdcl.frame.embedding import device_of, embed_records
from sdcl.frame.meters import Meters
from sdcl.frame.run import Clock
from sdcl.memory import ClusterLogits, cluster_centers
from sdcl.seeds import derive_seed

__all__ = ["TargetLabels", "TargetPhase", "embed_target", "label_target", "target_losses"]

Records = Mapping[str, Sequence[ImageRecord]]


def target_losses(
    pair: Pair, memories: Sequence[ClusterLogits], pixels: Tensor, channels: Tensor, targets: Tensor,
    settings: PhaseSettings, precision: str = "fp32",
) -> StepLosses:  # fmt: skip
    """Forwards and losses of a step: network 1 sees the visible view, network 2 the channel view.

    Args:
        memories: of network 1 and network 2; the losses' backward pass moves them.
        pixels: augmented images [B, 3, H, W] in 0 … 255, on the networks' device.
        channels: int64 [B], of the channel views.
        targets: int64 [B]; best on the CPU, where the memories' moves are planned.
    """
    visible, channel = views(pixels, None, channels)
    with distributed.autocast(pixels.device, precision):
        features = pair.first(visible), pair.second(channel)
    return stage2_losses(*features, targets, memories, settings.kl_weight, settings.similarity_weight)


@dataclass(frozen=True)
class TargetLabels:
    """A clustering: labels int64 [N_v], [N_i] on the CPU, 0 … K-1 shared by both modalities, -1 = left out.

    found: clusters of each modality before merging and matching, with -1 = outlier. distance: mean squared distance of
    matched clusters' L2-normalised centres, 0 … 4.
    """

    visible: Tensor
    infrared: Tensor
    found: dict[str, Tensor]
    distance: float

    @property
    def both(self) -> Tensor:
        return torch.cat([self.visible, self.infrared])


def embed_target(pair: Pair, records: Records, config: Config, seed: int, bar: Any = None) -> dict[str, Tensor]:
    """Test features [p1 ; p2] of both modalities' images, [N, 2·dim] each, in float32 (section 3).

    seed: of the channels that network 2 sees of each image and its mirror image.
    """
    generators = {m: torch.Generator().manual_seed(derive_seed(seed, m)) for m in MODALITIES}

    def embed(model: Pair, images: Tensor, modality: str) -> dict[str, Tensor]:
        channels = draw_channels(2 * len(images), generators[modality]).view(-1, 2)
        with torch.autocast(images.device.type, enabled=False):
            return {"both": embed_pair(model, images, channels)}

    levels = embed_records(embed, pair, records, config, "bicubic", bar)
    return {modality: levels[modality]["both"] for modality in MODALITIES}


def label_target(features: Mapping[str, Tensor], settings: PhaseSettings, seed: int) -> TargetLabels:
    """Clusters each modality by itself and matches the clusters (section 6).

    features: by modality, rows as they are. seed: of the rows that k-means starts from.

    Raises:
        UserError: a modality has no cluster.
    """
    found = {}
    for modality in MODALITIES:
        rows = features[modality]
        if settings.clusters is None:
            y = cluster(rows, settings.eps, settings.min_samples, settings.k1, settings.k2, unit_length=False)
            found[modality] = torch.as_tensor(y)
        else:
            generator = torch.Generator().manual_seed(derive_seed(seed, modality))
            start = torch.randperm(len(rows), generator=generator)[: settings.clusters]
            found[modality] = kmeans(rows, start).cpu()
        if int(found[modality].max()) < 0:
            raise UserError(
                f"clustering found no cluster in {len(rows)} {modality} images: a larger --eps finds more; with "
                "weights that are no good start no setting helps"
            )
    x = [features[m].cpu() for m in MODALITIES]
    visible, infrared = unify(*x, *found.values(), merging=settings.clusters is None)
    pairs = [F.normalize(cluster_centers(*side), dim=1) for side in zip(x, (visible, infrared), strict=True)]
    distance = float((pairs[0] - pairs[1]).square().sum(1).mean())
    return TargetLabels(visible, infrared, found, distance)


class TargetPhase:
    """The DBSCAN phase ("target_dbscan") or the k-means phase ("target_kmeans").

    Args:
        pair: trained; on its device.
        records: training images by modality.
        key: what the phase's random draws follow from, beside step and clustering: seed, trial and phase.
        bar: see `embed_records`.
    """

    def __init__(
        self, pair: Pair, records: Records, settings: PhaseSettings, config: Config, key: tuple[int | str, ...],
        bar: Any = None,
    ) -> None:  # fmt: skip
        self.pair, self.records = pair, records
        self.settings, self.config, self.key, self.bar = settings, config, key, bar
        self.optimizer = make_optimizer(pair.parameters(), settings.learning_rate, settings.weight_decay)
        self.labels = torch.empty(0, dtype=torch.int64)
        self.memories: list[ClusterLogits] = []
        self.since, self.clusterings = 0, 0
        """Step of the last clustering, and how many there were."""

    def state(self) -> dict[str, Any]:
        """What the phase goes on from, beside the pair's weights: nothing is clustered again."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "labels": self.labels,
            "memories": [memory.features for memory in self.memories],
            "since": self.since,
            "clusterings": self.clusterings,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.labels, self.since, self.clusterings = state["labels"], state["since"], state["clusterings"]
        self.memories = [self._memory(centers) for centers in state["memories"]]
        for memory, features in zip(self.memories, state["memories"], strict=True):
            memory.features.copy_(features)  # as they were, to the last bit

    def train(self, part: Part, number: int, clock: Clock, progress: Callable[..., Any]) -> dict[str, Any]:
        """The steps of a part, the run's `number`-th, with the clusterings that fall due in it; returns the means of
        the loss and its terms, and what the last clustering found."""
        found: dict[str, Any] = {}
        meters = Meters(number, part.last - part.first, progress(number, part.last - part.first))
        step = part.first
        while step < part.last:
            if not self.memories or step - self.since >= self._steps():
                found = self._cluster(step, clock)
            stop = min(part.last, self.since + self._steps())
            with clock("train"):
                self._train(step, stop, meters)
            step = stop
        return {**meters.means, **found, "clusterings": self.clusterings}

    def _steps(self) -> int:
        return self.settings.steps_of(int((self.labels >= 0).sum()))

    def _memory(self, features: Tensor) -> ClusterLogits:
        s = self.settings
        memory = ClusterLogits(features, s.memory_momentum, s.memory_temperature)
        return memory.to(device_of(self.pair))

    def _cluster(self, step: int, clock: Clock) -> dict[str, Any]:
        """New labels and memories, and what the log says of them."""
        seed = derive_seed(*self.key, "clustering", self.clusterings)
        with clock("embed"):
            features = embed_target(self.pair, self.records, self.config, seed, self.bar)
        with clock("label"):
            labels = label_target(features, self.settings, seed)
            self.labels, self.since, self.clusterings = labels.both, step, self.clusterings + 1
            s = self.settings
            if problem := batch_problem(self.labels.numpy(), s.batch_size // s.instances, s.instances):
                raise UserError(problem)
            both = centers(torch.cat([features[m] for m in MODALITIES]), self.labels.to(features["visible"].device))
            self.memories = [self._memory(half) for half in both]
            return self._describe(labels)

    def _describe(self, labels: TargetLabels) -> dict[str, Any]:
        """Clusters, outliers, pairs; beside the true identities where these are known and wanted."""
        line: dict[str, Any] = {"pairs": int(labels.both.max()) + 1, "pair_distance": labels.distance}
        ids = {m: np.array([record.identity for record in self.records[m]]) for m in MODALITIES}
        for modality, y in labels.found.items():
            line[f"{modality}_clusters"] = len(torch.unique(y[y >= 0]))
            line[f"{modality}_outliers"] = int((y < 0).sum())
            if self.config.truth:
                line |= diagnose_clusters(modality, y, ids[modality])
        if self.config.truth:
            accuracy = association_accuracy(labels.visible, ids["visible"], labels.infrared, ids["infrared"])
            line |= {} if accuracy is None else {"association_accuracy": accuracy}
        return line

    def _train(self, first: int, last: int, meters: Meters) -> None:
        """Steps first … last-1, all on the same labels and memories."""
        device = device_of(self.pair)
        self.pair.train()
        seed = derive_seed(*self.key, "batches", self.clusterings)
        batches = target_batches(
            self.records, self.labels.numpy(), self.settings, self.config, first - self.since, last - first, seed
        )
        for step, (pixels, rows) in enumerate(batches, first):
            draws = torch.Generator().manual_seed(derive_seed(*self.key, "channels", step))
            losses = target_losses(
                self.pair,
                self.memories,
                pixels.to(device, non_blocking=True),
                draw_channels(len(rows), draws),
                self.labels[rows],
                self.settings,
                self.config.precision,
            )
            take_step(self.optimizer, losses.total, self.settings.schedule.rate(step))
            meters.add(losses.total, losses.terms)
