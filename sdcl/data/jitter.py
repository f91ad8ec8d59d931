"""Colour jitter of an image in one go: what torchvision's `ColorJitter` makes of a PIL image, to the last bit, several
times faster.

Each of its four operations reads and writes a whole image, and hue goes through HSV one pixel after the other. Here the
bytes are taken block by block through all four while they are in the processor's nearest memory. Contrast alone needs
the mean grey of the whole image as the operations before it left it, so there are two passes, before it and from it on.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from PIL import Image
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as F

__all__ = ["Jitter", "draw_jitter", "jitter"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLOCK = 1024
"""Pixels that are taken through the operations at once."""

_compiled = njit(cache=True, nogil=True)


class Jitter(NamedTuple):
    """The draws of one image: the four operations in their order, and the factor of each (by operation)."""

    order: tuple[int, ...]
    factors: tuple[float, ...]


def draw_jitter(steps: ColorJitter) -> Jitter:
    """Draws as the transform itself would, from PyTorch's default CPU generator.

    Raises ValueError for a transform that leaves an operation out.
    """
    order, *factors = ColorJitter.get_params(steps.brightness, steps.contrast, steps.saturation, steps.hue)
    if any(factor is None for factor in factors):
        raise ValueError("all four operations must be on: brightness, contrast, saturation and hue")
    return Jitter(tuple(order.tolist()), tuple(float(factor) for factor in factors))


def jitter(pixels: np.ndarray, draws: Jitter) -> np.ndarray:
    """uint8 [h, w, 3] -> the same, brightness, contrast, saturation and hue changed as `ColorJitter` does."""
    if not _as_pillow_does():
        return _by_pillow(pixels, draws)
    return _in_blocks(pixels, draws)


def _in_blocks(pixels: np.ndarray, draws: Jitter) -> np.ndarray:
    out = np.empty_like(pixels)
    order = np.array(draws.order)
    factors = np.array(draws.factors, np.float32)
    # As torchvision turns a share of the circle into a step of a byte, which wraps around.
    shift = int(np.int32(draws.factors[HUE] * 255).astype(np.uint8))
    before = int(np.flatnonzero(order == CONTRAST)[0])
    source, target = np.ascontiguousarray(pixels).reshape(-1, 3), out.reshape(-1, 3)
    total = _change(source, target, order[:before], factors, 0, shift, *_tables())
    mean = int(total / max(len(source), 1) + 0.5)
    _change(target, target, order[before:], factors, mean, shift, *_tables())
    return out


def _by_pillow(pixels: np.ndarray, draws: Jitter) -> np.ndarray:
    """What `jitter` must be equal to."""
    image = Image.fromarray(pixels)
    change = {BRIGHTNESS: F.adjust_brightness, CONTRAST: F.adjust_contrast, SATURATION: F.adjust_saturation,
              HUE: F.adjust_hue}  # fmt: skip
    for operation in draws.order:
        image = change[operation](image, draws.factors[operation])
    return np.array(image)


@cache
def _as_pillow_does() -> bool:
    """Whether the compiled code agrees with the installed Pillow on this machine; another rounding of either would
    change what the network sees. Also compiles it, before processes that need it are forked."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels[:16] = pixels[:16, :, :1]
    orders = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1))
    cases = [Jitter(o, (0.5 + 0.29 * n, 1.4 - 0.3 * n, 0.6 + 0.3 * n, 0.13 + n / 9)) for n, o in enumerate(orders)]
    return all(np.array_equal(_in_blocks(pixels, case), _by_pillow(pixels, case)) for case in cases)


# -- one block of pixels -----------------------------------------------------------------------------------------------


@_compiled
def _change(source, target, operations, factors, mean, shift, hues, saturations, sixths, rests, shares, lows):
    """Takes pixels [n, 3] through some operations; the sum of their grey values afterwards.

    mean: of the grey values, for contrast. shift: of the hue, for a byte that wraps around.
    """
    n, total = len(source), 0
    r, g, b = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    brightness, contrast = np.empty(256, np.uint8), np.empty(256, np.uint8)
    for value in range(256):
        brightness[value] = _blend(np.int32(0), np.int32(value), factors[BRIGHTNESS])
        contrast[value] = _blend(np.int32(mean), np.int32(value), factors[CONTRAST])
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        for i in range(count):
            r[i], g[i], b[i] = source[start + i, 0], source[start + i, 1], source[start + i, 2]
        for operation in operations:
            if operation == BRIGHTNESS:
                for i in range(count):
                    r[i], g[i], b[i] = brightness[r[i]], brightness[g[i]], brightness[b[i]]
            elif operation == CONTRAST:
                for i in range(count):
                    r[i], g[i], b[i] = contrast[r[i]], contrast[g[i]], contrast[b[i]]
            elif operation == SATURATION:
                for i in range(count):
                    grey = np.int32(_grey(r[i], g[i], b[i]))
                    r[i] = _blend(grey, np.int32(r[i]), factors[SATURATION])
                    g[i] = _blend(grey, np.int32(g[i]), factors[SATURATION])
                    b[i] = _blend(grey, np.int32(b[i]), factors[SATURATION])
            else:
                _turn_hue(r, g, b, count, shift, hues, saturations, sixths, rests, shares, lows)
        for i in range(count):
            total += _grey(r[i], g[i], b[i])
            target[start + i, 0], target[start + i, 1], target[start + i, 2] = r[i], g[i], b[i]
    return total


@_compiled
def _blend(one, other, factor):
    """Pillow's blend of two bytes, in float32: from `one` (factor 0) to `other` (1) and beyond."""
    value = np.float32(one) + factor * np.float32(other - one)
    return np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@_compiled
def _grey(red, green, blue):
    return (19595 * np.int32(red) + 38470 * np.int32(green) + 7471 * np.int32(blue) + 32768) >> 16


@_compiled
def _turn_hue(r, g, b, count, shift, hues, saturations, sixths, rests, shares, lows):
    """RGB to HSV, the hue shifted, and back, all in bytes as Pillow rounds them. Tables: see `_tables`."""
    for i in range(count):
        red, green, blue = r[i], g[i], b[i]
        high, low = max(red, max(green, blue)), min(red, min(green, blue))
        chroma = high - low
        # Which channel is the highest says the third of the circle, the lowest its half; the middle one the rest.
        if red == high:
            sector, middle = (0, green) if blue == low else (1, blue)
        elif green == high:
            sector, middle = (2, blue) if red == low else (3, red)
        else:
            sector, middle = (4, red) if green == low else (5, green)
        hue = (hues[sector, chroma, high - middle] + shift) & 255
        saturation = saturations[chroma, high]
        if saturation == 0:
            r[i], g[i], b[i] = high, high, high
            continue
        p = lows[saturation, high]
        sixth, share = sixths[hue], shares[saturation]
        if sixth & 1:
            x = np.float64(high) * (1.0 - np.float64(share * rests[hue]))
        else:
            x = np.float64(high) * (1.0 - np.float64(share) * (1.0 - np.float64(rests[hue])))
        between = np.uint8(np.floor(x + 0.5))
        if sixth == 0:
            r[i], g[i], b[i] = high, between, p
        elif sixth == 1:
            r[i], g[i], b[i] = between, high, p
        elif sixth == 2:
            r[i], g[i], b[i] = p, high, between
        elif sixth == 3:
            r[i], g[i], b[i] = p, between, high
        elif sixth == 4:
            r[i], g[i], b[i] = between, p, high
        else:
            r[i], g[i], b[i] = high, p, between


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """hues uint8 [6, 256, 256] by sector, chroma and highest − middle channel; saturations uint8 [256, 256] by chroma
    and highest channel; of a hue byte its sixth of the circle, int64 [256], and the rest, float32 [256]; of a
    saturation byte its share, float32 [256]; lows uint8 [256, 256], the lowest channel by saturation and highest.

    float32 and float64 alternate as in Pillow's conversions, since the rounding shows.
    """
    single, double = np.float32, np.float64
    chroma = np.maximum(np.arange(256), 1)[:, None].astype(single)
    part = np.arange(256)[None].astype(single) / chroma                 # of the middle channel; of the lowest it is 1
    one, part64 = single(1), part.astype(double)
    raw = np.stack([one - part, part - one, 2.0 + 1.0 - part64, 2.0 + part64 - 1.0, 4.0 + 1.0 - part64,
                    4.0 + part64 - 1.0]).astype(single)  # fmt: skip
    turns = np.fmod(raw.astype(double) / 6.0 + 1.0, 1.0).astype(single)
    hues = np.clip((turns.astype(double) * 255.0).astype(np.int64), 0, 255).astype(np.uint8)
    hues[:, 0] = 0
    values = np.arange(256)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values[:, None].astype(single) / values[None].astype(single)
        saturations = np.nan_to_num(ratio.astype(double) * 255.0, posinf=0).clip(0, 255).astype(np.uint8)
    place = values.astype(single).astype(double) * 6.0 / 255.0
    sixths = np.floor(place).astype(np.int64)
    rests = (place - sixths.astype(single).astype(double)).astype(single)
    shares = (values.astype(single).astype(double) / 255.0).astype(single)
    lows = np.floor(values[None].astype(double) * (1.0 - shares[:, None].astype(double)) + 0.5).astype(np.uint8)
    return hues, saturations, sixths % 6, rests, shares, lows
