"""The sections of the page, each from plain data to HTML."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sdcl.data.records import MODALITIES
from sdcl.data.sets import SETS
from sdcl.frame.provenance import describe
from sdcl.frame.retrieval import METRICS, TestSet, chance_table, modes
from sdcl.report import figures, findings
from sdcl.report.markup import Section, escape, figure, photo, row
from sdcl.report.run_files import RunFiles
from sdcl.version import __version__

if TYPE_CHECKING:
    from sdcl.report.page import ReportedRun

__all__ = ["curves", "distances", "drawings", "results", "retrieval", "settings", "tsne"]


def curves(run: RunFiles) -> Section:
    """Tests, loss and, of a method that clusters, pseudo-labels by epoch."""
    behind = "" if run.curve is None else f" Grey: published, {run.curve.what}."
    parts = [
        figure(
            figures.data_uri(figures.retrieval_figure(run)),
            "Rank-1 and mAP by epoch",
            "Tests during training." + behind,
        )
    ]
    if _clusters(run):
        parts.append(
            figure(
                figures.data_uri(figures.cluster_figure(run)),
                "Clusters and outliers by epoch",
                "Pseudo-labels that the epoch was trained with. Too few clusters merge people, too many split them.",
            )
        )
    parts.append(
        figure(
            figures.data_uri(figures.loss_figure(run)),
            "Loss by epoch",
            "The loss, and its terms before they are weighted. Their sum may jump where a stage begins.",
        )
    )
    truth = figures.truth_figure(run)
    if truth is not None:
        parts.append(
            figure(
                figures.data_uri(truth),
                "Pseudo-labels against true identities",
                "True identities serve this picture alone, never the training.",
            )
        )
    return "curves", "Epoch by epoch", "".join(parts)


def results(run: RunFiles, test: TestSet, best_epoch: int) -> Section:
    """The final table; of a run that still goes on, the selected epoch's test during training."""
    labels = {"best": "best", "last": "last epoch", **run.method.parts, "start": "before training", "chance": "chance"}
    if run.results is not None:
        tables = {"best": modes(run.results), **run.results}
        by = escape(run.results.get("selected_by", run.config.select))
        note = f"Mean ± deviation in percent. The best epoch was chosen by {by}."
    else:
        tables = {"chance": chance_table(test, run.config)}
        tables["best"] = modes(next((line for line in run.log if line["epoch"] == best_epoch), {}))
        note = "The run has not ended: this is the best epoch's test so far, in percent."
    if run.published is not None and run.method.published is not None:
        labels["published"], tables["published"] = "published", run.method.published.results[run.published]
        note += f" Published: {escape(run.method.published.source)}."
    rows = []
    for mode in tables["best"] or [task.mode for task in test.tasks]:
        rows.append(f'<tr class="mode"><th colspan="7">{escape(mode.replace("_", " "))}</th></tr>')
        for name, label in labels.items():
            if mode in tables.get(name, {}):
                cells = "".join(f"<td>{_percent(tables[name][mode], metric)}</td>" for metric in METRICS)
                rows.append(f'<tr class="{name}"><th>{label}</th>{cells}</tr>')
    head = "".join(f"<th>{name}</th>" for name in ("", "R1", "R5", "R10", "R20", "mAP", "mINP"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return "results", "Results", f'<p>{note}</p><div class="scroll">{table}</div>'


def _percent(row: dict[str, float], metric: str) -> str:
    if metric not in row:
        return "–"
    deviation = f"{100 * row.get(f'{metric}_std', 0.0):.2f}"
    return f"{100 * row[metric]:.2f}" + (f" <small>± {deviation}</small>" if float(deviation) else "")


def retrieval(reported: ReportedRun) -> Iterator[Section]:
    """Ranked lists of each mode and distances of pairs, by the method's first kind of features."""
    test, method, config = reported.test, reported.run.method, reported.run.config
    rules = SETS[config.dataset]
    features = _features(reported)
    parts = []
    for task in test.tasks:
        ranking = findings.rank_gallery(test, task, features, rules, method.similarity)
        gallery = task.galleries[0][1]
        mean = 100 * ranking.average_precision.mean()
        found = f"{len(ranking.rows):,} queries, {len(gallery):,} gallery images, mAP {mean:.1f} %"
        parts.append(f"<h3>{escape(task.mode.replace('_', ' ').capitalize())} <small>{found}</small></h3>")
        for best, name in ((True, "Best queries"), (False, "Worst queries")):
            lists = ranking.lists(test, task, gallery, count=4, top=10, best=best)
            parts.append(f'<h4>{name}</h4><div class="ranked">{"".join(map(_ranked, lists))}</div>')
    yield (
        "ranked",
        "Ranked lists",
        "<p>Query and its ten nearest gallery images of the first gallery; "
        '<span class="key right">✓ right</span>, <span class="key wrong">✗ wrong identity</span>. '
        f"AP is the query's average precision, c the camera. One query of an identity.</p>{''.join(parts)}",
    )

    yield (
        "distances",
        "Distances",
        figure(
            figures.data_uri(distances(reported)),
            "Histograms of distances of positive and negative pairs",
            "Cosine distances between test images. The number above each panel is the probability that a pair of one "
            "identity is nearer than a pair of two (50 % is chance). What retrieval needs is a gap in the panel across "
            "modalities.",
        ),
    )


def drawings(reported: ReportedRun) -> dict[str, Figure]:
    """The page's figures by name, as a paper takes them; those of pseudo-labels and of true identities where the run
    has them."""
    run = reported.run
    drawn: dict[str, Figure | None] = {"tests": figures.retrieval_figure(run), "loss": figures.loss_figure(run)}
    if _clusters(run):
        drawn["clusters"] = figures.cluster_figure(run)
    drawn |= {"pseudo-labels": figures.truth_figure(run), "distances": distances(reported)}
    drawn["t-sne"] = _map(reported)[0]
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _clusters(run: RunFiles) -> bool:
    return any("visible_clusters" in line for line in run.log)


def _features(reported: ReportedRun) -> dict[str, Tensor]:
    """Modality → the method's first kind of features [N, d] of its test images."""
    method, config = reported.run.method, reported.run.config
    by_modality = {m: method.features(levels, config, True) for m, levels in reported.embeddings.items()}
    return {m: next(iter(kinds.values())) for m, kinds in by_modality.items()}


def distances(reported: ReportedRun) -> Figure:
    """Histograms of the distances of pairs of test images, by the method's first kind of features."""
    test, features = reported.test, _features(reported)
    ids = {m: np.array([r.identity for r in records]) for m, records in test.images.items()}
    pairs = findings.pair_distances(features, ids)
    notes = [
        f"nearer than a negative: {100 * findings.separation(*pair):.1f} %" if len(pair[0]) and len(pair[1]) else ""
        for pair in pairs.values()
    ]
    return figures.distance_figure(pairs, notes)


def _ranked(ranked: findings.RankedList) -> str:
    query = photo(ranked.query, f"AP {100 * ranked.average_precision:.0f} %", "query")
    hits = "".join(
        photo(r, f"{'✓' if right else '✗'} id {r.identity}, c{r.camera}", "right" if right else "wrong")
        for r, right in ranked.top
    )
    return row(query, hits)


def tsne(reported: ReportedRun) -> Section:
    """A map of the test images' embeddings, level by level."""
    drawn, images, identities = _map(reported)
    if drawn is None:
        return "tsne", "Embeddings", "<p>Too few test identities are in both modalities for a map.</p>"
    return (
        "tsne",
        "Embeddings",
        figure(
            figures.data_uri(drawn, "png"),
            "t-SNE of the embeddings",
            f"t-SNE of {images} test images of {identities} identities. Above, groups should be of one colour; below, "
            "the two colours should mix.",
        ),
    )


def _map(reported: ReportedRun) -> tuple[Figure | None, int, int]:
    """t-SNE of test images of some identities, and their numbers of images and identities; no figure of fewer than
    five images."""
    test, embeddings = reported.test, reported.embeddings
    ids = {m: np.array([r.identity for r in records]) for m, records in test.images.items()}
    rows = findings.spread_identities(ids, identities=16, images=16)
    identity = np.concatenate([ids[m][rows[m]] for m in MODALITIES])
    if len(identity) < 5:
        return None, len(identity), len(np.unique(identity))

    def joined(level: str) -> Tensor:
        parts = [(embeddings[m][level], torch.from_numpy(rows[m])) for m in MODALITIES]
        return torch.cat([x[places.to(x.device)] for x, places in parts])

    points = {level: findings.tsne(joined(level)) for level in reversed(list(embeddings["visible"]))}
    infrared = np.repeat([False, True], [len(rows[m]) for m in MODALITIES])
    return figures.scatter_figure(points, infrared, identity), len(identity), len(np.unique(identity))


def settings(run: RunFiles, device: torch.device) -> Section:
    """Time, what made the run, and its every setting."""
    seconds: dict[str, float] = {}
    for line in run.log:
        for phase, value in line["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    phases = ", ".join(f"{phase} {value / 60:.1f}" for phase, value in seconds.items())
    machine = {
        "method": run.method.title,
        "training time": f"{sum(seconds.values()) / 60:.1f} min in {len(run.log)} epochs ({phases})",
        **describe(run.provenance),
        "versions of this page": f"sdcl {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        "machine of this page": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, "
        + (torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"),
    }
    values = run.config.to_json()
    for group in [name for name, value in values.items() if isinstance(value, dict)]:
        values |= {f"{group}.{name}": value for name, value in values.pop(group).items()}
    return (
        "settings",
        "Settings and machine",
        f'<dl>{_terms(machine)}</dl><h3>Settings</h3><dl class="settings">{_terms(values)}</dl>',
    )


def _terms(values: dict[str, Any]) -> str:
    def text(value: object) -> str:
        return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text(value))}</dd>" for name, value in values.items())
