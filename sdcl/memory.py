"""Memories of embeddings that losses compare with and that training moves (method page, sections 4 and 9.2).

Self-contained: copy this file. SDCL has two kinds, one of each per modality and level, rebuilt every epoch:

- `ClusterMemory`: one unit vector a cluster. Its loss is a cross-entropy over all clusters; its rows move *in the
  backward pass* of that loss. `ClusterLogits` is the same memory without the loss, for methods that need the logits.
- `InstanceMemory`: one unit vector a training image, moved by an explicit `update` once a step.

Why live memories: the published runs back-propagate through whatever the memory holds when backward runs, which is not
always what the forward pass saw. Both effects are part of the published result and are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ClusterLogits", "ClusterMemory", "InstanceMemory", "cluster_centers"]


def cluster_centers(features: Tensor, labels: Tensor) -> Tensor:
    """Mean of the rows of each label (section 3, point 5; not yet normalised, `ClusterMemory` does that).

    Args:
        features: [N, d] float32, un-normalised embeddings.
        labels: [N] int64, 0 … K-1, each present; -1 (outliers) are left out.

    Returns:
        [K, d] float32, row k the mean of the rows labelled k.

    Raises:
        ValueError: lengths differ, no row is labelled, or a label between 0 and the largest has no row.
    """
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} features but {len(labels)} labels")
    kept = labels >= 0
    features, labels = features[kept], labels[kept]
    if len(labels) == 0:
        raise ValueError("no row is labelled, so there are no cluster centres")
    counts = torch.bincount(labels)
    if bool((counts == 0).any()):
        raise ValueError(
            f"labels must be 0 … {len(counts) - 1} without gaps; {int((counts == 0).sum())} of them have no row"
        )
    # float64 sums: independent of the order in which a device adds up the rows, to float32 precision
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    return (sums / counts[:, None]).to(features.dtype)


def move_rows_(memory: Tensor, rows: Tensor, x: Tensor, momentum: float) -> None:
    """Moves rows towards embeddings, one after another, each back to unit length; in place.

    For i = 0 … B-1 in this order: m = momentum·memory[rows[i]] + (1-momentum)·x[i], memory[rows[i]] = m/‖m‖. Rows
    differ in what they touch unless they are equal, so the t-th occurrences of all rows are moved together: as many
    rounds as the most frequent row has occurrences, with the same result to the last bit.

    Args:
        memory: [N, d], rows of unit length; changed.
        rows: [B] int64, 0 … N-1, repetitions allowed. The rounds are planned where they are: with rows on the CPU and
            a memory on a GPU nothing waits for the GPU, with rows on the GPU the plan does.
        x: [B, d], used as they are (normalised by the caller or not).
        momentum: share of the old row, 0 … 1.

    Raises:
        ValueError: shapes do not fit together, or a row is outside 0 … N-1 (checked where the rows are).
    """
    _check_rows("rows", rows, x, memory)
    order = torch.argsort(rows, stable=True)  # equal rows side by side, in batch order
    _, counts = torch.unique_consecutive(rows[order], return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)  # where in `order` the run of each row starts
    occurrence = torch.arange(len(rows), device=rows.device) - first
    batch = order[torch.argsort(occurrence, stable=True)]  # all first occurrences, then all second ones, …
    sizes = torch.bincount(occurrence).tolist()
    plan = torch.stack([batch, rows[batch]]).to(memory.device, non_blocking=True)
    for i, row in (part.unbind() for part in plan.split(sizes, dim=1)):
        moved = momentum * memory[row] + (1.0 - momentum) * x[i]
        memory[row] = moved / moved.norm(dim=1, keepdim=True)


def _check_rows(name: str, rows: Tensor, x: Tensor, memory: Tensor) -> None:
    """Raises ValueError unless there is a row 0 … N-1 of the memory [N, d] for each embedding x [B, d].

    -1, the label of outliers, would quietly be the last row, and a number beyond the end stop a GPU for good.
    """
    size, width = memory.shape
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"embeddings must be [B, {width}] for a memory {[size, width]}, not {list(x.shape)}")
    if rows.dtype != torch.int64 or rows.shape != x.shape[:1]:
        found = f"{rows.dtype} {list(rows.shape)}"
        raise ValueError(f"{name} must be int64 [{len(x)}], one for each embedding, not {found}")
    if len(rows) == 0:
        return
    least, most = int(rows.min()), int(rows.max())
    if least < 0 or most >= size:
        wrong = least if least < 0 else most
        hint = ": leave outliers (-1) out" if wrong == -1 else ""
        raise ValueError(f"{name} must lie in 0 … {size - 1}, but one is {wrong}{hint}")


class _ClusterSimilarity(torch.autograd.Function):
    """q·Mᵀ whose backward multiplies with M as it stands *then*, and moves M afterwards.

    M is deliberately not saved for backward (autograd would refuse a tensor that changed since): of two losses on one
    memory, the later one runs backward first and the earlier one meets the memory that it moved.
    """

    @staticmethod
    def forward(ctx, q: Tensor, targets: Tensor, memory: Tensor, momentum: float) -> Tensor:
        ctx.save_for_backward(q, targets)
        ctx.memory, ctx.momentum = memory, momentum
        return q @ memory.t()

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, targets = ctx.saved_tensors
        grad_q = grad @ ctx.memory
        move_rows_(ctx.memory, targets, q, ctx.momentum)
        return grad_q, None, None, None


class ClusterLogits(nn.Module):
    """Similarities of embeddings with cluster centres; the centres follow the embeddings (section 4).

    For q = x/‖x‖ [B, d] and targets y it returns q·Mᵀ/temperature. However many losses are formed of these logits, the
    backward pass meets their summed gradient once: q gets that gradient times M/temperature, with M as it then stands,
    and afterwards the rows move one by one in batch order:
    M[y] ← momentum·M[y] + (1-momentum)·q, M[y] ← M[y]/‖M[y]‖. No backward pass, no move.

    Args:
        centers: [K, d] float32, normalised on entry.
        momentum: share of the old centre at each move, 0 … 1.
        temperature: of the softmax.

    Attributes:
        features: [K, d] buffer, rows of unit length.
    """

    features: Tensor

    def __init__(self, centers: Tensor, momentum: float, temperature: float = 0.05) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("features", F.normalize(centers.detach(), dim=1))

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, K] of embeddings x [B, d] (any length), whose clusters are targets [B] int64, 0 … K-1.

        targets: on x's device or on the CPU; the latter spares a GPU's waiting (`move_rows_`). ValueError where they or
        the shapes do not fit the memory.
        """
        _check_rows("targets", targets, x, self.features)
        similarity = _ClusterSimilarity.apply(F.normalize(x, dim=1), targets, self.features, self.momentum)
        return similarity / self.temperature


class ClusterMemory(ClusterLogits):
    """Contrast of embeddings with cluster centres that follow them: a loss, cross-entropy(logits, y), its mean over the
    batch (section 4).

    So its backward pass gives q the gradient (p - onehot(y))/(B·temperature)·M, with the probabilities p of the forward
    pass but M as it then stands, and moves M as `ClusterLogits`, whose arguments and attributes it has.
    """

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss; arguments and errors as in `ClusterLogits`."""
        return F.cross_entropy(super().forward(x, targets), targets.to(x.device, non_blocking=True))


class InstanceMemory(nn.Module):
    """One unit vector a training image (section 4); what neighbour losses and masks are computed from.

    Args:
        features: [N, d] float32, normalised on entry.
        momentum: share of the old row at each update, 0 … 1.

    Attributes:
        features: [N, d] buffer, rows of unit length; `update` changes it in place, so that a neighbour loss formed
            before an update is back-propagated through the updated rows, as in the published runs.
    """

    features: Tensor

    def __init__(self, features: Tensor, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", F.normalize(features.detach(), dim=1))

    @torch.no_grad()
    def update(self, x: Tensor, rows: Tensor) -> None:
        """Moves rows [B] int64 towards embeddings x [B, d], one by one in batch order; a row may come twice.

        rows: on x's device or on the CPU; the latter spares a GPU's waiting (`move_rows_`). ValueError where they or
        the shapes do not fit the memory; it is unchanged then.

        x is taken un-normalised, as in the published runs (section 9.1): with embeddings of norm ≈ √d the new image
        outweighs the old row by far, whatever the momentum says.
        """
        move_rows_(self.features, rows, x.detach(), self.momentum)
