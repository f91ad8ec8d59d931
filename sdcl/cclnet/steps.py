"""The steps of an epoch: of stages 0 and 2 on images, of stage 1 on stored projections (CCLNet page, 5 to 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam

from sdcl import distributed
from sdcl.cclnet.batches import ClusterBatches, prompt_batches, steps_of_epoch
from sdcl.cclnet.handover import Handover
from sdcl.cclnet.losses import prompt_loss, step_losses
from sdcl.cclnet.memory import MatchedMemories
from sdcl.cclnet.model import ImageNetwork, Language
from sdcl.cclnet.optimizers import set_learning_rate
from sdcl.cclnet.settings import Config, EpochSettings
from sdcl.cclnet.views import TrainingView
from sdcl.data.cache import pixel_reader
from sdcl.data.loading import StepLoader, Stream
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.frame.embedding import device_of
from sdcl.frame.meters import Meters
from sdcl.seeds import derive_seed

__all__ = ["Batch", "EpochBatches", "learn_epoch", "prompt_steps", "train_epoch"]


class Batch(NamedTuple):
    """A step's images, float32 [b, 3, H, W], and their rows among the training images, int64 [b], by modality."""

    images: dict[str, Tensor]
    rows: dict[str, Tensor]


class EpochBatches:
    """An epoch's batches of both modalities, drawn independently of each other (section 8).

    Args:
        labels: [N] of each modality, -1 = not trained on.
        seed: new for each epoch.
        steps: other than the schedule's number, for a rehearsal.
    """

    def __init__(
        self,
        records: Mapping[str, Sequence[ImageRecord]],
        labels: Mapping[str, Tensor],
        config: Config,
        seed: int,
        steps: int | None = None,
    ) -> None:
        y = {m: labels[m].cpu().numpy() for m in MODALITIES}
        self.steps = steps or steps_of_epoch(y["visible"], y["infrared"], config.batch_size)
        streams = []
        for m in MODALITIES:
            own_seed = derive_seed(seed, m)
            rows = ClusterBatches(y[m], config.identities, config.instances, self.steps, own_seed)
            paths = [r.path for r in records[m]]
            read = pixel_reader(paths, m, config.image_size, "lanczos", config.image_cache, config.workers)
            view = TrainingView(m, config.image_size, config.crop_padding)
            streams.append(Stream(records[m], [view], rows, own_seed, read))  # type: ignore[arg-type]
        self.loader = StepLoader(streams, config.workers)

    def __iter__(self) -> Iterator[Batch]:
        for step in self.loader:
            images, rows = zip(*step, strict=True)
            yield Batch(dict(zip(MODALITIES, images, strict=True)), dict(zip(MODALITIES, rows, strict=True)))


def train_epoch(
    network: ImageNetwork,
    optimizer: Adam,
    batches: Iterable[Batch],
    labels: Mapping[str, Tensor],
    memories: MatchedMemories,
    handover: Handover | None,
    now: EpochSettings,
    config: Config,
    meters: Meters,
) -> dict[str, float]:
    """An epoch of stage 0 or 2; returns the means of the loss and its terms.

    Args:
        labels: of this epoch, [N] of each modality.
        handover: in stage 2 stored labels and text vectors; None in stage 0, which has no texts.
        meters: counts the steps.

    Raises:
        UserError: the loss is not finite, or an image cannot be read.
    """
    device = device_of(network)
    # Labels stay on the CPU, where the memories plan their moves, so that no step waits for the device.
    labels = {m: y.cpu() for m, y in labels.items()}
    texts = {m: t.to(device) for m, t in handover.texts.items()} if handover else None
    set_learning_rate(optimizer, now.learning_rate)
    network.train()
    for batch in batches:
        images = (batch.images[m].to(device, non_blocking=True) for m in MODALITIES)
        with distributed.autocast(device, config.precision):
            features, projections = network(*images, project=texts is not None)
        sizes = [len(batch.rows[m]) for m in MODALITIES]
        terms = step_losses(
            memories,
            _by_modality(features, sizes),
            {m: labels[m][batch.rows[m]] for m in MODALITIES},
            _by_modality(projections, sizes) if projections is not None else None,
            texts,
            {m: handover.labels[m][batch.rows[m]] for m in MODALITIES} if handover else None,
            config.smoothing,
        )
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meters.add(loss, terms)
    return meters.means


def _by_modality(x: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    return dict(zip(MODALITIES, x.float().split(list(sizes)), strict=True))


def prompt_steps(labels: Mapping[str, Tensor], config: Config) -> int:
    """Steps of an epoch of stage 1, from the stored labels [n] of each modality's labelled images."""
    return -(-max(map(len, labels.values())) // config.prompt_batch)


def learn_epoch(
    language: Language,
    optimizer: Adam,
    projections: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    rate: float,
    config: Config,
    seed: int,
    meters: Meters,
) -> dict[str, float]:
    """An epoch of stage 1; returns the mean loss.

    Args:
        projections: [n, P] of each modality's images that have a stored label. labels: [n] int64, these.
        rate: the epoch's learning rate.
    """
    device = next(iter(projections.values())).device
    set_learning_rate(optimizer, rate)
    visible, infrared = (len(projections[m]) for m in MODALITIES)
    for rows in prompt_batches(visible, infrared, config.prompt_batch, seed):
        losses = []
        for m, own in zip(MODALITIES, rows, strict=True):
            chosen = torch.from_numpy(own).to(device)
            y = labels[m][chosen]
            losses.append(prompt_loss(projections[m][chosen], language.texts(y, m), y))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meters.add(loss, {"prompt": loss})
    return meters.means
