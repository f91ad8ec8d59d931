"""AML's training batches (method page, sections 2 and 9): which rows, and their augmented pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from sdcl.aml.settings import Config, PhaseSettings
from sdcl.data.cache import PixelReader, pixel_reader
from sdcl.data.loading import training_loader
from sdcl.data.readers.market_gen import Source
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.data.transforms import MEAN, RandomErasing

__all__ = ["LabelBatches", "PairViews", "TrainingView", "camera_numbers", "source_batches", "target_batches"]


class LabelBatches(PseudoIdentityBatches):
    """Batches `start` … `start + steps` - 1 of a stream of labels with `instances` rows each (section 9).

    The rule is `PseudoIdentityBatches`', but a label of a single row gives that row `instances` times, so that every
    label fills the same share of a batch. In the target cameras are numbered over both modalities: "rows from other
    cameras" is what mixes them. Where a stream begins does not change it.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        cameras: npt.ArrayLike,
        settings: PhaseSettings,
        start: int,
        steps: int,
        seed: int,
    ) -> None:
        identities = settings.batch_size // settings.instances
        super().__init__(labels, cameras, identities, settings.instances, start + steps, seed)
        self.start = start
        self.first_place = start * self.batch_size

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return islice(super().__iter__(), self.start, None)

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> list[int]:
        return [int(rows[0])] * self.instances if len(rows) == 1 else super()._draw(rows, rng)


class _Erasing(RandomErasing):
    colour = 255 * MEAN[0], 255 * MEAN[1], 255 * MEAN[2]  # 0 once it is normalised


class TrainingView:
    """Resized pixels, uint8 [height, width, 3], to an augmented image, float32 [3, height, width] in 0 … 255.

    Flip, shift (padded with black), jitter of brightness and contrast, erasing; every draw from PyTorch's default
    generator.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding
        self.jitter = transforms.ColorJitter(brightness=0.2, contrast=0.15)
        self.flip, self.erase = transforms.RandomHorizontalFlip(0.5), _Erasing()

    def __call__(self, pixels: np.ndarray) -> Tensor:
        image = transforms.Pad(self.padding)(self.flip(Image.fromarray(pixels)))
        image = self.jitter(transforms.RandomCrop(pixels.shape[:2])(image))
        return self.erase(pil_to_tensor(image).float())


class PairViews:
    """(image, generated partner) to float32 [6, height, width]: both augmented, one above the other.

    shared: both by the same draws. Published: each by its own (section 13.4).
    """

    def __init__(self, padding: int, shared: bool) -> None:
        self.view, self.shared = TrainingView(padding), shared

    def __call__(self, pair: tuple[np.ndarray, np.ndarray]) -> Tensor:
        state = torch.get_rng_state()
        image = self.view(pair[0])
        if self.shared:
            torch.set_rng_state(state)
        return torch.cat([image, self.view(pair[1])])


def source_batches(
    source: Source, settings: PhaseSettings, config: Config, start: int, steps: int, seed: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """(pixels of images and partners, float32 [B, 6, H, W] in 0 … 255; rows of `source.records`, int64 [B])."""
    labels = [record.identity for record in source.records]
    batches = LabelBatches(labels, [record.camera for record in source.records], settings, start, steps, seed)
    read = _PairReader(source, config)
    views = [PairViews(config.crop_padding, config.shared_geometry)]
    return training_loader(source.records, views, batches, config.workers, seed, read=read)


def target_batches(
    records: Mapping[str, Sequence[ImageRecord]],
    labels: npt.ArrayLike,
    settings: PhaseSettings,
    config: Config,
    start: int,
    steps: int,
    seed: int,
) -> Iterable[tuple[Tensor, Tensor]]:
    """(pixels, float32 [B, 3, H, W] in 0 … 255; rows, int64 [B]). Rows count the visible records, then the infrared
    ones, as `labels` [N] do (-1: left out)."""
    batches = LabelBatches(labels, camera_numbers(records), settings, start, steps, seed)
    everything = [record for modality in MODALITIES for record in records[modality]]
    read = _EitherReader(records, config)
    return training_loader(everything, [TrainingView(config.crop_padding)], batches, config.workers, seed, read=read)


def camera_numbers(records: Mapping[str, Sequence[ImageRecord]]) -> np.ndarray:
    """A number for each camera of each modality (RegDB's two have one number in the files): int64 [N], visible rows
    first."""
    cameras = [(number, r.camera) for number, m in enumerate(MODALITIES) for r in records[m]]
    return np.unique(np.array(cameras), axis=0, return_inverse=True)[1].reshape(-1)


class _PairReader:
    """Path of an original → its pixels and its partner's, resized."""

    def __init__(self, source: Source, config: Config) -> None:
        paths = [record.path for record in source.records]
        self.partner = dict(zip(paths, source.partners, strict=True))
        self.original, self.generated = _reader("source", paths, config), _reader("generated", source.partners, config)

    def __call__(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        return self.original(path), self.generated(self.partner[path])


class _EitherReader:
    """Path of a visible or infrared image → its pixels, resized."""

    def __init__(self, records: Mapping[str, Sequence[ImageRecord]], config: Config) -> None:
        self.readers: dict[str, PixelReader] = {}
        for modality in MODALITIES:
            paths = [record.path for record in records[modality]]
            self.readers |= dict.fromkeys(paths, _reader(modality, paths, config))

    def __call__(self, path: str) -> Any:
        return self.readers[path](path)


def _reader(name: str, paths: Sequence[str], config: Config) -> PixelReader:
    return pixel_reader(paths, name, config.image_size, "bicubic", config.image_cache, config.workers)
