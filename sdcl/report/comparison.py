"""Runs beside each other and beside the published one; where a run leaves the published band, and what that means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdcl.errors import UserError
from sdcl.frame.method import Method
from sdcl.frame.provenance import differences
from sdcl.frame.published import Curve, series
from sdcl.frame.retrieval import modes
from sdcl.report.figures import PUBLISHED, STYLE
from sdcl.report.run_files import RunFiles
from sdcl.tables import align_columns, latex_table, markdown_table

__all__ = ["Departure", "comparison_figure", "comparison_table", "departures", "differing", "methods_of", "paper_table",
           "verdict"]  # fmt: skip


@dataclass(frozen=True)
class Departure:
    """Where a quantity leaves the published band.

    Attributes:
        name: of the quantity, as in log.jsonl (`mode.metric` for a test's).
        epoch: the first of two epochs in a row outside on the same side (or the run's last one).
        side: "below" or "above".
        value: the run's, at that epoch; low, high: the band's.
    """

    name: str
    epoch: int
    side: str
    value: float
    low: float
    high: float


def departures(run: RunFiles, curve: Curve) -> list[Departure]:
    """Where each of a run's quantities first leaves the published band, by epoch.

    A single epoch outside is taken for noise. Better than published (higher metrics, lower loss) is no departure.
    """
    found = []
    for name in curve.compared:
        low, high = curve.band(name)
        epochs, values = series(run.log, name)
        sides = {
            e: "below" if v < low[e] else "above" if v > high[e] else "inside"
            for e, v in zip(epochs, values, strict=True)
            if e < len(low) and not np.isnan(low[e])
        }
        bad = ("below",) if "." in name else ("above",) if name == "loss" else ("below", "above")
        for e, v in zip(epochs, values, strict=True):
            if sides.get(e) in bad and sides.get(e + 1, sides[e]) == sides[e]:
                found.append(Departure(name, e, sides[e], v, float(low[e]), float(high[e])))
                break
    return sorted(found, key=lambda d: d.epoch)


def verdict(run: RunFiles, found: Sequence[Departure]) -> str:
    """In words: from which epoch a run is outside, in what, and what that usually means."""
    if not found:
        last = run.log[-1]["epoch"]
        return f"inside the published band in all of its epochs, 0 to {last}."
    first = found[0].epoch
    lines = [f"leaves the published band at epoch {first}."]
    for d in found:
        text = _percent if "." in d.name else _number
        lines.append(
            f"  {_words(d.name)}: {d.side} it from epoch {d.epoch} ({text(d.value)}; {text(d.low)} to {text(d.high)})"
        )
    published = run.method.published
    meanings = published.meanings(run, found) if published and published.meanings else []
    return "\n".join([*lines, *(f"  This usually means: {meaning}" for meaning in meanings)])


def comparison_table(runs: Sequence[RunFiles], dataset: str | None) -> str:
    """A line a run and mode: method, epochs, clusters of the last epoch, final results (or the best epoch's so far);
    then the published results of these methods on `dataset`."""
    keys = ("rank1", "rank10", "rank20", "mAP", "mINP")
    rows: list[tuple[str, ...]] = [
        ("run", "method", "epochs", "clusters vis/inf", "mode", "R1", "R10", "R20", "mAP", "mINP")
    ]

    def cells(mode: str, row: Mapping[str, float]) -> tuple[str, ...]:
        return mode.replace("_", " "), *(f"{100 * row[k]:.2f}" if k in row else "" for k in keys)

    for run in runs:
        tested = [line for line in run.log if modes(line)]
        table = modes(run.results) if run.results is not None else modes(max(tested, key=_selecting, default={}))
        done = f"{len(run.log)}/{run.config.epochs}" + ("" if run.results is not None else " (goes on)")
        clusters = "/".join(str(run.log[-1].get(f"{m}_clusters", "")) for m in ("visible", "infrared")).strip("/")
        for mode, row in table.items():
            rows.append((str(run.folder), run.method.title, done, clusters, *cells(mode, row)))
    for method in methods_of(runs):
        published = method.published
        if dataset is None or published is None or dataset not in published.results:
            continue
        epochs = clusters = ""
        if dataset in published.curves:
            values = published.curves[dataset].values()
            clusters = "/".join(f"{np.nanmean(values[f'{m}_clusters'][:, -1]):.0f}" for m in ("visible", "infrared"))
            epochs = "/".join([str(values["loss"].shape[1])] * 2)
        rows += [
            ("published", method.title, epochs, clusters, *cells(mode, published.results[dataset][mode]))
            for mode in published.results[dataset]
        ]
    return align_columns(rows, left=5)


def paper_table(runs: Sequence[RunFiles], dataset: str | None, form: str) -> str:
    """A row a run, and one for what was published of each method on `dataset`, as a paper sets them: Rank-1, 10, 20,
    mAP and mINP of each mode in percent. form: "markdown" or "latex".

    Raises:
        UserError: a run has no final results yet, or runs were tested in other modes.
    """
    metrics = {"rank1": "R1", "rank10": "R10", "rank20": "R20", "mAP": "mAP", "mINP": "mINP"}
    if unfinished := [str(run.folder) for run in runs if run.results is None]:
        raise UserError(f"{', '.join(unfinished)}: no final results yet; a paper's table needs finished runs")
    tables: list[tuple[str, str, Mapping[str, Mapping[str, float]]]] = [
        (run.method.title, str(run.folder), modes(run.results or {})) for run in runs
    ]
    for method in methods_of(runs):
        if method.published and dataset and dataset in method.published.results:
            tables.append((f"{method.title}, published", "", method.published.results[dataset]))
    names = list(tables[0][2])
    if any(not set(names) <= table.keys() for _, _, table in tables):
        raise UserError("these runs were tested in other modes: make a table of each data set by itself")
    rows = [["method", "run", *(f"{mode.replace('_', ' ')} {m}" for mode in names for m in metrics.values())]]
    for title, folder, table in tables:
        cells = [f"{100 * table[mode][m]:.2f}" if m in table[mode] else "" for mode in names for m in metrics]
        rows.append([title, folder, *cells])
    return (markdown_table if form == "markdown" else latex_table)(rows, left=2)


def differing(runs: Sequence[RunFiles]) -> list[str]:
    """In what runs differ beside their numbers, a line each: what made them, then settings (against the first run of
    the same method)."""
    lines = differences({str(run.folder): run.provenance for run in runs})
    first: dict[str, RunFiles] = {}
    for run in runs:
        settings = run.config.differences(first.setdefault(run.method.name, run).config)
        if settings:
            lines.append(f"settings of {run.folder}: {', '.join(settings)}")
    return lines


def methods_of(runs: Sequence[RunFiles]) -> list[Method]:
    """The runs' methods, each once."""
    return list({run.method.name: run.method for run in runs}.values())


@matplotlib.rc_context(STYLE)
def comparison_figure(runs: Sequence[RunFiles], dataset: str | None) -> Figure:
    """Rank-1 and mAP of the first mode, loss and cluster counts by epoch: all runs in each panel, behind them the band
    of the runs' method where they are of one method with published curves on `dataset`."""
    tested = [next((modes(line) for line in run.log if modes(line)), {}) for run in runs]
    if not tested[0]:
        raise UserError(f"{runs[0].folder} has no test in its log yet: wait for the first one")
    first = next(iter(tested[0]))
    if any(table and first not in table for table in tested):
        raise UserError("these runs are not of one data set: their tests have other modes. Compare them by themselves")
    methods = methods_of(runs)
    published = methods[0].published if len(methods) == 1 and dataset is not None else None
    curve = published.curves.get(dataset) if published is not None and dataset is not None else None
    mode = first.replace("_", " ")
    counts = sorted({name for run in runs for line in run.log for name in line if name.endswith("_clusters")})
    panels = {f"{first}.rank1": f"Rank-1, {mode}, %", f"{first}.mAP": f"mAP, {mode}, %", "loss": "loss"}
    panels |= {name: name.replace("_", " ") for name in reversed(counts)}
    figure = Figure(figsize=(13, 3.5 * -(-len(panels) // 3)), layout="constrained")
    colors = matplotlib.colormaps["tab10"](np.arange(10))
    axes = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flat
    for ax, (name, title) in zip(axes, panels.items(), strict=False):
        scale = 100 if "." in name else 1
        if curve is not None and name in curve.columns:
            low, high = curve.band(name)
            ax.fill_between(
                np.arange(len(low)),
                scale * low,
                scale * high,
                color=PUBLISHED,
                alpha=0.3,
                linewidth=0,
                label="published band",
            )
        for number, run in enumerate(runs):
            epochs, values = series(run.log, name)
            ax.plot(
                epochs,
                scale * np.array(values),
                color=colors[number % 10],
                label=str(run.folder),
                marker="o",
                markersize=3,
            )
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _selecting(line: Mapping[str, Any]) -> float:
    return next(iter(modes(line).values()))["rank1"]


def _words(name: str) -> str:
    mode, _, metric = name.partition(".")
    return f"{metric.replace('rank1', 'Rank-1')} of {mode.replace('_', ' ')}" if metric else name.replace("_", " ")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
