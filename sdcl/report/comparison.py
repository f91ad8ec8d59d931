"""Runs beside each other and beside the published one; where a run leaves the published band, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdcl.errors import UserError
from sdcl.frame.retrieval import modes
from sdcl.report.figures import PUBLISHED, STYLE
from sdcl.report.published import BAND_NAMES, RESULTS, band, published_curve
from sdcl.report.run_files import RunFiles, series
from sdcl.tables import align_columns

__all__ = ["Departure", "comparison_figure", "comparison_table", "departures", "verdict"]


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


def departures(run: RunFiles, published: str) -> list[Departure]:
    """Where each of a run's quantities first leaves the published band, by epoch.

    A single epoch outside is taken for noise. Better than published (higher metrics, lower loss) is no departure.
    """
    found = []
    for name in BAND_NAMES[published]:
        low, high = band(published, name)
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
    meanings = _meanings(run, found)
    return "\n".join([*lines, *(f"  This usually means: {meaning}" for meaning in meanings)])


def _meanings(run: RunFiles, found: Sequence[Departure]) -> list[str]:
    """The usual reasons, from what left the band, when, and how."""
    at = {(d.name, d.side): d.epoch for d in found}
    early = {name for name, _ in at if at.get((name, "below"), at.get((name, "above"), 99)) <= 1}
    metrics = {d.name: d.epoch for d in found if "." in d.name}
    losses = series(run.log, "loss")[1]
    out = []
    if len(losses) > 1 and losses[1] > 0.9 * losses[0]:
        out.append(
            f"the loss is flat in the first epochs ({losses[0]:.2f}, then {losses[1]:.2f}): the cluster memory chases "
            "single images. Try --cluster-momentum-first-epoch 0.9 (or 0.99), for that epoch alone"
        )
    if early & set(metrics):
        out.append(
            "the first test is far too low: the network did not start from the published pre-training. Look whether "
            "--pretrained names the ICS weights (vit_base_ics_cfs_lup.pth) and that 172 tensors were loaded"
        )
    for modality in ("visible", "infrared"):
        name = f"{modality}_clusters"
        if (name, "below") in at:
            out.append(
                f"too few {modality} clusters: many outliers mean embeddings that are no good yet, or an --eps that "
                "is too small; few outliers mean people merged into one cluster by an --eps that is too large. It can "
                "also be an incomplete copy of the data: the prepare program counts them"
            )
        if (name, "above") in at:
            out.append(f"too many {modality} clusters: people are split; --eps too small, or --k1 too small")
    stage2 = run.stage2_epoch
    if ("associated_visible_clusters", "below") in at or (stage2 and metrics and min(metrics.values()) >= stage2):
        out.append(
            "stage 2 does not take hold: too few infrared clusters are associated, or stage 2 began from poor stage-1 "
            "weights. Compare stage 1's best Rank-1 with the published one, and --association-k"
        )
    if metrics and not out:
        out.append(
            "the pseudo-labels are as published but the tests are lower: a part of the data is missing (the usual copy "
            "of SYSU-MM01 with 367 identities costs about 10 points), the batch-normalisation replicas differ "
            "(--bn-replicas 2 is the published setting), or the learning rate does"
        )
    if not out:
        out.append("settings that differ from the published ones: compare config.json with the preset")
    return out


def comparison_table(runs: Sequence[RunFiles], published: str | None) -> str:
    """A line a run and mode: epochs, clusters of the last epoch, final results (or the best epoch's so far)."""
    rows: list[tuple[str, ...]] = [("run", "epochs", "clusters vis/inf", "mode", "R1", "R10", "R20", "mAP", "mINP")]
    keys = ("rank1", "rank10", "rank20", "mAP", "mINP")
    for run in runs:
        last = run.log[-1]
        table = modes(run.results) if run.results is not None else modes(max(run.log, key=_selecting))
        done = f"{len(run.log)}/{run.config.epochs}" + ("" if run.results is not None else " (goes on)")
        clusters = f"{last['visible_clusters']}/{last['infrared_clusters']}"
        for mode, row in table.items():
            rows.append(
                (str(run.folder), done, clusters, mode.replace("_", " "), *(f"{100 * row[k]:.2f}" for k in keys))
            )
    if published is not None:
        curve = published_curve(published)
        clusters = "/".join(f"{np.nanmean(curve[f'{m}_clusters'][:, -1]):.0f}" for m in ("visible", "infrared"))
        epochs = curve["loss"].shape[1]
        for mode, row in RESULTS[published].items():
            rows.append(
                (
                    "published",
                    f"{epochs}/{epochs}",
                    clusters,
                    mode.replace("_", " "),
                    *(f"{100 * row[k]:.2f}" for k in keys),
                )
            )
    return align_columns(rows, left=4)


@matplotlib.rc_context(STYLE)
def comparison_figure(runs: Sequence[RunFiles], published: str | None) -> Figure:
    """Rank-1 and mAP of the first mode, loss and clusters by epoch: all runs in each panel, the band behind."""
    first = next(iter(modes(runs[0].log[0])))
    if any(first not in modes(run.log[0]) for run in runs) or (published and first not in RESULTS[published]):
        raise UserError("these runs are not of one data set: their tests have other modes. Compare them by themselves")
    panels = {
        f"{first}.rank1": f"Rank-1, {first.replace('_', ' ')}, %",
        f"{first}.mAP": f"mAP, {first.replace('_', ' ')}, %",
        "loss": "loss",
        "visible_clusters": "visible clusters",
        "infrared_clusters": "infrared clusters",
        "associated_visible_clusters": "associated clusters, stage 2",
    }
    figure = Figure(figsize=(13, 7), layout="constrained")
    colors = matplotlib.colormaps["tab10"](np.arange(10))
    for ax, (name, title) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        scale = 100 if "." in name else 1
        if published is not None:
            low, high = band(published, name)
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


def _selecting(line: dict) -> float:
    return next(iter(modes(line).values()))["rank1"]


def _words(name: str) -> str:
    mode, _, metric = name.partition(".")
    return f"{metric.replace('rank1', 'Rank-1')} of {mode.replace('_', ' ')}" if metric else name.replace("_", " ")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
