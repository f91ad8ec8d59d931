"""One step's losses, and the memories that they compare with (method page, sections 4 to 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdcl.cnl import neighbor_loss, neighbor_mask
from sdcl.config import Config, EpochSettings
from sdcl.memory import ClusterMemory, InstanceMemory, cluster_centers
from sdcl.models import Embeddings
from sdcl.training.labels import PseudoLabels

__all__ = ["Memories", "StepLosses", "build_memories", "sdcl_losses"]


@dataclass
class Memories:
    """The memories of an epoch, by modality ("visible", "infrared") and level ("deep", "shallow").

    In stage 2 the two modalities' cluster memories of a level are one and the same object.
    """

    clusters: dict[tuple[str, str], ClusterMemory]
    instances: dict[tuple[str, str], InstanceMemory]

    def update_instances(
        self, visible: Embeddings, infrared: Embeddings, visible_rows: Tensor, infrared_rows: Tensor
    ) -> None:
        """Moves the rows of the step's images: after the losses are formed, before they are back-propagated.

        Args:
            visible, infrared: the step's embeddings, un-normalised; [2b, d] (view 1 of all, then view 2) and [b, d].
            visible_rows, infrared_rows: [2b] and [b] int64, rows in the training set; each visible row comes twice. On
                the CPU, whatever the memories' device, they spare a wait for it (`sdcl.memory.move_rows_`).
        """
        for (modality, level), memory in self.instances.items():
            x, rows = (visible, visible_rows) if modality == "visible" else (infrared, infrared_rows)
            memory.update(getattr(x, level), rows)


@dataclass
class StepLosses:
    """`total` is what is back-propagated; `terms` are its parts, detached and unweighted, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


def build_memories(
    visible: Embeddings, infrared: Embeddings, labels: PseudoLabels, settings: EpochSettings, config: Config
) -> Memories:
    """Memories of an epoch from all training embeddings (un-normalised [N, d], [M, d]) and their labels.

    Stage 1: cluster centres of each modality by its own labels. Stage 2: of both together by the unified labels, where
    visible outliers with an associated label count as well (section 6, point 5). Instance memories hold every row.

    Raises:
        ValueError: a modality has no cluster.
    """
    levels = ("deep", "shallow") if config.shallow else ("deep",)
    clusters = {}
    for level in levels:
        v, i = getattr(visible, level), getattr(infrared, level)
        if settings.stage == 1:
            for modality, x, y in (("visible", v, labels.visible), ("infrared", i, labels.infrared)):
                clusters[modality, level] = ClusterMemory(
                    cluster_centers(x, y), settings.cluster_momentum, config.temperature
                )
        else:
            centers = cluster_centers(torch.cat([v, i]), torch.cat([labels.visible, labels.infrared]))
            shared = ClusterMemory(centers, settings.cluster_momentum, config.temperature)
            clusters["visible", level] = clusters["infrared", level] = shared
    instances = {
        (modality, level): InstanceMemory(getattr(x, level), config.instance_momentum)
        for modality, x in (("visible", visible), ("infrared", infrared))
        for level in levels
    }
    return Memories(clusters, instances)


def sdcl_losses(
    visible: Embeddings,
    infrared: Embeddings,
    visible_labels: Tensor,
    infrared_labels: Tensor,
    visible_rows: Tensor,
    infrared_rows: Tensor,
    memories: Memories,
    settings: EpochSettings,
    config: Config,
) -> StepLosses:
    """The losses of one step. They change nothing: `Memories.update_instances` and the backward pass do, in this order.

    Args:
        visible: [2b, d] embeddings: view 1 of the b visible images, then view 2 of the same.
        infrared: [b, d] embeddings.
        visible_labels, infrared_labels: [2b], [b] int64, clusters of these rows (unified ones in stage 2).
        visible_rows, infrared_rows: [2b], [b] int64, their rows in the training set.
        memories: of this epoch, on the embeddings' device. Labels and rows may be there or, which spares every wait for
            a GPU, on the CPU.

    Returns:
        total = Σ cluster losses + w_homogeneous·(…) + w_heterogeneous·(…), section 5, and its named parts.
    """
    x = {"visible": visible, "infrared": infrared}
    rows = {"visible": visible_rows, "infrared": infrared_rows}
    labels = {"visible": visible_labels, "infrared": infrared_labels}
    levels = sorted({level for _, level in memories.instances}, reverse=True)  # shallow first

    # The order of formation counts: backward runs the other way round, so on a shared memory visible goes first and
    # infrared meets it updated (section 4).
    terms = {
        f"cluster_{modality}_{level}": memories.clusters[modality, level](getattr(x[modality], level), labels[modality])
        for level in levels
        for modality in ("infrared", "visible")
    }
    total = torch.stack(list(terms.values())).sum()

    for anchor, target, weight in (
        ("visible", "visible", settings.homogeneous_weight),
        ("infrared", "infrared", settings.homogeneous_weight),
        ("visible", "infrared", settings.visible_to_infrared_weight),
        ("infrared", "visible", settings.infrared_to_visible_weight),
    ):
        if weight:
            term = _neighbors(x[anchor], rows[anchor], anchor, target, memories, levels, config)
            terms[f"neighbor_{anchor}_{target}"] = term
            total = total + weight * term
    return StepLosses(total, {name: term.detach() for name, term in terms.items()})


def _neighbors(
    x: Embeddings, rows: Tensor, anchor: str, target: str, memories: Memories, levels: list[str], config: Config
) -> Tensor:
    """L_deep + 0.5·L_shallow of one pair of modalities (section 5)."""
    rows = rows.to(x.deep.device, non_blocking=True)
    own = {level: memories.instances[anchor, level].features[rows] for level in levels}
    other = {level: memories.instances[target, level].features for level in levels}
    mask = neighbor_mask(own["deep"], own[levels[0]], other["deep"], other[levels[0]], config.neighbor_threshold)
    loss = neighbor_loss(x.deep, other["deep"], mask, config.temperature)
    if "shallow" in levels:
        loss = loss + config.shallow_weight * neighbor_loss(x.shallow, other["shallow"], mask, config.temperature)
    return loss
