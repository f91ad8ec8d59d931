"""The published runs, epoch by epoch, and the band around them that a healthy run stays in.

The curves (method page, section 10) are one SYSU-MM01 run and the ten trials of RegDB.
"""

from __future__ import annotations

import csv
from importlib.resources import files

import numpy as np

__all__ = ["BAND_NAMES", "RESULTS", "band", "band_rule", "published_curve"]

_FILES = {"sysu": "sysu_mm01_published_curve.csv", "regdb": "regdb_published_curve.csv"}
_MODES = {
    "sysu": {"all_search": "all", "indoor_search": "indoor"},
    "regdb": {"visible_to_thermal": "visible_to_thermal", "thermal_to_visible": "thermal_to_visible"},
}
_COUNTS = (
    "visible_clusters",
    "visible_outliers",
    "infrared_clusters",
    "infrared_outliers",
    "associated_visible_clusters",
)

_METRICS = ("rank1", "rank10", "rank20", "mAP", "mINP")
RESULTS: dict[str, dict[str, dict[str, float]]] = {
    "sysu": {
        "all_search": dict(zip(_METRICS, (0.6529, 0.9443, 0.9781, 0.6363, 0.5094), strict=True)),
        "indoor_search": dict(zip(_METRICS, (0.7109, 0.9579, 0.9890, 0.7640, 0.7297), strict=True)),
    },
    "regdb": {
        "visible_to_thermal": dict(zip(_METRICS, (0.9096, 0.9751, 0.9871, 0.8286, 0.6760), strict=True)),
        "thermal_to_visible": dict(zip(_METRICS, (0.8998, 0.9701, 0.9841, 0.8173, 0.6477), strict=True)),
    },
}
"""Final results in the released logs, fractions; Rank-5 is not among them."""

# How far beyond the published runs still counts as like them: metrics in fractions, counts and loss as shares. Ten
# trials show most of their spread by themselves; beside a single run the margin has to stand for it (RegDB's trials
# deviate by 2 to 4 points from each other in most epochs of stage 1).
_MARGINS = {
    "sysu": {"metric": 0.05, "clusters": 0.10, "loss": 0.15},
    "regdb": {"metric": 0.02, "clusters": 0.03, "loss": 0.10},
}

BAND_NAMES = {
    dataset: ("loss", "visible_clusters", "infrared_clusters", "associated_visible_clusters")
    + tuple(f"{mode}.{metric}" for mode in names for metric in ("rank1", "mAP"))
    for dataset, names in _MODES.items()
}
"""The quantities that a run is compared by, named as `sdcl.report.run_files.series` names them."""


def published_curve(dataset: str) -> dict[str, np.ndarray]:
    """Quantities of the published runs by epoch: name -> [runs, epochs], NaN where there is none.

    Args:
        dataset: "sysu" (one run of 50 epochs) or "regdb" (ten trials of 30).

    Returns:
        "loss", the clusters and outliers as in log.jsonl, and `<mode>.<metric>` as fractions.
    """
    with (files("sdcl") / "assets" / _FILES[dataset]).open() as file:
        rows = list(csv.DictReader(file))
    runs = sorted({int(row.get("trial", 1)) for row in rows})
    epochs = max(int(row["epoch"]) for row in rows) + 1

    def column(name: str, scale: float = 1.0) -> np.ndarray:
        values = np.full((len(runs), epochs), np.nan)
        for row in rows:
            if row[name]:
                values[runs.index(int(row.get("trial", 1))), int(row["epoch"])] = scale * float(row[name])
        return values

    curve = {"loss": column("mean_loss")} | {name: column(name) for name in _COUNTS}
    for mode, prefix in _MODES[dataset].items():
        for metric in ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP"):
            curve[f"{mode}.{metric}"] = column(f"{prefix}_{metric}", 0.01)
    return curve


def band(dataset: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value [epochs] of a quantity that counts as published; NaN where nothing was published.

    From the lowest to the highest of the published runs, widened by a margin (`band_rule` says it in words).
    """
    values = published_curve(dataset)[name]
    empty = np.isnan(values).all(0)
    low, high = (pick(np.where(empty, 0.0, values), axis=0) for pick in (np.nanmin, np.nanmax))
    margins = _MARGINS[dataset]
    if "." in name:
        low, high = low - margins["metric"], high + margins["metric"]
    else:
        margin = margins["loss" if name == "loss" else "clusters"]
        low, high = low * (1 - margin), high * (1 + margin)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def band_rule(dataset: str) -> str:
    """The band's definition, for people."""
    m = _MARGINS[dataset]
    runs = "the published run" if dataset == "sysu" else "the lowest and highest of the ten published trials"
    return (
        f"{runs}, ± {100 * m['metric']:.0f} points of Rank-1 and mAP, ± {100 * m['clusters']:.0f} % of clusters, "
        f"± {100 * m['loss']:.0f} % of the loss, at the same epoch"
    )
