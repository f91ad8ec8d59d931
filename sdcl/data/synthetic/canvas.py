"""A canvas of material numbers: round limbs, columns and ellipses, rasterised by NumPy alone.

Every pixel holds the number of the material seen there and how brightly its surface is lit; colours come later, so that
one drawing serves both modalities. All arithmetic is element by element, without sums or library functions whose last
bit may differ between machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Point = tuple[float, float]
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(across, along) positions on a garment → True where its second colour shows."""
Material = int | tuple[int, Pattern]
"""A material's number; with a pattern, number + 1 is that of the second colour."""


class Canvas:
    """Twice the image's resolution each way, with a frame that gives every pixel its place beside the person.

    Args:
        x: float64 [columns], ascending; 0 is the person's middle, in units of the person's height.
        y: float64 [rows], ascending; 0 is the top of the head, 1 the soles.
        light: −1 … 1, light from the left … from the right.

    `material` is uint8 [rows, columns], 0 where nothing was drawn; `shade` float32 [rows, columns], about 0.6 … 1.1.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, light: float) -> None:
        self.x, self.y, self.light = x, y, light
        self.material = np.zeros((len(y), len(x)), dtype=np.uint8)
        self.shade = np.ones((len(y), len(x)), dtype=np.float32)

    def limb(
        self, start: Point, end: Point, start_radius: float, end_radius: float, material: Material, along: float = 0.0
    ) -> None:
        """A rod with round ends; `along` is the pattern's position at its start."""
        (ax, ay), (bx, by) = start, end
        reach = max(start_radius, end_radius)
        window = self._window(min(ax, bx) - reach, max(ax, bx) + reach, min(ay, by) - reach, max(ay, by) + reach)
        x, y = self.x[window[1]] - ax, self.y[window[0], None] - ay
        dx, dy = bx - ax, by - ay
        square = max(dx * dx + dy * dy, 1e-9)
        t = np.minimum(np.maximum((x * dx + y * dy) / square, 0.0), 1.0)
        radius = start_radius + t * (end_radius - start_radius)
        ex, ey = x - t * dx, y - t * dy
        inside = ex * ex + ey * ey <= radius * radius
        length = float(np.sqrt(square))
        across = (x * dy - y * dx) / length
        self._paint(window, inside, material, across, along + t * length, across / radius)

    def column(self, nodes: Sequence[tuple[float, float, float]], material: Material) -> None:
        """An upright shape given by (y, middle, half width) at ascending heights, straight between them."""
        ys, middles, halves = (np.array(values) for values in zip(*nodes, strict=True))
        left, right = float((middles - halves).min()), float((middles + halves).max())
        window = self._window(left, right, nodes[0][0], nodes[-1][0])
        y = self.y[window[0]]
        after = np.minimum(np.maximum(np.searchsorted(ys, y), 1), len(ys) - 1)
        share = (y - ys[after - 1]) / (ys[after] - ys[after - 1])
        middle = (middles[after - 1] + share * (middles[after] - middles[after - 1]))[:, None]
        half = (halves[after - 1] + share * (halves[after] - halves[after - 1]))[:, None]
        across = self.x[window[1]] - middle
        inside = np.abs(across) <= half
        along = np.broadcast_to(y[:, None] - nodes[0][0], inside.shape)
        self._paint(window, inside, material, across, along, across / np.maximum(half, 1e-6))

    def ellipse(self, middle: Point, half_width: float, half_height: float, material: int) -> None:
        """A filled upright ellipse."""
        cx, cy = middle
        window = self._window(cx - half_width, cx + half_width, cy - half_height, cy + half_height)
        u, v = (self.x[window[1]] - cx) / half_width, (self.y[window[0], None] - cy) / half_height
        across = np.broadcast_to(u, (v.shape[0], u.shape[0]))
        self._paint(window, u * u + v * v <= 1.0, material, across, across, across)

    def _window(self, left: float, right: float, top: float, bottom: float) -> tuple[slice, slice]:
        """The pixels that lie in this box: (rows, columns)."""
        rows, columns = self.y.searchsorted((top, bottom)), self.x.searchsorted((left, right))
        return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))

    def _paint(
        self,
        window: tuple[slice, slice],
        inside: np.ndarray,
        material: Material,
        across: np.ndarray,
        along: np.ndarray,
        side: np.ndarray,
    ) -> None:
        """`side` is −1 … 1 from the left to the right edge of a round surface, which darkens away from the light."""
        if isinstance(material, tuple):
            number, pattern = material
            np.copyto(self.material[window], number + pattern(across, along).astype(np.uint8), where=inside)
        else:
            np.copyto(self.material[window], np.uint8(material), where=inside)
        shade = 1.0 - 0.3 * side * side + 0.14 * self.light * side
        np.copyto(self.shade[window], shade.astype(np.float32), where=inside)
