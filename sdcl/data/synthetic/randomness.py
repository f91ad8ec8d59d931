"""Random draws addressed by what they are for, the same on every machine and for every number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# What a stream is for: the second key word of the generator.
PERSON, TRACK, IMAGE, CAMERA, LAYOUT = range(5)


class Draws:
    """A stream of draws at the address (seed, purpose, identity, camera, image).

    The generator is Philox, a keyed counter: streams at different addresses do not overlap, and any one starts at once,
    so that any image of a data set can be drawn alone. Only its raw 64-bit words are used, whose values NumPy
    guarantees; the arithmetic on them is single IEEE operations, without any function from the C library.
    """

    def __init__(self, seed: int, purpose: int, identity: int = 0, camera: int = 0, image: int = 0) -> None:
        key = np.array([seed, purpose], dtype=np.uint64)
        counter = np.array([0, image, camera, identity], dtype=np.uint64)
        self._bits = np.random.Philox(key=key, counter=counter)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """An integer in 0 … count - 1."""
        return (int(self._bits.random_raw()) * count) >> 64

    def chance(self, probability: float) -> bool:
        """True with this probability; a draw is used in any case."""
        return self.uniform() < probability

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def permutation(self, count: int) -> list[int]:
        """The integers 0 … count - 1 in random order."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def bytes(self, *shape: int) -> np.ndarray:
        """uint8 array of this shape, uniform in 0 … 255."""
        size = int(np.prod(shape))
        words = np.asarray(self._bits.random_raw((size + 7) // 8), dtype="<u8")
        return words.view(np.uint8)[:size].reshape(shape)

    def noise(self, *shape: int) -> np.ndarray:
        """float32 array of this shape, nearly normal with mean 0 and deviation 1: the sum of four uniform bytes."""
        total = self.bytes(4, *shape).astype(np.int16)
        return (total[0] + total[1] + total[2] + total[3] - 510).astype(np.float32) * np.float32(1 / 147.8)


def unit_vector(turn: float) -> tuple[float, float]:
    """(cosine, sine) of nearly `turn` full turns: a vector of unit length, less than 1 degree off inside a quarter.

    The formula is rational, hence the same on every machine, unlike the C library's sine.
    """
    quarter, rest = divmod(turn * 4.0, 1.0)
    t = rest * (0.785 + 0.215 * rest * rest)  # near tan(rest * 45 degrees), equal at both ends
    scale = 1.0 / (1.0 + t * t)
    cosine, sine = (1.0 - t * t) * scale, 2.0 * t * scale
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[int(quarter) % 4]
