"""AML's cluster memory: logits out, moved in the backward pass (method page, section 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdcl.memory import _ClusterSimilarity

__all__ = ["Memory"]


class Memory(nn.Module):
    """Cluster centres of one network, [K, d] `features` of unit length.

    Logits are q·Mᵀ/temperature for q = x/‖x‖, so that any loss on them (cross-entropy *and* KL) reaches M in one
    gradient; the backward pass uses M as it was and then moves its rows, as `ClusterMemory` does.
    """

    features: Tensor

    def __init__(self, centers: Tensor, momentum: float = 0.2, temperature: float = 0.05) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("features", F.normalize(centers.detach(), dim=1))

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, K] of features x [B, d] and clusters targets [B] int64, 0 … K-1."""
        q = F.normalize(x, dim=1)
        return _ClusterSimilarity.apply(q, targets, self.features, self.momentum) / self.temperature
