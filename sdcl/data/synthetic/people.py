"""Who the people are: body, hair, clothes and bags, the same in every camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sdcl.data.synthetic.canvas import Pattern
from sdcl.data.synthetic.randomness import PERSON, Draws

# Material numbers of the canvas. A garment's second colour follows its first; 0 is the background.
SKIN, HAIR, SHOES, UPPER, UPPER_SECOND, LOWER, LOWER_SECOND, BAG, HAT, OBSTACLE = range(1, 11)

_CLOTH = (
    (28, 28, 32), (225, 225, 220), (130, 130, 134), (32, 42, 92), (78, 102, 146), (178, 36, 42), (98, 32, 44),
    (46, 112, 62), (96, 98, 52), (180, 160, 116), (104, 72, 48), (212, 192, 156), (216, 186, 52), (216, 116, 44),
    (226, 152, 172), (106, 62, 132), (122, 172, 216), (36, 122, 126), (64, 66, 72), (176, 182, 190),
)  # fmt: skip
_UPPER_PRINTS = ("plain", "plain", "rows", "rows", "bars", "checks", "dots", "half", "band", "block", "open")
_LOWER_PRINTS = ("plain",) * 6 + ("rows", "bars", "checks", "side", "side", "half")
_HAIR = ((22, 18, 18), (42, 30, 24), (70, 46, 30), (112, 76, 44), (178, 142, 86), (140, 138, 136))
_SKIN = ((236, 198, 170), (222, 178, 146), (196, 150, 116), (150, 106, 78), (104, 72, 54))


class Dye(NamedTuple):
    """A material's colour in visible light and its own brightness in infrared, each 0 … 255."""

    red: int
    green: int
    blue: int
    own_infrared: int

    @property
    def grey(self) -> float:
        """The grey mixture of the visible channels; red weighs more than to the eye, being nearest to infrared."""
        return 0.4 * self.red + 0.45 * self.green + 0.15 * self.blue


@dataclass(frozen=True)
class Print:
    """The pattern of a garment; lengths in units of the person's height."""

    kind: str
    period: float
    share: float
    """Part of a period that has the second colour; for "half" and "block", where on the garment it lies."""

    def on(self, facing: float, sideways: float) -> Pattern:
        """The pattern as seen on a body whose front is turned towards the camera by the cosine `facing`."""
        period, share = self.period, self.share

        def bands(position: np.ndarray) -> np.ndarray:
            phase = position / period
            return phase - np.floor(phase) < share

        patterns: dict[str, Pattern] = {
            "plain": lambda across, along: np.zeros(across.shape, dtype=bool),
            "rows": lambda across, along: bands(along),
            "bars": lambda across, along: bands(across + 0.5 * share * period),
            "checks": lambda across, along: bands(along) ^ bands(across),
            "dots": lambda across, along: _dots(across / period, along / period, share),
            "half": lambda across, along: along > 0.1 + 0.16 * share,
            "band": lambda across, along: np.abs(along - 0.08 - 0.16 * share) < 0.45 * period,
            # On the chest alone, so it turns away with the body.
            "block": lambda across, along: (
                (np.abs(across - 0.06 * sideways) < (0.5 * period + 0.015) * facing)
                & (np.abs(along - 0.07 - 0.05 * share) < 0.03 + 0.1 * period)
            ),
            "open": lambda across, along: (
                np.abs(across - 0.06 * sideways) < (0.02 + 0.08 * share) * facing * (1 + along)
            ),
        }
        return patterns[self.kind]


def _dots(across: np.ndarray, along: np.ndarray, share: float) -> np.ndarray:
    row = np.floor(along)
    u, v = across + 0.5 * (row - 2 * np.floor(row / 2)), along - row - 0.5
    u = u - np.floor(u) - 0.5
    return u * u + v * v < 0.24 * share


@dataclass(frozen=True)
class Person:
    """An identity's looks. Lengths are in units of the height; y is 0 at the top of the head and 1 at the soles."""

    dyes: dict[int, Dye]
    girth: float
    head: float
    shoulder: float
    hip_width: float
    hip: float
    hair: str
    hat: bool
    upper: Print
    sleeve: float
    """0 = no sleeves … 0.5 = to the elbow … 1 = to the wrist."""
    sleeve_contrast: bool
    hem: float
    """How far below the hip the upper garment reaches."""
    flare: float
    lower: str
    lower_length: float
    """y where shorts or skirt end; 1 for trousers."""
    trouser: float
    """Width of the trouser legs relative to the legs."""
    lower_print: Print
    boots: float
    bag: str
    bag_size: float
    bag_side: int
    gait: float
    """Length of the stride."""


@lru_cache(maxsize=16)
def draw_person(seed: int, identity: int) -> Person:
    """The looks of an identity, the same for every camera, image size and difficulty."""
    draws = Draws(seed, PERSON, identity)
    upper, lower = draws.choose(_CLOTH), draws.choose(_CLOTH)
    hair, skin = _dye(draws, draws.choose(_HAIR), 8), _dye(draws, draws.choose(_SKIN), 8)
    upper_dyes, lower_dyes = _pair(draws, upper), _pair(draws, lower)
    dyes = {
        # Skin is bright under infrared light whatever its colour; hair is brighter there than to the eye.
        SKIN: skin._replace(own_infrared=195 + skin.own_infrared // 10),
        HAIR: hair._replace(own_infrared=50 + hair.own_infrared // 3),
        SHOES: _dye(draws, draws.choose(_CLOTH)),
        UPPER: upper_dyes[0],
        UPPER_SECOND: upper_dyes[1],
        LOWER: lower_dyes[0],
        LOWER_SECOND: lower_dyes[1],
        BAG: _dye(draws, draws.choose(_CLOTH)),
        HAT: _dye(draws, draws.choose(_CLOTH)),
    }
    kind = draws.choose(("trousers",) * 5 + ("shorts",) * 3 + ("skirt",) * 3)
    ends = {"trousers": 1.0, "shorts": draws.uniform(0.6, 0.78), "skirt": draws.uniform(0.62, 0.9)}
    return Person(
        dyes=dyes,
        girth=draws.uniform(0.82, 1.3),
        head=draws.uniform(0.125, 0.155),
        shoulder=draws.uniform(0.088, 0.125),
        hip_width=draws.uniform(0.072, 0.1),
        hip=draws.uniform(0.47, 0.53),
        hair=draws.choose(("bald", "short", "short", "full", "full", "bob", "long", "long", "bun", "tail")),
        hat=draws.chance(0.15),
        upper=_print(draws, _UPPER_PRINTS),
        sleeve=draws.choose((0.0, 0.35, 0.45, 0.55, 1.0, 1.0, 1.0)),
        sleeve_contrast=draws.chance(0.2),
        hem=draws.choose((0.0, 0.02, 0.04, 0.06, 0.1, 0.17, 0.24)),
        flare=draws.uniform(0.95, 1.3),
        lower=kind,
        lower_length=ends[kind],
        trouser=draws.uniform(0.95, 1.5),
        lower_print=_print(draws, _LOWER_PRINTS),
        boots=draws.choose((0.0, 0.0, 0.0, 0.06, 0.13)),
        bag=draws.choose(("none", "none", "none", "backpack", "backpack", "shoulder", "shoulder", "hand")),
        bag_size=draws.uniform(0.8, 1.35),
        bag_side=draws.choose((-1, 1)),
        gait=draws.uniform(0.07, 0.14),
    )


def _dye(draws: Draws, colour: tuple[int, int, int], spread: int = 18) -> Dye:
    red, green, blue = (min(max(channel + draws.below(2 * spread + 1) - spread, 8), 245) for channel in colour)
    return Dye(red, green, blue, 20 + draws.below(216))


def _pair(draws: Draws, colour: tuple[int, int, int]) -> tuple[Dye, Dye]:
    """Two dyes whose pattern can be told in a grey image: the second is far from the first in grey."""
    first = _dye(draws, colour)
    far = [other for other in _CLOTH if abs(Dye(*other, 0).grey - first.grey) > 75]
    second = _dye(draws, draws.choose(far))
    if abs(second.own_infrared - first.own_infrared) < 60:
        second = second._replace(own_infrared=(second.own_infrared + 100) % 216 + 20)
    return first, second


def _print(draws: Draws, kinds: tuple[str, ...]) -> Print:
    return Print(draws.choose(kinds), period=draws.uniform(0.045, 0.11), share=draws.uniform(0.35, 0.65))
