"""Images decoded and resized once: bytes in memory-mapped files that every later epoch and run reads (`--image-cache`).

The last thing that Pillow does in the chains of clustering and tests is to resize to bytes, so what is read from a
cache is equal to what the image files would give, to the last bit.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
import torch
from torchvision import transforms
from tqdm import tqdm

from sdcl import distributed
from sdcl.data.images import open_image
from sdcl.data.loading import evaluation_loader
from sdcl.data.records import ImageRecord, shown
from sdcl.data.transforms import resize
from sdcl.errors import UserError
from sdcl.files import remove_leftovers, write_atomically
from sdcl.settings import RunSettings

__all__ = ["CachedImages", "PixelReader", "build_caches", "pixel_reader"]

PixelReader = Callable[[str], np.ndarray]
"""Path of an image -> its pixels, uint8 [height, width, 3], resized. Raises UserError when it cannot be read."""

_CHECKED: dict[tuple[Path, str], Path] = {}
"""Cache files by folder and name that `build_caches` found to be up to date when the run began."""

BATCH = 64
"""Images that a building process hands over at once."""


class CachedImages:
    """A `PixelReader` of one cache file: uint8 [N, height, width, 3], row n of paths[n]."""

    def __init__(self, file: Path, paths: Sequence[str]) -> None:
        self.file, self._rows = file, {path: row for row, path in enumerate(paths)}
        self._pixels: np.ndarray | None = None  # opened by the process that reads: a mapping does not travel

    def __call__(self, path: str) -> np.ndarray:
        if self._pixels is None:
            try:
                self._pixels = np.load(self.file, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{self.file} is damaged ({error}): delete it, and it is made again") from error
        return np.array(self._pixels[self._rows[path]])


def pixel_reader(
    paths: Sequence[str],
    modality: str,
    size: tuple[int, int],
    interpolation: str,
    folder: Path | None = None,
    workers: int = 0,
) -> PixelReader:
    """What reads these images, resized; with a `folder` from the cache there, which is built if it is not there yet.

    With several processes, the first one builds and the others wait.

    Args:
        size: height and width in pixels.
        interpolation: "bilinear", "bicubic" or "lanczos".
        folder: of cache files; made if it does not exist. None: read the image files.
        workers: processes that build.

    Raises:
        UserError: an image cannot be read, or the folder cannot be written or has too little space.
        ValueError: unknown interpolation.
    """
    from_files = transforms.Compose([open_image, resize(*size, interpolation), np.array])
    if folder is None:
        return from_files
    name = _name(paths, modality, size, interpolation)
    file = distributed.from_main(lambda: _built(folder, name, paths, size, from_files, workers))
    return CachedImages(file, paths)


def build_caches(config: RunSettings, images: Sequence[tuple[str, Mapping[str, Sequence[ImageRecord]]]]) -> None:
    """Builds whatever a run will read, so that a full disk or a broken file is known before it starts.

    Image files are looked at now, whether they have changed since a cache was written; for the rest of the run
    `pixel_reader` takes these caches as they are. Without `config.image_cache`, nothing.

    Args:
        images: what is read: the interpolation of the resize, and records by modality.

    Raises:
        UserError: as `pixel_reader` does.
    """
    if config.image_cache is None:
        return
    _CHECKED.clear()
    checked = {}
    for interpolation, records in images:
        for modality, rows in records.items():
            paths = [r.path for r in rows]
            read = pixel_reader(paths, modality, config.image_size, interpolation, config.image_cache, config.workers)
            if isinstance(read, CachedImages):
                checked[config.image_cache, _name(paths, modality, config.image_size, interpolation)] = read.file
    _CHECKED.update(checked)


def _name(paths: Sequence[str], modality: str, size: tuple[int, int], interpolation: str) -> str:
    """What a cache of these images is called, without the state of the images."""
    return f"{modality}-{interpolation}-{size[0]}x{size[1]}-{_digest(os.path.abspath(path) for path in paths)}"


def _built(
    folder: Path, name: str, paths: Sequence[str], size: tuple[int, int], read: PixelReader, workers: int
) -> Path:
    """The cache file `<name>-<state of the images>.npy`, written if it is not there."""
    known = _CHECKED.get((folder, name))
    if known is not None and known.is_file():
        return known
    file = folder / f"{name}-{_digest(_states(paths))}.npy"
    out, shape = io.BytesIO(), (len(paths), *size, 3)
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    header = out.getvalue()
    needed = len(header) + math.prod(shape)
    if _is_whole(file, header, needed):
        return file
    with _only_builder(folder):
        if _is_whole(file, header, needed):  # another run has just built it
            return file
        for old in sorted(folder.glob(f"{name}-*.npy")):
            changed = f"images (or the version of Pillow) have changed since {old} was written"
            _say(f"note: {f'{old} is damaged' if old == file else changed}: it is made anew")
            old.unlink()
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"{file} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there: free space, give another "
                "folder with --image-cache, or leave that option out"
            )
        _say(f"image cache: writing {file} ({needed / 1e9:.2f} GB)")
        write_atomically(file, lambda temporary: _write(temporary, header, paths, read, workers))
    return file


def _write(file: Path, header: bytes, paths: Sequence[str], read: PixelReader, workers: int) -> None:
    loader = evaluation_loader(paths, torch.from_numpy, BATCH, workers, read)
    with (
        open(file, "wb") as out,
        tqdm(desc="caching", total=len(paths), unit="image", leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        out.write(header)
        for batch in loader:
            out.write(batch.numpy())
            bar.update(len(batch))


def _is_whole(file: Path, header: bytes, size: int) -> bool:
    """Whether a file has the length of a cache and begins as one."""
    if not file.is_file() or file.stat().st_size != size:
        return False
    with open(file, "rb") as opened:
        return opened.read(len(header)) == header


def _states(paths: Sequence[str]) -> Iterator[str]:
    """What changes when an image file does: its size and time of change; and the program that decodes and resizes."""
    yield PIL.__version__
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(
                f"{shown(path)}: {error.strerror}; the file was there a moment ago, or is a broken link"
            ) from None
        yield f"{status.st_size} {status.st_mtime_ns}"


def _digest(parts: Iterator[str]) -> str:
    """12 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs from building in it; clears away what killed ones left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"the image cache cannot be written to {folder}: {error.strerror}. Give another folder with --image-cache, "
            "or leave that option out"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network file systems: two runs may build the same file at once, one wins
            pass
        else:
            remove_leftovers(folder)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
