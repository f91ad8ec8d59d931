"""Collaborative Neighbor Learning (CNL): pull an image towards its neighbours that both levels agree on.

Self-contained: copy this file. Method page, section 5. One neighbour loss serves all pairs: within a modality
(homogeneous) the targets are the anchors' own modality, across modalities (heterogeneous) the other one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["neighbor_loss", "neighbor_mask"]


# Similarities from which on anchors are worked on in blocks; several arrays of that size (64 MB) live at once.
BLOCK = 1 << 24


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

    Raises:
        ValueError: shapes do not fit together; it names the one that does not.
    """
    _check_shape("anchor_deep", anchor_deep, len(anchor_deep), target_deep.shape[-1])
    _check_shape("anchor_shallow", anchor_shallow, len(anchor_deep), target_shallow.shape[-1])
    _check_shape("target_deep", target_deep, len(target_deep), target_deep.shape[-1])
    _check_shape("target_shallow", target_shallow, len(target_deep), target_shallow.shape[-1])
    mask = torch.empty(len(anchor_deep), len(target_deep), dtype=torch.bool, device=anchor_deep.device)
    for rows in _blocks(*mask.shape):
        deep, shallow = anchor_deep[rows] @ target_deep.t(), anchor_shallow[rows] @ target_shallow.t()
        mask[rows] = deep > threshold * deep.amax(1, keepdim=True)
        mask[rows] &= shallow > threshold * shallow.amax(1, keepdim=True)
    return mask


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
        Scalar. p is clamped below at 1e-8, so that a far neighbour's loss stays finite (and its gradient 0). With more
        than BLOCK similarities they are kept until backward runs, and nothing else of their size.

    Raises:
        ValueError: shapes do not fit together; it names the one that does not.
    """
    _check_shape("target", target, len(target), x.shape[-1])
    _check_shape("x", x, len(x), x.shape[-1])
    _check_shape("mask", mask, len(x), len(target))
    q = F.normalize(x, dim=1)
    if mask.numel() > BLOCK:
        return _LossesInBlocks.apply(q, target, mask, temperature).mean()
    return _losses(_LiveSimilarity.apply(q, target), mask, temperature).mean()


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


class _LossesInBlocks(torch.autograd.Function):
    """`_losses` of `_LiveSimilarity` for so many targets that what autograd would keep of them, five arrays [B, N], is
    too much: backward forms the losses again from the similarities, a block of anchors at a time."""

    @staticmethod
    def forward(ctx, q: Tensor, target: Tensor, mask: Tensor, temperature: float) -> Tensor:
        blocks = _blocks(*mask.shape)
        parts = [q[rows] @ target.t() for rows in blocks]
        losses = torch.cat([_losses(s, mask[rows], temperature) for s, rows in zip(parts, blocks, strict=True)])
        ctx.save_for_backward(mask, *parts)
        ctx.target, ctx.temperature = target, temperature
        return losses

    @staticmethod
    def backward(ctx, grad: Tensor):
        mask, *parts = ctx.saved_tensors
        gradients = []
        for rows, part in zip(_blocks(*mask.shape), parts, strict=True):
            with torch.enable_grad():
                similarity = part.detach().requires_grad_()
                losses = _losses(similarity, mask[rows], ctx.temperature)
            gradients.append(torch.autograd.grad(losses, similarity, grad[rows])[0] @ ctx.target)
        return torch.cat(gradients), None, None, None


def _losses(similarity: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Each anchor's loss [B] from its similarities [B, N]."""
    log_p = torch.softmax(similarity / temperature, dim=1).clamp_min(1e-8).log()
    weights = mask.to(log_p.dtype)
    return -(weights * log_p).sum(1) / (weights.sum(1) + 1.0)


def _blocks(anchors: int, targets: int) -> list[slice]:
    """Ranges of the anchors, one at least, with at most BLOCK similarities each (or a single anchor)."""
    step = max(1, BLOCK // max(1, targets))
    return [slice(start, min(start + step, anchors)) for start in range(0, max(1, anchors), step)]


def _check_shape(name: str, value: Tensor, rows: int, columns: int) -> None:
    if value.shape != (rows, columns):
        raise ValueError(f"{name} must be [{rows}, {columns}] to fit the others, but is {list(value.shape)}")
