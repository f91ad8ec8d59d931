"""Images from disk to batches, in worker processes, with results that do not depend on the number of workers."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

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
Transform = Callable[[Any], Any]

PIECE = 16
"""Images that a process makes views of at once."""


class Stream(NamedTuple):
    """What one modality gives to every step."""

    records: Sequence[ImageRecord]
    """The modality's training rows, to which the batches' rows refer."""
    transforms: Sequence[Transform]
    """One a view: what `read` gives -> a tensor or a tuple of tensors, random through PyTorch's default generator."""
    batches: PseudoIdentityBatches
    """Or anything of its kind: lists of rows, their number (`len`) and length (`batch_size`)."""
    seed: int
    """A non-negative number, new for each epoch."""
    read: Read = open_image
    """Called once for an image and all its views."""


def training_loader(
    records: Sequence[ImageRecord],
    transforms: Sequence[Transform],
    batches: PseudoIdentityBatches,
    workers: int,
    seed: int,
    part: tuple[int, int] = (0, 1),
    read: Read = open_image,
) -> Iterable[tuple[Any, Tensor]]:
    """One epoch's training batches of one modality: those of `StepLoader` with a single stream."""
    return _Only(StepLoader([Stream(records, transforms, batches, seed, read)], workers, part))


class StepLoader:
    """One epoch's training batches of all modalities, from one pool of processes.

    Iterating yields a tuple for each step, of each stream's (images, rows). A batch of b images and V transforms is V·b
    rows: view 1 of all images, then view 2 of all of them. images: as the transforms make them, stacked, [V·b/P, …],
    the `part` of the batch that this of P processes works on; where transforms give tuples, a tuple of such tensors.
    rows: int64 [V·b] on the CPU, the places in `records` of the whole batch.

    The draws of a view depend only on the stream's seed, the image's place in the epoch and the number of the view, so
    neither the number of workers or processes nor anything else that uses random numbers changes a batch. Batches
    travel in pieces of a few images, so that all cores work on one and little shared memory (/dev/shm) is in use:
    about 8 MB a worker with bytes of 288 x 144 pixels.

    Args:
        workers: number of processes that load; 0 loads in this one.
        part: (p, P): the p-th of P equal, contiguous parts of every batch.
        device: where the images are put together. None: the CPU.

    Raises:
        ValueError: a batch does not divide into P equal parts, or streams have different numbers of batches.
        UserError: on iterating, an image cannot be read.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        workers: int,
        part: tuple[int, int] = (0, 1),
        device: torch.device | None = None,
    ) -> None:
        for stream in streams:
            rows = len(stream.transforms) * stream.batches.batch_size
            if rows % part[1]:
                raise ValueError(f"a batch of {rows} rows does not divide into {part[1]} equal parts")
        if len({len(stream.batches) for stream in streams}) != 1:
            raise ValueError(f"streams of {' and '.join(str(len(s.batches)) for s in streams)} batches")
        self.streams, self.workers, self.part, self.device = list(streams), workers, part, device

    def __len__(self) -> int:
        return len(self.streams[0].batches)

    def __iter__(self) -> Iterator[tuple[tuple[Any, Tensor], ...]]:
        plan = _Planned(self.streams)
        pieces = iter(
            _Loader(
                _Pieces(self.streams, self.part),
                batch_size=None,  # an item is a whole piece
                sampler=plan,
                num_workers=min(self.workers, _cores()),
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),
            )
        )
        for _ in range(len(self)):
            step = []
            for stream in self.streams:
                first = next(pieces)
                rows = plan.batches.popleft()
                parts = [first, *(next(pieces) for _ in range(PIECE, len(rows), PIECE))]
                views = [part[v] for v in range(len(stream.transforms)) for part in parts if part[v]]
                step.append((self._joined(views), torch.tensor(rows * len(stream.transforms))))
            yield tuple(step)

    def _joined(self, views: list[Any]) -> Any:
        """Stacked views of some images each, one after the other, on the device."""
        leaves = [self._cat(leaf) for leaf in zip(*views, strict=True)]
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def _cat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t if self.device is None else t.to(self.device, non_blocking=True) for t in tensors])


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


class _Only:
    """The batches of a loader's one stream."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return (batch for (batch,) in self.loader)


class _Piece(NamedTuple):
    """Some of a batch's images: their stream, rows, place in the epoch of the first, its place in the batch, and the
    batch's number of images."""

    stream: int
    rows: list[int]
    place: int
    slot: int
    batch: int


class _Planned(Sampler[_Piece]):
    """All pieces of an epoch, step by step; `batches` holds the rows of those that are on their way."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.batches: deque[list[int]] = deque()

    def __len__(self) -> int:
        return sum(len(s.batches) * -(-s.batches.batch_size // PIECE) for s in self.streams)

    def __iter__(self) -> Iterator[_Piece]:
        # Batches that go on a stream which was begun before say how many images that one has given.
        places = [getattr(stream.batches, "first_place", 0) for stream in self.streams]
        for batches in zip(*(stream.batches for stream in self.streams), strict=True):
            for number, rows in enumerate(batches):
                self.batches.append(rows)
                for slot in range(0, len(rows), PIECE):
                    yield _Piece(number, rows[slot : slot + PIECE], places[number] + slot, slot, len(rows))
                places[number] += len(rows)


class _Pieces(Dataset):
    """A piece -> for each view the stacked tensors of its images (none: not in this process's part), or the UserError
    of a broken file."""

    def __init__(self, streams: Sequence[Stream], part: tuple[int, int]) -> None:
        self.paths = [[record.path for record in stream.records] for stream in streams]
        self.streams = [stream._replace(records=(), batches=None) for stream in streams]  # type: ignore[arg-type]
        self.part = part

    def __getitem__(self, piece: _Piece) -> list[list[Tensor]] | UserError:
        stream = self.streams[piece.stream]
        number, parts = self.part
        share = len(stream.transforms) * piece.batch // parts
        own = range(number * share, (number + 1) * share)
        views: list[list[Any]] = [[] for _ in stream.transforms]
        for n, row in enumerate(piece.rows):
            wanted = [v for v in range(len(views)) if v * piece.batch + piece.slot + n in own]
            if not wanted:
                continue
            try:
                image = stream.read(self.paths[piece.stream][row])
            except UserError as error:
                return error
            for v in wanted:
                views[v].append(_view(stream.transforms[v], image, [stream.seed, piece.place + n, v]))
        return [[torch.stack(leaf) for leaf in zip(*view, strict=True)] for view in views]


def _view(transform: Transform, image: Any, seed: list[int]) -> tuple[Tensor, ...]:
    draws = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):  # the global generator is left as it was
        torch.default_generator.manual_seed(int(draws[0]))
        made = transform(image)
    return made if isinstance(made, tuple) else (made,)


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
