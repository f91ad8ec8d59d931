"""An epoch's augmented batches of a modality, from the place that `--augment` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sdcl import distributed
from sdcl.config import Config
from sdcl.data.cache import pixel_reader
from sdcl.data.device_augment import AugmentedBatches, exchange_infrared, exchange_visible, unchanged
from sdcl.data.loading import training_loader
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.data.transforms import InfraredTransform, VisibleTransform

__all__ = ["images_read", "training_views"]

EXCHANGES = {"visible": [unchanged, exchange_visible], "infrared": [exchange_infrared]}


def training_views(
    modality: str,
    records: Sequence[ImageRecord],
    batches: PseudoIdentityBatches,
    config: Config,
    seed: int,
    device: torch.device,
) -> Iterable[tuple[Tensor, Tensor]]:
    """(images, rows) of each batch: float [V·b/P, 3, H, W], this process's part of view 1 of all b images, then, of
    visible ones, view 2; rows int64 [V·b], places in `records` of the whole batch.

    Args:
        modality: "visible" (V = 2) or "infrared" (V = 1).
        seed: new for each epoch and modality.
        device: the model's. With `--augment device` images come out there, else on the CPU.

    Raises:
        UserError: on iterating, an image cannot be read.
    """
    height, width, padding = *config.image_size, config.crop_padding
    part = distributed.rank(), distributed.world()
    if config.augment == "device":
        paths = [record.path for record in records]
        read = pixel_reader(paths, modality, (height, width), "bilinear", config.image_cache, config.workers)
        exchanges = EXCHANGES[modality]
        bytes_alone = [torch.from_numpy] * len(exchanges)
        loader = training_loader(records, bytes_alone, batches, config.workers, seed, part, read)
        return AugmentedBatches(loader, exchanges, padding, seed, device, part)
    views: list[VisibleTransform | InfraredTransform] = [InfraredTransform(height, width, padding)]
    if modality == "visible":
        views = [VisibleTransform(height, width, exchange, padding) for exchange in (False, True)]
    return training_loader(records, views, batches, config.workers, seed, part)


Records = Mapping[str, Sequence[ImageRecord]]


def images_read(config: Config, training: Records, test: Records) -> list[tuple[str, Records]]:
    """What a run reads besides whole images, for its cache: how images are resized, and which (section 9.5).

    With augmentation in the reading processes, training views are made of the images as they are.
    """
    return [("bicubic", training), ("lanczos", test)] + [("bilinear", training)] * (config.augment == "device")
