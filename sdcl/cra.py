"""Collaborative Ranking Association (CRA): give visible images the labels of infrared clusters.

Self-contained: copy this file. Method page, section 6, points 1 to 3. No true identity is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Votes", "associate", "smooth", "vote"]

# (queries [Q, d], k, targets=[N, d]) -> (rows int [Q, k] of the nearest targets by inner product, best first, …);
# all rows have unit length. `sdcl.clustering.nearest_neighbors` is one.
Search = Callable[..., tuple[Tensor, Tensor]]


class Votes(NamedTuple):
    """How each visible row came to an infrared label, before smoothing.

    labels: int64 [N, k], labels of its nearest infrared rows by deep embedding, nearest first, outliers -1.
    counts: int64 [N, k], how often each of them occurs among its nearest by shallow embedding.
    winner: int64 [N], the label with the highest count.
    """

    labels: Tensor
    counts: Tensor
    winner: Tensor


def associate(
    visible_deep: Tensor,
    visible_shallow: Tensor,
    infrared_deep: Tensor,
    infrared_shallow: Tensor,
    infrared_labels: Tensor,
    top_k: int = 20,
    smooth_k: int = 5,
    chunk: int = 1024,
    search: Search | None = None,
) -> Tensor:
    """Infrared cluster label of every visible row: `vote` of its nearest infrared rows at both levels, then `smooth`.

    Args:
        visible_deep, visible_shallow: [N, d] float32, un-normalised embeddings of all visible rows, outliers too.
        infrared_deep, infrared_shallow: [M, d] float32, the same of all infrared rows.
        infrared_labels: [M] int64, infrared pseudo-labels 0 … K-1, outliers -1.
        top_k, smooth_k: numbers of neighbours; cut to M and N where these are smaller.
        chunk: visible rows at a time. Memory grows with chunk·(N + M); the result does not depend on it.
        search: another search for the nearest rows, such as `sdcl.clustering.nearest_neighbors`, which on a CPU is
            faster for many rows; without it, matrix products in chunks.

    Returns:
        [N] int64, -1 … K-1.

    Raises:
        ValueError: shapes do not fit together, or a modality has no rows.
    """
    votes = vote(visible_deep, visible_shallow, infrared_deep, infrared_shallow, infrared_labels, top_k, chunk, search)
    return smooth(votes.winner, visible_deep, visible_shallow, smooth_k, chunk, search)


@torch.no_grad()
def vote(
    visible_deep: Tensor,
    visible_shallow: Tensor,
    infrared_deep: Tensor,
    infrared_shallow: Tensor,
    infrared_labels: Tensor,
    top_k: int = 20,
    chunk: int = 1024,
    search: Search | None = None,
) -> Votes:
    """The votes of every visible row's nearest infrared rows; arguments and errors as in `associate`.

    1. Each visible row's `top_k` nearest infrared rows (cosine) by deep and, separately, by shallow embedding; their
       labels, in which the outliers' -1 counts as a label of its own (section 9.4).
    2. Of the labels in the deep ranking wins the one that occurs most often in the shallow ranking. Among equals it is
       the one that `torch.topk(counts, 1)` picks on the CPU, as in the published runs: mostly a middle rank.
    """
    _check_shapes(visible_deep, visible_shallow, infrared_deep, infrared_shallow, infrared_labels)
    vd, vs, rd, rs = (F.normalize(x, dim=1) for x in (visible_deep, visible_shallow, infrared_deep, infrared_shallow))
    labels, shallow = (infrared_labels[_nearest(*pair, top_k, chunk, search)] for pair in ((vd, rd), (vs, rs)))
    pairs = zip(labels.split(chunk), shallow.split(chunk), strict=True)
    counts = torch.cat([(d[:, :, None] == s[:, None, :]).sum(2) for d, s in pairs])  # [N, k] of each deep-ranked label
    best = counts.cpu().topk(1).indices.to(labels.device)
    return Votes(labels, counts, labels.gather(1, best)[:, 0])


@torch.no_grad()
def smooth(
    winner: Tensor,
    visible_deep: Tensor,
    visible_shallow: Tensor,
    smooth_k: int = 5,
    chunk: int = 1024,
    search: Search | None = None,
) -> Tensor:
    """The most frequent label among each visible row's `smooth_k` most similar visible rows (section 6, point 3).

    Similar by the sum of both cosines; the row itself takes part; among equally frequent labels the smallest is taken.

    winner: int64 [N], a label of each visible row. The other arguments as in `associate`. Returns int64 [N].
    """
    # An inner product of two such rows is half the sum of both cosines.
    both = torch.cat([F.normalize(x, dim=1) for x in (visible_deep, visible_shallow)], 1) * 0.5**0.5
    near = winner[_nearest(both, both, smooth_k, chunk, search)].sort(1).values  # [N, smooth_k], ascending
    counts = torch.cat([(part[:, :, None] == part[:, None, :]).sum(2) for part in near.split(chunk)])
    return near.gather(1, counts.argmax(1, keepdim=True))[:, 0]  # argmax takes the first of equals: the smallest label


def _nearest(queries: Tensor, targets: Tensor, k: int, chunk: int, search: Search | None) -> Tensor:
    """The min(k, N) targets [N, d] of highest inner product with each query [Q, d], best first: int64 [Q, k]."""
    k = min(k, len(targets))
    if search is not None:
        return search(queries, k, targets=targets)[0].long()
    return torch.cat([(part @ targets.t()).topk(k).indices for part in queries.split(chunk)])


def _check_shapes(vd: Tensor, vs: Tensor, rd: Tensor, rs: Tensor, labels: Tensor) -> None:
    if len(vd) != len(vs) or not len(rd) == len(rs) == len(labels):
        raise ValueError(
            f"rows do not fit together: visible {len(vd)} deep, {len(vs)} shallow; infrared {len(rd)} deep, "
            f"{len(rs)} shallow, {len(labels)} labels"
        )
    if len(vd) == 0 or len(rd) == 0:
        raise ValueError("association needs visible and infrared rows")
    for level, a, b in (("deep", vd, rd), ("shallow", vs, rs)):
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise ValueError(f"{level} embeddings must be [N, d] and [M, d] of one width d, not {shapes}")
