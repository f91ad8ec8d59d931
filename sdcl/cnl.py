"""Collaborative Neighbor Learning (CNL): pull an image towards its neighbours that both levels agree on.

Self-contained: copy this file. Method page, section 5. One neighbour loss serves all pairs: within a modality
(homogeneous) the targets are the anchors' own modality, across modalities (heterogeneous) the other one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["neighbor_loss", "neighbor_mask"]


@torch.no_grad()
def neighbor_mask(
    anchor_deep: Tensor, anchor_shallow: Tensor, target_deep: Tensor, target_shallow: Tensor, threshold: float = 0.9
) -> Tensor:
    """Targets that are near an anchor at the deep *and* at the shallow level.

    mask[i, j] = S_deep[i, j] > threshold·max_j S_deep[i, ·] and likewise for the shallow similarities S.

    Args:
        anchor_deep, anchor_shallow: [B, d] float32, the anchors' rows of their own modality's instance memories.
        target_deep, target_shallow: [N, d] float32, whole instance memories of the target modality.
        threshold: share of the row's largest similarity, 0 … 1.

    Returns:
        [B, N] bool. A row is empty where the two levels agree on nothing, or the largest similarity is negative.
    """
    deep, shallow = anchor_deep @ target_deep.t(), anchor_shallow @ target_shallow.t()
    return (deep > threshold * deep.amax(1, keepdim=True)) & (shallow > threshold * shallow.amax(1, keepdim=True))


class _LiveSimilarity(torch.autograd.Function):
    """q·Mᵀ whose backward multiplies with M as it stands *then* (method page, section 4).

    The instance memories move between the forward and the backward pass of a step; the published runs back-propagate
    through the moved rows. M is deliberately not saved for backward: autograd would refuse a tensor that changed.
    """

    @staticmethod
    def forward(ctx, q: Tensor, target: Tensor) -> Tensor:
        ctx.target = target
        return q @ target.t()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad @ ctx.target, None


def neighbor_loss(x: Tensor, target: Tensor, mask: Tensor, temperature: float = 0.05) -> Tensor:
    """Mean over anchors of (-Σ_j mask·log p)/(Σ_j mask + 1), with p = softmax(x/‖x‖·targetᵀ/temperature).

    The 1 in the denominator is the published runs' (section 9.3): an anchor with a single neighbour counts half.

    Args:
        x: [B, d] float32, embeddings of the anchors, any length; the gradient flows into them.
        target: [N, d] float32, the target modality's instance memory; it is read again when backward runs, so an
            update in place between the two is what the gradient sees. No gradient flows into it.
        mask: [B, N] bool, from `neighbor_mask`.
        temperature: of the softmax.

    Returns:
        Scalar. p is clamped below at 1e-8, so that a far neighbour's loss stays finite (and its gradient 0).
    """
    similarity = _LiveSimilarity.apply(F.normalize(x, dim=1), target)
    log_p = torch.softmax(similarity / temperature, dim=1).clamp_min(1e-8).log()
    weights = mask.to(log_p.dtype)
    return (-(weights * log_p).sum(1) / (weights.sum(1) + 1.0)).mean()
