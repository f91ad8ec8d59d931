"""CCLNet's section of a run's report: clusters with their images, and how well their sentences tell them apart.

The learned vectors are no words, and the nearest words to them mean nothing; so the page shows what a sentence stands
for, images, and whether the selected weights find it again among all sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.cclnet.handover import Handover, read_handover
from sdcl.cclnet.method import embed_projections
from sdcl.cclnet.settings import Config
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.training_set import load_training_set
from sdcl.errors import UserError
from sdcl.frame.embedding import embed_paths
from sdcl.report.markup import Section, photo
from sdcl.report.page import ReportedRun

__all__ = ["chosen_rows", "sentences", "text_similarity"]

CLUSTERS, IMAGES = 8, 6
"""Of each modality: clusters that are shown, and images of each."""


def sentences(reported: ReportedRun) -> Iterator[Section]:
    """Nothing before stage 1 has ended, or when the training images are no longer those of the run."""
    path = reported.run.folder / "prompts.pth"
    if not path.is_file():
        return
    config = cast(Config, reported.run.config)
    try:
        records = load_training_set(config, reported.trial).records
        handover = read_handover(path, records)
    except UserError as error:
        yield "sentences", "Clusters and their sentences", f"<p>Not drawn: {error}</p>"
        return
    parts = [_modality(reported, config, records[m], handover, m) for m in MODALITIES]
    yield (
        "sentences",
        "Clusters and their sentences",
        "<p>Stage 1 gives each cluster a sentence with four learned vectors, which are no words. Here are clusters of "
        "stage 0 with some of their training images. An image is framed right where, with the selected weights, its "
        "own cluster's sentence has the largest product with it among all sentences of its modality; the share counts "
        f"those.</p>{''.join(parts)}",
    )


def _modality(
    reported: ReportedRun, config: Config, records: list[ImageRecord], handover: Handover, modality: str
) -> str:
    labels, texts = handover.labels[modality].numpy(), handover.texts[modality]
    rows = chosen_rows(labels, CLUSTERS, IMAGES)
    shown = [records[row] for own in rows.values() for row in own]
    projections = embed_paths(
        embed_projections, reported.model, [r.path for r in shown], modality, config.image_size,
        batch_size=config.embedding_batch, precision=config.precision,
    )["projections"].cpu()  # fmt: skip
    best = (projections @ texts.t()).argmax(1).tolist()
    right = [b == labels[row] for b, row in zip(best, (row for own in rows.values() for row in own), strict=True)]
    html, at = [], 0
    for cluster, own in rows.items():
        verdicts = right[at : at + len(own)]
        pictures = "".join(
            photo(record, f"id {record.identity}", "right" if good else "wrong")
            for record, good in zip(shown[at : at + len(own)], verdicts, strict=True)
        )
        share = f"{sum(verdicts)} of {len(own)}"
        html.append(f'<div class="row"><span>cluster {cluster}<br>{share}</span>{pictures}</div>')
        at += len(own)
    between = text_similarity(texts)
    title = (
        f"<h3>{modality.capitalize()} <small>{len(texts)} sentences; {sum(right)} of {len(right)} images shown find "
        f"their own; cosine of two sentences {between.mean():.2f} on average, {between.max():.2f} at most</small></h3>"
    )
    return f'{title}<div class="ranked">{"".join(html)}</div>'


def chosen_rows(labels: np.ndarray, clusters: int, images: int) -> dict[int, list[int]]:
    """Rows to show: of clusters spread over all numbers, evenly spaced ones of each.

    Args:
        labels: [N], -1 = outlier.

    Returns:
        cluster → its rows, at most `images`.
    """
    found = np.unique(labels[labels >= 0])
    chosen = found[np.linspace(0, len(found) - 1, min(clusters, len(found))).round().astype(int)]
    out = {}
    for cluster in chosen.tolist():
        own = np.flatnonzero(labels == cluster)
        out[cluster] = own[np.linspace(0, len(own) - 1, min(images, len(own))).round().astype(int)].tolist()
    return out


def text_similarity(texts: Tensor) -> Tensor:
    """Cosines of every two different text vectors of [K, P]; [1] of a zero where there is one."""
    x = F.normalize(texts, dim=1)
    pairs = torch.triu_indices(len(x), len(x), offset=1)
    cosines = (x @ x.t())[pairs[0], pairs[1]]
    return cosines if len(cosines) else torch.zeros(1)
