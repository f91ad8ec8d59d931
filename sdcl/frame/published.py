"""What was published of a method, for comparison: final results, and curves with the band of a healthy run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sdcl.report.comparison import Departure
    from sdcl.report.run_files import RunFiles

__all__ = ["Curve", "Published", "series"]


@dataclass(frozen=True)
class Curve:
    """Published runs on a data set, epoch by epoch, and how far beyond them still counts as like them.

    The file has a row an epoch (and `trial`): `epoch`, and columns that `columns` names.
    """

    file: Path
    columns: Mapping[str, tuple[str, float]]
    """Quantity as log.jsonl names it (a test's as `mode.metric`) → its column and the factor that makes it ours."""
    compared: Sequence[str]
    """The quantities that a run is compared by."""
    margins: Mapping[str, float]
    """How far beyond the published runs is still inside: "metric" in fractions, "clusters" and "loss" as shares."""
    what: str
    """The runs in words, for people."""

    def values(self) -> dict[str, np.ndarray]:
        """Quantities by epoch: name → [runs, epochs], NaN where there is none."""
        with self.file.open() as file:
            rows = list(csv.DictReader(file))
        runs = sorted({int(row.get("trial", 1)) for row in rows})
        epochs = max(int(row["epoch"]) for row in rows) + 1
        out = {}
        for name, (column, scale) in self.columns.items():
            out[name] = np.full((len(runs), epochs), np.nan)
            for row in rows:
                if row[column]:
                    out[name][runs.index(int(row.get("trial", 1))), int(row["epoch"])] = scale * float(row[column])
        return out

    def band(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value [epochs] of a quantity that counts as published; NaN where nothing was published.

        From the lowest to the highest of the published runs, widened by a margin (`rule` says it in words).
        """
        values = self.values()[name]
        empty = np.isnan(values).all(0)
        low, high = (pick(np.where(empty, 0.0, values), axis=0) for pick in (np.nanmin, np.nanmax))
        if "." in name:
            low, high = low - self.margins["metric"], high + self.margins["metric"]
        else:
            margin = self.margins["loss" if name == "loss" else "clusters"]
            low, high = low * (1 - margin), high * (1 + margin)
        return np.where(empty, np.nan, low), np.where(empty, np.nan, high)

    @property
    def rule(self) -> str:
        """The band's definition, for people."""
        m = self.margins
        return (
            f"{self.what}, ± {100 * m['metric']:.0f} points of Rank-1 and mAP, ± {100 * m['clusters']:.0f} % of "
            f"clusters, ± {100 * m['loss']:.0f} % of the loss, at the same epoch"
        )


@dataclass(frozen=True)
class Published:
    """What is known of a method's published runs."""

    results: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Data set → mode → metric → fraction, the final results; metrics that were not published are absent."""
    source: str
    """Where they stand."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Data set → its runs epoch by epoch, where these were published."""
    meanings: Callable[[RunFiles, Sequence[Departure]], list[str]] | None = None
    """A run and where it leaves the band to what that usually means."""


def series(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of a quantity of log.jsonl, where it was logged; `mode.metric` reads a test's metric."""
    first, _, second = name.partition(".")
    found = [(line["epoch"], line[first][second] if second else line[first]) for line in log if first in line]
    return [epoch for epoch, _ in found], [value for _, value in found]
