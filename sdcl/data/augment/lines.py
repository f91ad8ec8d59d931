"""Images as lines of red, green and blue, and their resize, crop and mirroring: what torchvision makes of a PIL image,
to the last bit, several times faster.

Pillow resizes one direction after the other and rounds to bytes in between; each new line is a weighted sum of old
ones. Where pixels lie in lines of that direction, whole lines are added up, many pixels at once; between the directions
the image is transposed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import PIL
from numba import njit
from PIL import Image

from sdcl.data.images import open_image

__all__ = ["LineReader", "Lines", "as_lines", "as_pixels", "resized"]

BITS = 22
"""Of a weight behind the point."""
EITHER_FIRST = int(PIL.__version__.split(".")[0]) >= 13
"""Pillow begins with the width; from version 13 on with the height where that loses more than twice the pixels."""


class Lines(NamedTuple):
    """An image in the direction in which it is resized first."""

    values: np.ndarray
    """uint8 [n, 3, m]: n lines of m red, m green and m blue values."""
    columns: bool
    """Lines are columns of the image, which is then m high and n wide, or rows."""


class LineReader:
    """Path -> the lines of an image that is going to be resized to this size. UserError for one that cannot be read."""

    def __init__(self, height: int, width: int) -> None:
        self.size = height, width

    def __call__(self, path: str) -> Lines:
        return as_lines(np.asarray(open_image(path)), *self.size)


def as_lines(pixels: np.ndarray, height: int, width: int) -> Lines:
    """uint8 [h, w, 3], to be resized to this height and width."""
    h, w, _ = pixels.shape
    if EITHER_FIRST and h - height > max(2 * (w - width), 0):
        return Lines(np.ascontiguousarray(pixels.transpose(0, 2, 1)), False)
    return Lines(np.ascontiguousarray(pixels.reshape(h, 3 * w).T).reshape(w, 3, h), True)


def as_pixels(lines: Lines) -> np.ndarray:
    """uint8 [h, w, 3] of an image's lines."""
    return np.ascontiguousarray(lines.values.transpose(2, 0, 1) if lines.columns else lines.values.transpose(0, 2, 1))


def resized(lines: Lines, height: int, width: int, down: int = 0, right: int = 0, mirror: bool = False) -> np.ndarray:
    """The image resized (bilinear), moved by some pixels with black behind it, and perhaps mirrored.

    lines: made for this height and width. down, right: negative ones move up and left. Returns uint8 [height, width,
    3].
    """
    way = _by_lines if _as_pillow_does() else _by_pillow
    return way(lines, height, width, down, right, mirror)


def _by_lines(lines: Lines, height: int, width: int, down: int, right: int, mirror: bool) -> np.ndarray:
    steps = [(width, right, mirror), (height, down, False)]
    first, second = steps if lines.columns else steps[::-1]
    half = _resize(lines.values.reshape(len(lines.values), -1), *first)
    whole = _resize(np.ascontiguousarray(half.reshape(3 * first[0], -1).T), *second)
    whole = whole.reshape(second[0], first[0], 3)
    return whole if lines.columns else np.ascontiguousarray(whole.transpose(1, 0, 2))


def _resize(lines: np.ndarray, size: int, shift: int, mirror: bool) -> np.ndarray:
    """uint8 [n, m] -> uint8 [size, m]: n lines resized to `size`, moved by `shift`, perhaps the last one first."""
    out = np.zeros((size, lines.shape[1]), np.uint8)
    new = slice(max(shift, 0), min(size + shift, size))
    starts, weights = (x[new.start - shift : new.stop - shift] for x in _weights(len(lines), size))
    _add_up(lines, starts, weights, out[::-1][new] if mirror else out[new])
    return out


def _by_pillow(lines: Lines, height: int, width: int, down: int, right: int, mirror: bool) -> np.ndarray:
    """What `resized` must be equal to."""
    image = Image.fromarray(as_pixels(lines)).resize((width, height), Image.Resampling.BILINEAR)
    image = image.crop((-right, -down, width - right, height - down))
    return np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image)


@cache
def _as_pillow_does() -> bool:
    """Whether the compiled code agrees with the installed Pillow. Also compiles it, before processes are forked."""
    numbers, agrees = np.random.default_rng(0), True
    for h, w in ((40, 30), (40, 17), (20, 30), (20, 9), (61, 40), (32, 16), (90, 90)):
        lines = as_lines(numbers.integers(0, 256, (h, w, 3), dtype=np.uint8), 32, 16)
        for moved in ((0, 0, False), (3, -2, True)):
            agrees &= np.array_equal(_by_lines(lines, 32, 16, *moved), _by_pillow(lines, 32, 16, *moved))
    return agrees


@lru_cache(maxsize=4096)
def _weights(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each new line the first of the n old ones it is made of, int64 [size], and their weights, int32 [size, taps].

    A triangle around the new line's place, as wide as two new lines where the image shrinks, else as two old ones.
    """
    scale = n / size
    wide = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    starts = np.maximum((centres - wide + 0.5).astype(np.int64), 0)
    counts = np.minimum((centres + wide + 0.5).astype(np.int64), n) - starts
    taps = np.arange(counts.max())
    away = np.abs((taps + starts[:, None] - centres[:, None] + 0.5) * (1.0 / wide))
    shares = np.where(taps < counts[:, None], np.maximum(1.0 - away, 0.0), 0.0)
    total = shares.cumsum(1)[:, -1:]  # one after the other, as Pillow adds
    return starts, (shares / total * (1 << BITS) + 0.5).astype(np.int32)


@njit(cache=True, nogil=True)
def _add_up(lines, starts, weights, out):
    sums = np.empty(lines.shape[1], np.int32)
    for y in range(len(out)):
        sums[:] = 1 << (BITS - 1)  # half, so that cutting off rounds
        for tap in range(weights.shape[1]):
            weight = weights[y, tap]
            if weight:
                line = lines[starts[y] + tap]
                for i in range(len(sums)):
                    sums[i] += line[i] * weight
        row = out[y]
        for i in range(len(sums)):
            row[i] = sums[i] >> BITS
