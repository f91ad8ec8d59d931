"""Collaborative Ranking Association (CRA): give visible images the labels of infrared clusters.

Self-contained: copy this file. Method page, section 6, points 1 to 3. No true identity is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["associate"]


@torch.no_grad()
def associate(
    visible_deep: Tensor,
    visible_shallow: Tensor,
    infrared_deep: Tensor,
    infrared_shallow: Tensor,
    infrared_labels: Tensor,
    top_k: int = 20,
    smooth_k: int = 5,
    chunk: int = 1024,
) -> Tensor:
    """Infrared cluster label of every visible row, by vote of its nearest infrared rows at both levels.

    1. Each visible row's `top_k` nearest infrared rows (cosine) by deep and, separately, by shallow embedding; their
       labels, in which the outliers' -1 counts as a label of its own (section 9.4).
    2. Of the labels in the deep ranking wins the one that occurs most often in the shallow ranking; among equals the
       one that the deep ranking names first.
    3. The row's label is the most frequent winner among its `smooth_k` most similar visible rows (sum of both cosines,
       itself included); among equals the smallest.

    Args:
        visible_deep, visible_shallow: [N, d] float32, un-normalised embeddings of all visible rows, outliers too.
        infrared_deep, infrared_shallow: [M, d] float32, the same of all infrared rows.
        infrared_labels: [M] int64, infrared pseudo-labels 0 … K-1, outliers -1.
        top_k, smooth_k: numbers of neighbours; cut to M and N where these are smaller.
        chunk: visible rows at a time. Memory grows with chunk·(N + M); the result does not depend on it.

    Returns:
        [N] int64, -1 … K-1.

    Raises:
        ValueError: shapes do not fit together, or a modality has no rows.
    """
    if len(visible_deep) != len(visible_shallow) or not len(infrared_deep) == len(infrared_shallow) == len(
        infrared_labels
    ):
        raise ValueError(
            f"rows do not fit together: visible {len(visible_deep)} deep, {len(visible_shallow)} shallow; infrared "
            f"{len(infrared_deep)} deep, {len(infrared_shallow)} shallow, {len(infrared_labels)} labels"
        )
    if len(visible_deep) == 0 or len(infrared_deep) == 0:
        raise ValueError("association needs visible and infrared rows")
    vd, vs, rd, rs = (F.normalize(x, dim=1) for x in (visible_deep, visible_shallow, infrared_deep, infrared_shallow))
    top_k, smooth_k = min(top_k, len(rd)), min(smooth_k, len(vd))

    winners = []
    for d, s in zip(vd.split(chunk), vs.split(chunk), strict=True):
        deep = infrared_labels[(d @ rd.t()).topk(top_k).indices]  # [c, k], nearest first
        shallow = infrared_labels[(s @ rs.t()).topk(top_k).indices]  # [c, k]
        votes = (deep[:, :, None] == shallow[:, None, :]).sum(2)  # [c, k] for each deep-ranked label
        winners.append(deep.gather(1, votes.argmax(1, keepdim=True)))  # argmax takes the first of equals
    winner = torch.cat(winners)[:, 0]

    labels = []
    for d, s in zip(vd.split(chunk), vs.split(chunk), strict=True):
        near = winner[(d @ vd.t() + s @ vs.t()).topk(smooth_k).indices].sort(1).values  # [c, smooth_k], ascending
        votes = (near[:, :, None] == near[:, None, :]).sum(2)
        labels.append(near.gather(1, votes.argmax(1, keepdim=True)))  # first of equals: the smallest label
    return torch.cat(labels)[:, 0]
