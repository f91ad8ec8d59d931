"""What the report shows of the selected weights, as plain data: rankings, distances, maps of the embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.manifold import TSNE
from torch import Tensor

from sdcl.data.records import ImageRecord
from sdcl.data.sets import DataSet, Task, TestSet
from sdcl.data.transforms import MEAN, STD

__all__ = [
    "RankedList",
    "Ranking",
    "as_picture",
    "pair_distances",
    "rank_gallery",
    "separation",
    "spread_identities",
    "tsne",
]


@dataclass(frozen=True)
class RankedList:
    """A query, its average precision, and the first gallery images with whether each is of its identity."""

    query: ImageRecord
    average_precision: float
    top: list[tuple[ImageRecord, bool]]


@dataclass(frozen=True)
class Ranking:
    """Every query of a test with a hit: rows among the task's queries, average precision, and the full order.

    Attributes:
        rows: [q] queries that have an image of their identity in the gallery.
        average_precision: [q].
        order: [q, G] gallery places, nearest first; removed images come last.
        kept: [q] gallery images that were not removed.
    """

    rows: np.ndarray
    average_precision: np.ndarray
    order: np.ndarray
    kept: np.ndarray

    def lists(
        self, test: TestSet, task: Task, gallery: np.ndarray, count: int, top: int, best: bool
    ) -> list[RankedList]:
        """`count` queries of different identities with the highest (lowest) average precision, their `top` images."""
        queries = [test.images[task.query[0]][row] for row in task.query[1]]
        images = test.images[task.galleries[0][0]]
        sign = -1.0 if best else 1.0
        chosen: dict[int, RankedList] = {}
        for i in np.argsort(sign * self.average_precision, kind="stable"):
            query = queries[self.rows[i]]
            if len(chosen) < count and query.identity not in chosen:
                found = [images[gallery[g]] for g in self.order[i, : min(top, self.kept[i])]]
                hits = [(image, image.identity == query.identity) for image in found]
                chosen[query.identity] = RankedList(query, float(self.average_precision[i]), hits)
        return list(chosen.values())


def rank_gallery(
    test: TestSet,
    task: Task,
    features: dict[str, Tensor],
    rules: DataSet,
    similarity: Callable[[Tensor, Tensor], Tensor],
) -> Ranking:
    """Ranks the first trial's gallery of a test for each of its queries.

    Args:
        features: by modality, rows as in `test.images`.
        rules: say which gallery images are removed for a query.
        similarity: of query and gallery features (`Method.similarity`).
    """
    modality, rows = task.galleries[0]
    scores = similarity(features[task.query[0]][task.query[1]], features[modality][rows]).cpu().numpy()
    query, gallery = test.of(task.query), test.of((modality, rows))
    removed = rules.removed(*query, *gallery)
    removed = np.zeros(scores.shape, dtype=bool) if removed is None else removed
    order = np.argsort(np.where(removed, np.inf, -scores), axis=1, kind="stable")
    hit = (query[0][:, None] == gallery[0]) & ~removed
    hit = np.take_along_axis(hit, order, axis=1)
    with_hit = hit.any(1)
    hit, order = hit[with_hit], order[with_hit]
    precision = hit.cumsum(1) / np.arange(1, hit.shape[1] + 1)
    return Ranking(np.flatnonzero(with_hit), (precision * hit).sum(1) / hit.sum(1), order, (~removed[with_hit]).sum(1))


def pair_distances(
    features: dict[str, Tensor], ids: dict[str, np.ndarray], limit: int = 800
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Cosine distances of pairs of one identity and of two, within each modality and across them.

    limit: rows of a modality that are looked at, evenly spaced.

    Returns "within visible", "within infrared" and "across" -> (positive [p], negative [n]) distances in 0 … 2, every
    pair once and none of a row with itself.
    """
    rows = {m: _spaced(len(x), limit) for m, x in features.items()}
    unit = {m: F.normalize(x[torch.from_numpy(rows[m]).to(x.device)], dim=1) for m, x in features.items()}
    kinds = {
        "within visible": ("visible", "visible"),
        "within infrared": ("infrared", "infrared"),
        "across": ("infrared", "visible"),
    }
    out = {}
    for name, (a, b) in kinds.items():
        distance = 1 - (unit[a] @ unit[b].t()).cpu().numpy()
        same = ids[a][rows[a]][:, None] == ids[b][rows[b]][None]
        counted = np.triu(np.ones_like(same), 1) if a == b else np.ones_like(same)
        out[name] = (distance[same & counted], distance[~same & counted])
    return out


def separation(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a pair of one identity is nearer than a pair of two (area under the ROC curve; 0.5 = chance)."""
    negative = np.sort(negative)
    below, upto = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    return float(1 - (below + upto).mean() / (2 * len(negative)))


def spread_identities(ids: dict[str, np.ndarray], identities: int, images: int) -> dict[str, np.ndarray]:
    """Rows of up to `identities` identities that both modalities have, evenly spaced, and up to `images` of each."""
    both = np.intersect1d(ids["visible"], ids["infrared"])
    chosen = both[_spaced(len(both), identities)]
    out = {}
    for modality, own in ids.items():
        rows = [np.flatnonzero(own == identity) for identity in chosen]
        out[modality] = np.concatenate([r[_spaced(len(r), images)] for r in rows]) if rows else np.empty(0, int)
    return out


def tsne(embeddings: Tensor) -> np.ndarray:
    """[n, 2] t-SNE of L2-normalised embeddings [n, d]; always the same for the same input."""
    x = F.normalize(embeddings, dim=1).cpu().numpy()
    perplexity = max(1.0, min(30.0, (len(x) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x)


def as_picture(view: Tensor) -> Image.Image:
    """A normalised image [3, H, W] as the colours that it stands for."""
    pixels = view * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _spaced(n: int, count: int) -> np.ndarray:
    """Up to `count` places, evenly spaced in 0 … n-1."""
    return np.linspace(0, n - 1, min(count, n)).round().astype(int)
