"""SDCL's training views (method page, section 2), and an epoch's batches of them from the place that `--augment` names.

`VisibleTransform` and `InfraredTransform` are the chain as it is described. Training makes the same views sooner, equal
to the last bit: `ViewOfBytes` ends where bytes do, after crop and flip, and `finish` does the rest for whole batches on
the model's device, with what was drawn for each view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from sdcl import distributed
from sdcl.config import Config
from sdcl.data.augment.device import DeviceAugmentation, Exchange, erase, exchange, unchanged
from sdcl.data.augment.device import exchange_infrared as infrared_on_device
from sdcl.data.augment.device import exchange_visible as visible_on_device
from sdcl.data.augment.jitter import Jitter, draw_jitter, jitter
from sdcl.data.augment.lines import LineReader, Lines, resized
from sdcl.data.cache import pixel_reader
from sdcl.data.loading import StepLoader, Stream
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.data.transforms import (
    BLUE,
    GREEN,
    MEAN,
    RED,
    STD,
    RandomErasing,
    draw_infrared_exchange,
    draw_visible_exchange,
    exchange_infrared,
    exchange_visible,
    normalize_bytes,
    resize,
)

__all__ = ["InfraredTransform", "Source", "TrainingBatches", "VisibleTransform", "ViewOfBytes", "finish", "images_read"]

JITTER = transforms.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
ON_DEVICE: dict[str, list[Exchange]] = {"visible": [unchanged, visible_on_device], "infrared": [infrared_on_device]}
IN_WORKERS: dict[str, list[Callable[[], tuple[int, int, int]] | None]] = {
    "visible": [None, draw_visible_exchange],
    "infrared": [draw_infrared_exchange],
}
"""How the views of an image end; None: as they are."""


class _TrainingChain:
    """What all training views share: PIL RGB of any size -> float32 [3, height, width], normalised, randomly erased.

    padding: pixels of black around the resized image before the random crop; 10 at 288 x 144.
    """

    def __init__(self, height: int, width: int, padding: int = 10) -> None:
        self.steps = transforms.Compose(
            [
                JITTER,
                resize(height, width, "bilinear"),
                transforms.Pad(padding),  # black, before normalisation
                transforms.RandomCrop((height, width)),
                transforms.RandomHorizontalFlip(0.5),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                RandomErasing(),
            ]
        )


class VisibleTransform(_TrainingChain):
    """A training view of a visible image: PIL RGB -> float32 [3, height, width], normalised.

    exchange: False for view 1, True for view 2, which ends with a channel exchange. padding: see `_TrainingChain`.
    """

    def __init__(self, height: int, width: int, exchange: bool, padding: int = 10) -> None:
        super().__init__(height, width, padding)
        self.exchange = exchange

    def __call__(self, image: Image.Image) -> Tensor:
        view = self.steps(image)
        return exchange_visible(view) if self.exchange else view


class InfraredTransform(_TrainingChain):
    """A training view of an infrared image: PIL RGB -> float32 [3, height, width], normalised."""

    def __call__(self, image: Image.Image) -> Tensor:
        return exchange_infrared(self.steps(image))


class ViewOfBytes:
    """The same view before its normalisation: an image's `Lines` to uint8 [height, width, 3] and int64 [7], what
    `finish` is to erase (top, left, height, width; 0 high: nothing) and the sources of the three channels.

    Draws from PyTorch's default CPU generator what the chain would, in its order.
    """

    def __init__(self, height: int, width: int, padding: int, modality: str, view: int) -> None:
        self.size, self.padding, self.draw_exchange = (height, width), padding, IN_WORKERS[modality][view]
        # Compiled here, once, since the processes that read are copies of this one.
        pixel = np.zeros((1, 3, 1), np.uint8)
        resized(Lines(jitter(pixel, Jitter((0, 1, 2, 3), (1, 1, 1, 0))), columns=True), 1, 1)

    def __call__(self, lines: Lines) -> tuple[Tensor, Tensor]:
        lines = lines._replace(values=jitter(lines.values, draw_jitter(JITTER)))
        # A crop out of a black frame is a shift.
        down, right = (self.padding - int(torch.randint(0, 2 * self.padding + 1, (1,))) if self.padding else 0
                       for _ in range(2))  # fmt: skip
        view = resized(lines, *self.size, down, right, mirror=bool(torch.rand(1) < 0.5))
        rectangle = RandomErasing().draw(*self.size)
        sources = self.draw_exchange() if self.draw_exchange else (RED, GREEN, BLUE)
        return torch.from_numpy(view), torch.tensor([*rectangle, *sources])


def finish(pixels: Tensor, plan: Tensor) -> Tensor:
    """Views of bytes [n, H, W, 3] and what was drawn for them [n, 7], both on a device, to float [n, 3, H, W]:
    normalised, erased, with their channels exchanged."""
    return exchange(erase(normalize_bytes(pixels), plan[:, :4]), plan[:, 4:])


class Source(NamedTuple):
    """What an epoch draws of a modality: its records, batches of their rows, and a seed that is new for each epoch."""

    records: Sequence[ImageRecord]
    batches: PseudoIdentityBatches
    seed: int


class TrainingBatches:
    """An epoch's augmented batches of both modalities, read by one pool of processes.

    Iterating yields (images, rows) of visible and of infrared images for each step: float [V·b/P, 3, H, W] on the
    device, this process's part of view 1 of all b images, then, of visible ones, view 2; rows int64 [V·b], places in
    the records of the whole batch. Iterating again gives the same.

    Args:
        sources: "visible" (V = 2) and "infrared" (V = 1), or one of them.
        device: the model's.

    Raises:
        UserError: on iterating, an image cannot be read.
    """

    def __init__(self, sources: Mapping[str, Source], config: Config, device: torch.device) -> None:
        self.sources, self.padding, self.device = dict(sources), config.crop_padding, device
        self.part = distributed.rank(), distributed.world()
        self.on_device = config.augment == "device"
        streams = [self._stream(m, source, config) for m, source in self.sources.items()]
        self.loader = StepLoader(streams, config.workers, self.part, device)

    def _stream(self, modality: str, source: Source, config: Config) -> Stream:
        size, paths = config.image_size, [record.path for record in source.records]
        if self.on_device:
            read = pixel_reader(paths, modality, size, "bilinear", config.image_cache, config.workers)
            views = [torch.from_numpy] * len(ON_DEVICE[modality])
            return Stream(source.records, views, source.batches, source.seed, read)
        ways = [ViewOfBytes(*size, self.padding, modality, view) for view in range(len(IN_WORKERS[modality]))]
        return Stream(source.records, ways, source.batches, source.seed, LineReader(*size))

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor], ...]]:
        augment = [
            DeviceAugmentation(ON_DEVICE[m], self.padding, source.seed, self.device, self.part)
            for m, source in self.sources.items()
        ]
        for step in self.loader:
            if self.on_device:
                yield tuple((way(images), rows) for way, (images, rows) in zip(augment, step, strict=True))
            else:
                yield tuple((finish(*images), rows) for images, rows in step)


Records = Mapping[str, Sequence[ImageRecord]]


def images_read(config: Config, training: Records, test: Records) -> list[tuple[str, Records]]:
    """What a run reads besides whole images, for its cache: how images are resized, and which (section 9.5).

    With augmentation in the reading processes, training views are made of the images as they are.
    """
    return [("bicubic", training), ("lanczos", test)] + [("bilinear", training)] * (config.augment == "device")
