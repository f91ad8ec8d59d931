"""Drawings of the report. Each function takes plain data and returns a matplotlib Figure; `data_uri` embeds it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sdcl.frame.diagnostics import SIZE_BINS
from sdcl.frame.published import series
from sdcl.frame.retrieval import modes
from sdcl.report.run_files import RunFiles

__all__ = [
    "cluster_figure",
    "data_uri",
    "distance_figure",
    "heat",
    "loss_figure",
    "photo_uri",
    "ranked_figure",
    "retrieval_figure",
    "save_figure",
    "scatter_figure",
    "truth_figure",
]

VISIBLE, INFRARED, THIRD = "#d1812b", "#4b5fa8", "#2f8f6b"
PUBLISHED, INK, FAINT = "#a9a9b3", "#33333b", "#e6e6ea"
MODE_COLORS = ("#4b5fa8", "#d1812b")
STYLE: Any = {
    "font.size": 9.5,
    "axes.edgecolor": "#b5b5bd",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#6a6a74",
    "ytick.color": "#6a6a74",
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "sdcl",
}


@matplotlib.rc_context(STYLE)
def data_uri(figure: Figure, form: str = "svg") -> str:
    """A figure as a data URI: "svg" for lines, "png" for many points."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=170, metadata={"Date": None} if form == "svg" else None)
    kind = "svg+xml" if form == "svg" else form
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@matplotlib.rc_context({**STYLE, "pdf.fonttype": 42})
def save_figure(figure: Figure, form: str, path: Path) -> None:
    """Writes a figure as "pdf" (its fonts embedded as TrueType, which publishers ask for) or "svg"; the same figure
    gives the same bytes."""
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}[form]
    figure.savefig(path, format=form, metadata=metadata)


def photo_uri(image: Image.Image, height: int = 128) -> str:
    """A picture as a JPEG data URI, made smaller (never larger) to `height` pixels."""
    if image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heat(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """A picture with a map [rows, columns] over it: dark where it is low, in its own light where it is high."""
    span = weights.max() - weights.min()
    scaled = (weights - weights.min()) / (span if span > 0 else 1)
    mask = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)).clip(
        0, 1
    )
    colors = matplotlib.colormaps["inferno"](mask)[..., :3]
    grey = np.asarray(image.convert("L"), dtype=float)[..., None] / 255
    blend = (0.35 + 0.1 * mask[..., None]) * grey + (0.6 - 0.1 * mask[..., None]) * colors
    return Image.fromarray((blend.clip(0, 1) * 255).round().astype(np.uint8))


@matplotlib.rc_context(STYLE)
def retrieval_figure(run: RunFiles) -> Figure:
    """Rank-1 and mAP by epoch, one line a mode."""
    figure, axes = _panels(("Rank-1, %", "mAP, %"))
    tested: dict[str, Any] = next((modes(line) for line in run.log if modes(line)), {})
    for ax, metric in zip(axes, ("rank1", "mAP"), strict=True):
        for mode, color in zip(tested, MODE_COLORS, strict=False):
            _published(ax, run, f"{mode}.{metric}", scale=100)
            epochs, values = series(run.log, f"{mode}.{metric}")
            ax.plot(epochs, 100 * np.array(values), color=color, label=mode.replace("_", " "), marker=_marker(epochs))
            if run.results is not None and mode in run.results["chance"]:
                chance = 100 * run.results["chance"][mode][metric]
                ax.axhline(chance, color=color, linestyle=":", linewidth=1, label=f"chance, {mode.replace('_', ' ')}")
    return _finish(figure, axes, run)


@matplotlib.rc_context(STYLE)
def loss_figure(run: RunFiles) -> Figure:
    """The loss, and its terms before they are weighted."""
    figure, axes = _panels(("loss", "its terms, unweighted"))
    _published(axes[0], run, "loss")
    epochs, values = series(run.log, "loss")
    axes[0].plot(epochs, values, color=INK, label="this run", marker=_marker(epochs))
    names = sorted({name for line in run.log for name in line if name.startswith(run.method.terms or ("loss_",))})
    styles = ("-", "--", "-.", ":")
    used: dict[str, int] = {}
    for name in names:
        modality = next((m for m in ("visible", "infrared") if m in name), "")
        style = styles[used.get(modality, 0) % len(styles)]
        used[modality] = used.get(modality, 0) + 1
        color = {"visible": VISIBLE, "infrared": INFRARED, "": THIRD}[modality]
        epochs, values = series(run.log, name)
        axes[1].plot(epochs, values, linestyle=style, color=color, label=name.replace("_", " "), linewidth=1.4,
                     marker=_marker(epochs), markersize=3)  # fmt: skip
    _finish(figure, axes, run)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1.02))
    return figure


@matplotlib.rc_context(STYLE)
def cluster_figure(run: RunFiles) -> Figure:
    """Clusters and outliers of each modality."""
    figure, axes = _panels(("clusters", "outliers, images"))
    for name, color in (("visible", VISIBLE), ("infrared", INFRARED)):
        for ax, what in zip(axes, ("clusters", "outliers"), strict=True):
            _published(ax, run, f"{name}_{what}")
            epochs, values = series(run.log, f"{name}_{what}")
            ax.plot(epochs, values, color=color, label=name, marker=_marker(epochs))
    epochs, values = series(run.log, "associated_visible_clusters")
    if epochs:
        _published(axes[0], run, "associated_visible_clusters")
        axes[0].plot(epochs, values, color=THIRD, label="clusters of both modalities", marker=_marker(epochs))
    names = [f"{m}_identities" for m in ("visible", "infrared")]
    for count in sorted({run.log[-1][name] for name in names if name in run.log[-1]}):
        axes[0].axhline(count, color=INK, linestyle=":", linewidth=1, label=f"true identities: {count}")
    return _finish(figure, axes, run)


@matplotlib.rc_context(STYLE)
def truth_figure(run: RunFiles) -> Figure | None:
    """Pseudo-labels against true identities; None where the run did not log it."""
    if not any("visible_purity" in line or "infrared_purity" in line for line in run.log):
        return None
    figure, axes = _panels(("clusters against identities", "pairs across images", "cluster sizes, last epoch"))
    for name, color in (("visible", VISIBLE), ("infrared", INFRARED)):
        for what, style in (("purity", "-"), ("ari", "--")):
            epochs, values = series(run.log, f"{name}_{what}")
            label = f"{name} {'ARI' if what == 'ari' else what}"
            axes[0].plot(
                epochs, values, color=color, linestyle=style, label=label, marker=_marker(epochs), markersize=3
            )
        for other in ("visible", "infrared"):
            epochs, values = series(run.log, f"neighbors_{name}_{other}")
            if epochs:
                axes[1].plot(epochs, values, color=color, linestyle="-" if name == other else "-.", linewidth=1.4,
                             label=f"neighbours {name} to {other}", marker=_marker(epochs), markersize=3)  # fmt: skip
    epochs, values = series(run.log, "association_accuracy")
    if epochs:
        axes[1].plot(epochs, values, color=THIRD, label="association", marker=_marker(epochs))
    bins = ["1", *(f"{a}–{b - 1}" for a, b in zip(SIZE_BINS[:-1], SIZE_BINS[1:], strict=True)), f"{SIZE_BINS[-1]}+"]
    place = np.arange(len(bins))
    for offset, name, color in ((-0.2, "visible", VISIBLE), (0.2, "infrared", INFRARED)):
        sizes = run.log[-1].get(f"{name}_cluster_sizes")
        if sizes:
            axes[2].bar(place + offset, sizes, 0.4, color=color, label=name)
    _finish(figure, axes[:2], run, top=1.03)
    axes[2].set_xticks(place, bins, rotation=45, ha="right")
    axes[2].set_xlabel("images in a cluster")
    axes[2].grid(axis="x", visible=False)
    axes[2].legend()
    return figure


@matplotlib.rc_context(STYLE)
def distance_figure(distances: dict[str, tuple[np.ndarray, np.ndarray]], notes: Sequence[str]) -> Figure:
    """Histograms of cosine distances of pairs of one identity and of two; a note under each title."""
    figure, axes = _panels(list(distances))
    for ax, (name, (positive, negative)), note in zip(axes, distances.items(), notes, strict=True):
        farthest = max((float(x.max()) for x in (positive, negative) if len(x)), default=1.0)
        edges = [farthest * place / 59 for place in range(60)]
        for values, color, label in ((positive, THIRD, "same identity"), (negative, "#c2554d", "different identities")):
            if len(values):
                ax.hist(values, edges, density=True, color=color, alpha=0.55, label=f"{label}, {len(values):,} pairs")
        ax.set_title(f"{name}\n{note}")
        ax.set_xlabel("cosine distance")
        ax.set_yticks([])
        ax.grid(axis="y", visible=False)
        ax.legend(loc="upper left", fontsize=8)
        ax.set_ylim(top=ax.get_ylim()[1] * 1.25)
    return figure


@matplotlib.rc_context(STYLE)
def scatter_figure(points: dict[str, np.ndarray], infrared: np.ndarray, ids: np.ndarray) -> Figure:
    """t-SNE of each level (points [n, 2]) by identity (above) and by modality (below); infrared bool [n], ids [n]."""
    figure = Figure(figsize=(10.4, 9.6), layout="constrained")
    axes = figure.subplots(2, len(points), squeeze=False)
    numbers = np.unique(ids, return_inverse=True)[1]
    palette = matplotlib.colormaps["tab20"](np.arange(20))[numbers % 20]
    for column, (level, xy) in enumerate(points.items()):
        for row, name in enumerate(("identity", "modality")):
            ax = axes[row, column]
            for marker, rows, color in (("o", ~infrared, VISIBLE), ("^", infrared, INFRARED)):
                ax.scatter(*xy[rows].T, c=palette[rows] if row == 0 else color, marker=marker, s=26,
                           linewidths=0.4, edgecolors="white")  # fmt: skip
            ax.set_title(f"{level}, coloured by {name}")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(True)
    handles = [
        Line2D([], [], marker=m, color="#77777f", linestyle="", label=x)
        for m, x in (("o", "visible"), ("^", "infrared"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def ranked_figure(query: Image.Image, hits: Sequence[tuple[Image.Image, str]]) -> Figure:
    """A query, framed, and the images that were found for it with a caption each, ten in a line."""
    lines = -(-len(hits) // 10)
    columns = min(len(hits), 10) + 1
    figure = Figure(figsize=(1.2 * columns, 2.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    places = [ax for line in axes for ax in line[1:]]
    shown = [(axes[0, 0], query, "query"), *((ax, *hit) for ax, hit in zip(places, hits, strict=False))]
    for ax, image, caption in shown:
        ax.imshow(image.convert("RGB"))
        ax.set_title(caption, loc="center", fontsize=9)
    axes[0, 0].set_axis_on()
    axes[0, 0].set(xticks=[], yticks=[])
    axes[0, 0].spines[:].set(visible=True, color=VISIBLE, linewidth=3)
    return figure


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, len(titles))))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return figure, axes


def _published(ax: Axes, run: RunFiles, name: str, scale: float = 1.0) -> None:
    """The published curve of a quantity behind this run's: a line, with several runs their mean and range."""
    if run.curve is None or name not in run.curve.columns:
        return
    values = scale * run.curve.values()[name]
    epochs = np.flatnonzero(~np.isnan(values).all(0))
    values = values[:, epochs]
    known = ax.get_legend_handles_labels()[1]
    label = None if "published" in known else "published"
    if len(values) > 1:
        ax.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=PUBLISHED, alpha=0.22,
                        linewidth=0, zorder=1)  # fmt: skip
    ax.plot(epochs, np.nanmean(values, 0), color=PUBLISHED, linewidth=3.2, alpha=0.8, label=label, zorder=1.5)


def _finish(figure: Figure, axes: Sequence[Axes], run: RunFiles, top: float | None = None) -> Figure:
    """Epoch axis, values from 0 (to `top`), starts of stages, legend."""
    last = max(run.config.epochs - 1, run.log[-1]["epoch"])
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.set_ylim(0, top or 1.08 * max(ax.dataLim.ymax, 1e-3))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
        for first, name in run.stages:
            ax.axvline(first - 0.5, color="#8d8d97", linewidth=0.9, linestyle=(0, (4, 3)))
            ax.annotate(name, (first - 0.5, 0.99), xycoords=("data", "axes fraction"), fontsize=8, color="#6a6a74",
                        xytext=(3, 0), textcoords="offset points", va="top")  # fmt: skip
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best")
    return figure


def _marker(points: Sequence[Any]) -> str | None:
    """A dot on every point of a short curve, and on a lone one, which a line would not show."""
    return "o" if len(points) <= 15 else None
