"""Images from disk to batches, in worker processes, with results that do not depend on the number of workers."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from sdcl.data.images import open_image
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.errors import UserError

Read = Callable[[str], Any]
"""Path -> the image as a transform takes it: a PIL image (`open_image`) or resized pixels (`sdcl.data.cache`)."""
Transform = Callable[[Any], Tensor]


def training_loader(
    records: Sequence[ImageRecord],
    transforms: Sequence[Transform],
    batches: PseudoIdentityBatches,
    workers: int,
    seed: int,
    part: tuple[int, int] = (0, 1),
    read: Read = open_image,
) -> DataLoader:
    """Loader of one epoch's training batches of a modality.

    A batch of b images and V transforms is V·b rows: view 1 of all images, then view 2 of all of them. Yields
    (images, rows): images [V·b/P, …] as the transforms make them, the `part` of the batch that this of P processes
    works on; rows int64 [V·b], the places in `records` of the whole batch.

    The draws of a view depend only on `seed`, the image's place in the epoch and the number of the view, so neither the
    number of workers or processes nor anything else that uses random numbers changes a batch.

    Args:
        records: the modality's training rows, to which the batches' rows refer.
        transforms: what `read` gives -> a tensor (float32 [3, H, W]), random through PyTorch's default generator.
        workers: number of processes that load; 0 loads in this one.
        seed: a non-negative number, new for each epoch.
        part: (p, P): the p-th of P equal, contiguous parts of every batch.
        read: called once for an image and all its views.

    Raises:
        ValueError: a batch does not divide into P equal parts.
        UserError: on iterating, an image cannot be read.
    """
    rows = len(transforms) * batches.batch_size
    if rows % part[1]:
        raise ValueError(f"a batch of {rows} rows does not divide into {part[1]} equal parts")
    return _Loader(
        _TrainingBatches([record.path for record in records], transforms, seed, part, read),
        batch_size=None,  # an item is a whole batch
        sampler=_Placed(batches),
        num_workers=min(workers, _cores()),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else each epoch would draw from the global generator
    )


def evaluation_loader(
    paths: Sequence[str], transform: Transform, batch_size: int, workers: int, read: Read = open_image
) -> DataLoader:
    """Loader of batches [b, …] of what read and transform make of `paths`, in this order, the last possibly smaller.

    Iterating raises UserError for an unreadable image.
    """
    return _Loader(
        _Images(paths, transform, read),
        batch_size=batch_size,
        num_workers=min(workers, _cores()),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def _cores() -> int:
    """Processor cores that this process may use: more loading processes than these only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Loader(DataLoader):
    """Raises a UserError that a worker met as it is, where DataLoader would wrap it into the worker's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Placed(Sampler[tuple[int, list[int]]]):
    """Batches of rows, each with the place in the epoch of its first one."""

    def __init__(self, batches: PseudoIdentityBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        place = getattr(self.batches, "first_place", 0)
        for rows in self.batches:
            yield place, rows
            place += len(rows)


class _TrainingBatches(Dataset):
    """(place of the first row, rows) -> a batch as `training_loader` yields it, or the UserError of a broken file."""

    def __init__(
        self, paths: list[str], transforms: Sequence[Transform], seed: int, part: tuple[int, int], read: Read
    ) -> None:
        self.paths, self.transforms, self.seed, self.part, self.read = paths, list(transforms), seed, part, read

    def __getitem__(self, item: tuple[int, list[int]]) -> tuple[Tensor, Tensor] | UserError:
        place, rows = item
        number, parts = self.part
        share = len(self.transforms) * len(rows) // parts
        own = range(number * share, (number + 1) * share)
        views: list[list[Tensor]] = [[] for _ in self.transforms]
        for slot, row in enumerate(rows):
            wanted = [v for v in range(len(views)) if v * len(rows) + slot in own]
            if not wanted:
                continue
            try:
                image = self.read(self.paths[row])
            except UserError as error:
                return error
            for v in wanted:
                views[v].append(self._view(image, place + slot, v))
        return torch.stack([image for view in views for image in view]), torch.tensor(rows * len(views))

    def _view(self, image: Any, place: int, number: int) -> Tensor:
        draws = np.random.SeedSequence([self.seed, place, number]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):  # the global generator is left as it was
            torch.default_generator.manual_seed(int(draws[0]))
            return self.transforms[number](image)


class _Images(Dataset):
    """place -> tensor, or the UserError of an unreadable file."""

    def __init__(self, paths: Sequence[str], transform: Transform, read: Read) -> None:
        self.paths, self.transform, self.read = list(paths), transform, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor | UserError:
        try:
            return self.transform(self.read(self.paths[place]))
        except UserError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    """Stack the samples, or hand on the first UserError among them."""
    return next((sample for sample in samples if isinstance(sample, UserError)), None) or default_collate(samples)
