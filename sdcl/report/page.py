"""The report page: HTML with everything in it, readable without a network and without JavaScript."""

from __future__ import annotations

import hashlib
import html
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdcl.checkpoints import read_checkpoint, write_atomically
from sdcl.config import Config, ModelConfig
from sdcl.data import regdb, sysu
from sdcl.data.loading import open_image
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.embedding import retrieval_features
from sdcl.errors import UserError
from sdcl.models import Embeddings, SDCLModel, build_model, load_checkpoint
from sdcl.report import figures, views
from sdcl.report.published import RESULTS
from sdcl.report.run_files import RunFiles, modes, read_run
from sdcl.report.style import CSS
from sdcl.retrieval import METRICS, TestSet, chance_table, embed_test_set, load_test_set
from sdcl.version import __version__

__all__ = ["write_report"]

Section = tuple[str, str, str]
"""Anchor, heading, HTML."""


def write_report(
    folder: Path,
    data_dir: Path | None = None,
    cache_features: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Path:
    """Writes report.html into a run folder; the test images are embedded once with best.pth.

    Args:
        folder: of a run; it may still be going on.
        data_dir: where the data set is now, if no longer where the run found it.
        cache_features: keep the embeddings as features.npz and use them again while best.pth stays the same.
        say: told what is being done.

    Returns:
        The page's path.

    Raises:
        UserError: no run, no best.pth, or data that are not there.
    """
    run = read_run(folder)
    best = folder / "best.pth"
    if not best.is_file():
        raise UserError(f"{folder} holds no best.pth: it is written at the end of the first epoch")
    checkpoint = read_checkpoint(best)
    trial = checkpoint["trial"]
    config = run.config if data_dir is None else Config.from_json({**run.config.to_json(), "data_dir": str(data_dir)})
    test = load_test_set(config, trial)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(ModelConfig(**{**checkpoint["config"]["model"], "pretrained": None})).to(device)
    load_checkpoint(model, best)
    say(f"embedding {sum(map(len, test.images.values()))} test images with {best} (epoch {checkpoint['epoch']})")
    embeddings = _embeddings(model, test, config, best, folder / "features.npz" if cache_features else None)

    say("drawing")
    sections = [
        _curves(run),
        ("results", "Results", _result_table(run, test)),
        *_retrieval(test, embeddings, config),
        _tsne(test, embeddings),
        _attention(model, test),
        _augmentation(config, trial),
        ("settings", "Settings and machine", _settings(run, device)),
    ]
    page = folder / "report.html"
    text = _page(run, checkpoint["epoch"], sections)
    write_atomically(page, lambda p: p.write_text(text, encoding="utf-8"))
    return page


def _embeddings(
    model: SDCLModel, test: TestSet, config: Config, best: Path, cache: Path | None
) -> dict[str, Embeddings]:
    """The test images' embeddings, from the cache where it is of these weights and images."""
    if cache is None:
        return embed_test_set(model, test, config)
    digest = hashlib.sha256(best.read_bytes())
    for modality in MODALITIES:
        digest.update("\n".join(record.path for record in test.images[modality]).encode())
    key = digest.hexdigest()
    if cache.is_file():
        with np.load(cache) as saved:
            if str(saved["key"]) == key:
                return {
                    m: Embeddings(*(torch.from_numpy(saved[f"{m}_{x}"]) for x in Embeddings._fields))
                    for m in MODALITIES
                }
    embeddings = embed_test_set(model, test, config)
    arrays = {f"{m}_{x}": getattr(e, x).cpu().numpy() for m, e in embeddings.items() for x in e._fields}

    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, key=np.array(key), **arrays)

    write_atomically(cache, save)
    return embeddings


# -- sections ----------------------------------------------------------------------------------------------------------


def _curves(run: RunFiles) -> Section:
    behind = (
        ""
        if run.published is None
        else (
            " The grey lines are the published run."
            if run.published == "sysu"
            else " Grey: the published runs, their mean and the range of the ten trials."
        )
    )
    parts = [
        _figure(
            figures.data_uri(figures.retrieval_figure(run)),
            "Rank-1 and mAP by epoch",
            "Tests at the end of each epoch, on the concatenated embedding." + behind,
        ),
        _figure(
            figures.data_uri(figures.cluster_figure(run)),
            "Clusters and outliers by epoch",
            "Pseudo-labels that the epoch was trained with. Too few clusters merge people, too many split them.",
        ),
        _figure(
            figures.data_uri(figures.loss_figure(run)),
            "Loss by epoch",
            "The sum alternates between even and odd epochs once neighbours across modalities take part: visible to "
            "infrared (even) has a tenth of the weight of infrared to visible (odd).",
        ),
    ]
    truth = figures.truth_figure(run)
    if truth is not None:
        parts.append(
            _figure(
                figures.data_uri(truth),
                "Pseudo-labels against true identities",
                "True identities serve this picture alone, never the training.",
            )
        )
    return "curves", "Epoch by epoch", "".join(parts)


def _result_table(run: RunFiles, test: TestSet) -> str:
    if run.results is None:
        table = {"chance": chance_table(test, run.config)}
        note = "<p>The run has not ended: there is no final table yet.</p>"
    else:
        table, note = (
            run.results,
            f"<p>Mean ± deviation over galleries, in percent. The best epoch was chosen by {_e(run.results['selected_by'])}.</p>",
        )
    labels = {
        "best": "best",
        "last": "last epoch",
        "stage1": "stage 1 alone",
        "start": "before training",
        "chance": "chance",
    }
    parts = {"best": modes(table), **{name: table[name] for name in labels if name in table}}
    if run.published is not None:
        labels["published"], parts["published"] = "published", RESULTS[run.published]
    head = "".join(f"<th>{name}</th>" for name in ("R1", "R5", "R10", "R20", "mAP", "mINP"))
    body = []
    for mode in [task.mode for task in test.tasks]:
        body.append(f'<tr class="mode"><th colspan="7">{_e(mode.replace("_", " "))}</th></tr>')
        for name, label in labels.items():
            if mode in parts.get(name, {}):
                cells = "".join(f"<td>{_percent(parts[name][mode], metric)}</td>" for metric in METRICS)
                body.append(f'<tr class="{name}"><th>{label}</th>{cells}</tr>')
    return f'{note}<div class="scroll"><table class="results"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _percent(row: dict[str, float], metric: str) -> str:
    if metric not in row:
        return "–"
    deviation = f"{100 * row.get(f'{metric}_std', 0.0):.2f}"
    return f"{100 * row[metric]:.2f}" + (f" <small>± {deviation}</small>" if float(deviation) else "")


def _retrieval(test: TestSet, embeddings: dict[str, Embeddings], config: Config) -> Iterator[Section]:
    """Ranked lists of each mode and distances of pairs."""
    features = {m: retrieval_features(e, config.dataset == "sysu", config.shallow) for m, e in embeddings.items()}
    parts = []
    for task in test.tasks:
        ranking = views.rank_gallery(test, task, features, config.dataset == "sysu")
        found = f"{len(ranking.rows):,} queries, {len(task.galleries[0][1]):,} gallery images, mAP {100 * ranking.average_precision.mean():.1f} %"
        parts.append(f"<h3>{_e(task.mode.replace('_', ' ').capitalize())} <small>{found}</small></h3>")
        for best, name in ((True, "Best queries"), (False, "Worst queries")):
            lists = ranking.lists(test, task, task.galleries[0][1], count=4, top=10, best=best)
            parts.append(f'<h4>{name}</h4><div class="ranked">{"".join(map(_ranked, lists))}</div>')
    yield (
        "ranked",
        "Ranked lists",
        "<p>Query and its ten nearest gallery images of the first gallery; "
        '<span class="key right">✓ right</span>, <span class="key wrong">✗ wrong identity</span>. AP is the query\'s average precision, '
        f"c the camera. One query of an identity.</p>{''.join(parts)}",
    )

    ids = {m: np.array([r.identity for r in records]) for m, records in test.images.items()}
    pairs = views.pair_distances(features, ids)
    notes = [
        f"nearer than a negative: {100 * views.separation(*pair):.1f} %" if len(pair[0]) and len(pair[1]) else ""
        for pair in pairs.values()
    ]
    yield (
        "distances",
        "Distances",
        _figure(
            figures.data_uri(figures.distance_figure(pairs, notes)),
            "Histograms of distances of positive and negative pairs",
            "Cosine distances between test images. The number above each panel is the probability that a pair of one identity is nearer "
            "than a pair of two (50 % is chance). What retrieval needs is a gap in the panel across modalities.",
        ),
    )


def _ranked(ranked: views.RankedList) -> str:
    query = _photo(ranked.query, f"AP {100 * ranked.average_precision:.0f} %", "query")
    hits = "".join(
        _photo(r, f"{'✓' if right else '✗'} id {r.identity}, c{r.camera}", "right" if right else "wrong")
        for r, right in ranked.top
    )
    return f'<div class="row">{query}<span class="arrow">→</span>{hits}</div>'


def _tsne(test: TestSet, embeddings: dict[str, Embeddings]) -> Section:
    ids = {m: np.array([r.identity for r in records]) for m, records in test.images.items()}
    rows = views.spread_identities(ids, identities=16, images=16)
    if sum(map(len, rows.values())) < 5:
        return "tsne", "Embeddings", "<p>Too few test identities are in both modalities for a map.</p>"

    def joined(level: str) -> Tensor:
        return torch.cat(
            [getattr(embeddings[m], level)[torch.from_numpy(rows[m]).to(embeddings[m].deep.device)] for m in MODALITIES]
        )

    points = {level: views.tsne(joined(level)) for level in ("shallow", "deep")}
    infrared = np.repeat([False, True], [len(rows[m]) for m in MODALITIES])
    identity = np.concatenate([ids[m][rows[m]] for m in MODALITIES])
    return (
        "tsne",
        "Embeddings",
        _figure(
            figures.data_uri(figures.scatter_figure(points, infrared, identity), "png"),
            "t-SNE of shallow and deep embeddings",
            f"t-SNE of the test images of {len(np.unique(identity))} identities, {len(identity)} images. Above, groups should be of one colour; "
            "below, the two colours should mix.",
        ),
    )


def _attention(model: SDCLModel, test: TestSet) -> Section:
    ids = {m: np.array([r.identity for r in records]) for m, records in test.images.items()}
    rows = views.spread_identities(ids, identities=6, images=1)
    records = [
        (m, test.images[m][r])
        for pair in zip(*(rows[m] for m in MODALITIES), strict=True)
        for m, r in zip(MODALITIES, pair, strict=True)
    ]
    cells = []
    for item in views.attention_maps(model, records):
        picture = open_image(item.record.path).resize((model.config.image_width, model.config.image_height))
        maps = "".join(
            _image(figures.photo_uri(figures.heat(picture, getattr(item, level)), 144), level)
            for level in ("deep", "shallow")
        )
        cells.append(
            f'<div class="triple">{_image(figures.photo_uri(picture, 144), f"{item.modality}, id {item.record.identity}")}{maps}</div>'
        )
    return (
        "attention",
        "Attention of the class token",
        "<p>Mean over the heads of the last block's attention from the class token to the patches, bright where it is high. The deep head "
        f'reads the patches after all blocks, the shallow head as they come out of the patch embedding.</p><div class="triples">{"".join(cells)}</div>',
    )


def _augmentation(config: Config, trial: int) -> Section:
    parts = []
    names = {
        "visible": "view 1 | view 2 (one channel over all three), three draws of each",
        "infrared": "six draws (one channel over all three, grey, or unchanged)",
    }
    for modality in MODALITIES:
        records = (
            regdb.train_records(config.data_dir, modality, trial)
            if config.dataset == "regdb"
            else sysu.train_records(config.data_dir, modality)
        )
        chosen = [records[i] for i in np.linspace(0, len(records) - 1, 4).round().astype(int)]
        rows = []
        for record, pictures in views.augmented_views(config, modality, chosen, draws=6):
            drawn = "".join(_image(figures.photo_uri(p), "") for p in pictures)
            rows.append(
                f'<div class="row">{_photo(record, "the image", "query")}<span class="arrow">→</span>{drawn}</div>'
            )
        parts.append(
            f'<h3>{modality.capitalize()} <small>{names[modality]}</small></h3><div class="ranked">{"".join(rows)}</div>'
        )
    return "views", "What the network sees in training", "".join(parts)


def _settings(run: RunFiles, device: torch.device) -> str:
    seconds: dict[str, float] = {}
    for line in run.log:
        for phase, value in line["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    machine = {
        "training time": f"{sum(seconds.values()) / 60:.1f} min in {len(run.log)} epochs ("
        + ", ".join(f"{phase} {value / 60:.1f}" for phase, value in seconds.items())
        + ")",
        "sdcl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "this page's machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "this page's device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }
    settings = run.config.to_json()
    settings = {
        **{k: v for k, v in settings.items() if k != "model"},
        **{f"model.{k}": v for k, v in settings["model"].items()},
    }
    rows = "".join(f"<dt>{_e(k)}</dt><dd>{_e(_setting(v))}</dd>" for k, v in settings.items())
    return f'<dl>{"".join(f"<dt>{_e(k)}</dt><dd>{_e(v)}</dd>" for k, v in machine.items())}</dl><h3>Settings</h3><dl class="settings">{rows}</dl>'


def _setting(value: object) -> str:
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# -- pieces ------------------------------------------------------------------------------------------------------------


def _page(run: RunFiles, epoch: int, sections: Sequence[Section]) -> str:
    line = next((entry for entry in run.log if entry["epoch"] == epoch), run.log[-1])
    table = modes(run.results) if run.results is not None else modes(line)
    numbers = "".join(
        f'<div class="number"><b>{100 * row[metric]:.1f}</b><span>{name}, {_e(mode.replace("_", " "))}</span></div>'
        for mode, row in table.items()
        for metric, name in (("rank1", "Rank-1"), ("mAP", "mAP"))
    )
    title = f"SDCL, {run.folder.resolve().name}"
    data = f"{run.config.data_dir}{', drawn people' if run.config.synthetic_seed is not None else ''}"
    done = f"{len(run.log)} of {run.config.epochs} epochs, best is epoch {epoch}" + (
        "" if run.results is not None else " so far"
    )
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>' for anchor, heading, content in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_e(title)}</title><style>{CSS}</style></head><body>\n<header><h1>{_e(title)}</h1>'
        f'<p>{_e(data)} · {_e(done)} · percent</p><div class="numbers">{numbers}</div></header>\n<nav>{links}</nav>\n<main>{body}</main>\n</body></html>\n'
    )


def _figure(uri: str, alt: str, caption: str) -> str:
    return f'<figure class="wide"><img src="{uri}" alt="{_e(alt)}"><figcaption>{_e(caption)}</figcaption></figure>'


def _image(uri: str, caption: str, kind: str = "") -> str:
    return f'<figure class="photo {kind}"><img src="{uri}" alt="{_e(caption)}">{f"<figcaption>{_e(caption)}</figcaption>" if caption else ""}</figure>'


def _photo(record: ImageRecord, caption: str, kind: str) -> str:
    return _image(figures.photo_uri(open_image(record.path)), caption, kind)


def _e(value: object) -> str:
    return html.escape(str(value))
