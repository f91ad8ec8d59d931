"""Colour jitter of an image in one go: what torchvision's `ColorJitter` makes of a PIL image, to the last bit, several
times faster.

Each of its four operations reads and writes a whole image, and hue goes through HSV one pixel after the other. Here an
image is taken line by line through all four while the line is in the processor's nearest memory: red, green and blue
apart, as float32 and without branches, so that several pixels are worked on at once. Contrast alone needs the mean grey
of the whole image as the operations before it left it, so there are two passes, before it and from it on.
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
f32 = np.float32
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


def jitter(lines: np.ndarray, draws: Jitter) -> np.ndarray:
    """uint8 [n, 3, m] -> the same, brightness, contrast, saturation and hue changed as `ColorJitter` does.

    n rows or columns of an image, each the red, then the green, then the blue values of its m pixels.
    """
    if not _as_pillow_does():
        return _by_pillow(lines, draws)
    return _in_lines(lines, draws)


def _in_lines(lines: np.ndarray, draws: Jitter) -> np.ndarray:
    out = np.empty_like(lines)
    order, factors = np.array(draws.order), np.array(draws.factors, f32)
    # As torchvision turns a share of the circle into a step of a byte, which wraps around.
    factors[HUE] = np.int32(draws.factors[HUE] * 255).astype(np.uint8)
    before = int(np.flatnonzero(order == CONTRAST)[0])
    greys = _change(lines, out, order[:before], factors, f32(0))
    mean = f32(int(greys / max(lines.size // 3, 1) + 0.5))
    _change(out if before else lines, out, order[before:], factors, mean)
    return out


def _by_pillow(lines: np.ndarray, draws: Jitter) -> np.ndarray:
    """What `jitter` must be equal to."""
    image = Image.fromarray(np.ascontiguousarray(lines.transpose(0, 2, 1)))
    change = {BRIGHTNESS: F.adjust_brightness, CONTRAST: F.adjust_contrast, SATURATION: F.adjust_saturation,
              HUE: F.adjust_hue}  # fmt: skip
    for operation in draws.order:
        image = change[operation](image, draws.factors[operation])
    return np.ascontiguousarray(np.asarray(image).transpose(0, 2, 1))


@cache
def _as_pillow_does() -> bool:
    """Whether the compiled code agrees with the installed Pillow on this machine; another rounding of either would
    change what the network sees. Also compiles it, before processes that need it are forked."""
    lines = np.random.default_rng(0).integers(0, 256, (64, 3, 64), dtype=np.uint8)
    lines[:16] = lines[:16, :1]
    orders = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1))
    cases = [Jitter(o, (0.5 + 0.29 * n, 1.4 - 0.3 * n, 0.6 + 0.3 * n, 0.13 + n / 9)) for n, o in enumerate(orders)]
    return all(np.array_equal(_in_lines(lines, case), _by_pillow(lines, case)) for case in cases)


# -- one line ----------------------------------------------------------------------------------------------------------
# Bytes are held as float32: their sums and products below are whole numbers under 2^24, which it holds exactly.


@_compiled
def _change(source, target, operations, factors, mean):
    """Takes lines [n, 3, m] through some operations; the sum of their grey values afterwards.

    factors: by operation; of hue the step of its byte, 0 ... 255. mean: of the grey values, for contrast. Without
    operations nothing is written.
    """
    n, _, m = source.shape
    r, g, b, greys = np.empty(m, f32), np.empty(m, f32), np.empty(m, f32), np.zeros(m, f32)
    for y in range(n):
        _copy(source[y, 0], r), _copy(source[y, 1], g), _copy(source[y, 2], b)
        for operation in operations:
            factor = factors[operation]
            if operation == SATURATION:
                _saturate(r, g, b, factor)
            elif operation == HUE:
                _turn_hue(r, g, b, factor)
            else:
                other = mean if operation == CONTRAST else f32(0)
                for channel in (r, g, b):
                    for i in range(m):
                        channel[i] = _blend(other, channel[i], factor)
        for i in range(m):
            greys[i] += _grey(r[i], g[i], b[i])
        if len(operations):
            _copy(r, target[y, 0]), _copy(g, target[y, 1]), _copy(b, target[y, 2])
    return greys.astype(np.float64).sum()


@_compiled
def _copy(values, to):
    for i in range(len(to)):
        to[i] = np.int32(values[i])


@_compiled
def _blend(one, other, factor):
    """Pillow's blend of two values: from `one` (factor 0) to `other` (1) and beyond."""
    return np.floor(_clip(one + factor * (other - one), f32(255)))


@_compiled
def _clip(value, highest):
    return _lower(_higher(value, f32(0)), highest)


@_compiled
def _lower(x, y):  # one instruction each; the built-in functions also ask for NaN
    return x if x < y else y


@_compiled
def _higher(x, y):
    return x if x > y else y


@_compiled
def _grey(red, green, blue):
    return np.floor((f32(19595) * red + f32(38470) * green + f32(7471) * blue + f32(32768)) * f32(1 / 65536))


@_compiled
def _saturate(r, g, b, factor):
    for i in range(len(r)):
        grey = _grey(r[i], g[i], b[i])
        r[i], g[i], b[i] = _blend(grey, r[i], factor), _blend(grey, g[i], factor), _blend(grey, b[i], factor)


@_compiled
def _turn_hue(r, g, b, step):
    """RGB to HSV in bytes, the hue `step` further, and back, rounded as in Pillow.

    Pillow alternates between float32 and float64; these formulas round alike for every colour.
    """
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        high, low = _higher(red, _higher(green, blue)), _lower(red, _lower(green, blue))
        chroma = high - low
        # The highest channel says the third of the circle, the next one its half, the middle one's share the rest.
        third = f32(0) if red == high else f32(2) if green == high else f32(4)
        lead = green - blue if red == high else blue - red if green == high else red - green
        half = f32(1) if lead >= f32(0) else f32(-1)
        turn = (third + half - half * (chroma - abs(lead)) / _higher(chroma, f32(1))) / f32(6) * f32(255)
        hue = np.floor(turn if turn >= f32(0) else turn + f32(255)) + step
        place = f32(6) * (hue if hue < f32(256) else hue - f32(256))
        saturation = np.floor(f32(255) * chroma / _higher(high, f32(1)))
        r[i] = _channel(high, saturation, place, f32(0))
        g[i] = _channel(high, saturation, place, f32(510))
        b[i] = _channel(high, saturation, place, f32(1020))


@_compiled
def _channel(value, saturation, place, own):
    """A channel of HSV's (value, saturation, hue) in bytes.

    place: of the hue, own: of the channel's colour, on a circle of 6 * 255. Within a sixth of its colour a channel has
    the whole value, from two sixths on it lacks the saturation.
    """
    away = abs(place - own)
    lack = _clip(_lower(away, f32(1530) - away) - f32(255), f32(255))
    return np.floor(value * (f32(255 * 255) - saturation * lack) * f32(1 / 255**2) + f32(0.5))
