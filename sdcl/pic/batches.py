"""The images of an epoch's batches, augmented, from the rows that were drawn for it (docs/pic.md, "Batches")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sdcl.data.cache import pixel_reader
from sdcl.data.loading import StepLoader, Stream
from sdcl.data.records import ImageRecord
from sdcl.pic.network import MODALITIES
from sdcl.pic.sampler import IdentityBatches
from sdcl.pic.settings import PICConfig
from sdcl.pic.views import INTERPOLATION, training_view
from sdcl.seeds import derive_seed

__all__ = ["EpochBatches", "identity_batches"]

Records = Mapping[str, Sequence[ImageRecord]]


def identity_batches(records: Records, config: PICConfig) -> IdentityBatches:
    """The draws of a run's batches by the identities of its training images.

    Raises:
        UserError: no batch can be made of them (`sdcl.pic.sampler.check_identities`).
    """
    visible, infrared = ([r.identity for r in records[m]] for m in MODALITIES)
    return IdentityBatches(visible, infrared, config.identities, config.instances, config.seed)


class EpochBatches:
    """The batches of one epoch: visible images, infrared images, labels.

    Each image of each batch is augmented by itself, with draws that follow from seed, trial, epoch, modality and its
    place alone.

    Args:
        records: training images by modality.
        known: [C] identities in ascending order; a label is the place in it.
        rows: int64 [steps, m] of the visible and of the infrared images.
    """

    def __init__(
        self,
        records: Records,
        known: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        config: PICConfig,
        trial: int,
        epoch: int,
    ) -> None:
        identities = np.array([r.identity for r in records["visible"]])
        self.labels = torch.from_numpy(np.searchsorted(known, identities[rows[0]]))
        size = config.image_size
        view = training_view(*size, config.crop_padding)
        streams = []
        for modality, own in zip(MODALITIES, rows, strict=True):
            paths = [r.path for r in records[modality]]
            read = pixel_reader(paths, modality, size, INTERPOLATION, config.image_cache, config.workers)
            seed = derive_seed(config.seed, trial, epoch, modality)
            streams.append(Stream(records[modality], [view], _Rows(own), seed, read))  # type: ignore[arg-type]
        self.loader = StepLoader(streams, config.workers)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Normalised images [m, 3, H, W] of each modality and labels int64 [m], on the CPU; UserError for an image
        that cannot be read."""
        for ((visible, _), (infrared, _)), labels in zip(self.loader, self.labels, strict=True):
            yield visible, infrared, labels


class _Rows:
    """Rows [steps, m] as a loader takes them, a list a step."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.batch_size = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows.tolist())
