"""The steps of one epoch: batches in, a trained model and moved memories out (method page, sections 4 to 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import SGD

from sdcl import distributed
from sdcl.config import Config, EpochSettings
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.frame.meters import Meters
from sdcl.seeds import derive_seed
from sdcl.training.labels import PseudoLabels
from sdcl.training.losses import Memories, sdcl_losses
from sdcl.training.replicas import ReplicaForward
from sdcl.training.views import Source, TrainingBatches

__all__ = ["make_optimizer", "train_epoch"]


def make_optimizer(model: nn.Module, config: Config) -> SGD:
    """SGD over every trained parameter, weight decay on all of them, normalisations included (section 7)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return SGD(
        trained,
        lr=config.learning_rate,
        momentum=config.sgd_momentum,
        weight_decay=config.weight_decay,
        fused=trained[0].device.type == "cuda",
    )


class Batches:
    """An epoch's batches: visible (two views of each image) and infrared, drawn independently of each other (section
    7)."""

    def __init__(
        self,
        visible: Sequence[ImageRecord],
        infrared: Sequence[ImageRecord],
        labels: PseudoLabels,
        settings: EpochSettings,
        config: Config,
        trial: int,
    ) -> None:
        sources = {}
        for name, records, y in (
            ("visible", visible, labels.visible_training),
            ("infrared", infrared, labels.infrared),
        ):
            seed = derive_seed(config.seed, trial, settings.epoch, name)
            batches = PseudoIdentityBatches(
                y.cpu().numpy(), [r.camera for r in records], config.identities, config.instances, settings.steps, seed
            )
            sources[name] = Source(records, batches, seed)
        self.batches = TrainingBatches(sources, config, labels.visible.device)

    def __iter__(self):
        """visible images [2b/P, 3, H, W] (view 1 of all, then view 2) of this of P processes, visible rows [2b] of all
        of them, infrared images [b/P, 3, H, W], infrared rows [b]."""
        for (visible, visible_rows), (infrared, infrared_rows) in self.batches:
            yield visible, visible_rows, infrared, infrared_rows


def train_epoch(
    forward: ReplicaForward,
    optimizer: SGD,
    batches: Batches,
    labels: PseudoLabels,
    memories: Memories,
    settings: EpochSettings,
    config: Config,
    progress: Callable[[int, dict[str, float]], object] | None = None,
) -> dict[str, float]:
    """Trains for `settings.steps` steps; returns the mean of the loss ("loss") and of each of its terms.

    Args:
        forward: the model, over its batch-normalisation replicas.
        progress: called every few steps with the number of steps done and the means so far.

    Raises:
        UserError: the loss is not finite; the message names the terms. Model and memories are then spoilt.
    """
    # Rows and labels stay on the CPU, where the memories' rounds are planned, so that no step waits for the device.
    visible_labels, infrared_labels = labels.visible.cpu(), labels.infrared.cpu()
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate
    forward.model.train()
    # Of the epoch's seed, so that every process draws alike, whatever else has drawn from torch's own generator.
    depth = torch.Generator().manual_seed(derive_seed(torch.initial_seed(), "stochastic depth"))
    meters = Meters(settings.epoch, settings.steps, progress)
    for visible_images, visible_rows, infrared_images, infrared_rows in batches:
        visible, infrared = forward(
            visible_images.to(forward.device, non_blocking=True),
            infrared_images.to(forward.device, non_blocking=True),
            depth,
        )
        losses = sdcl_losses(
            visible,
            infrared,
            visible_labels[visible_rows],
            infrared_labels[infrared_rows],
            visible_rows,
            infrared_rows,
            memories,
            settings,
            config,
        )
        memories.update_instances(visible, infrared, visible_rows, infrared_rows)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        distributed.sum_gradients(forward.model)
        optimizer.step()
        meters.add(losses.total, losses.terms)
    distributed.share_statistics(forward.model)
    return meters.means
