"""Cluster memories of both modalities, and the mixing of matched clusters (CCLNet page, section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sdcl.memory import ClusterMemory

__all__ = ["MatchedMemories", "match_clusters"]


def match_clusters(visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one pairs of rows with the largest sum of similarities (the Hungarian method).

    Args:
        visible, infrared: [Kv, d], [Ki, d], rows of unit length.

    Returns:
        Two [P] int64 on their device: pair p joins visible row `first[p]` and infrared row `second[p]`. Of the
        min(Kv, Ki) pairs those of negative similarity are left out.
    """
    similarity = visible @ infrared.t()
    rows, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    first, second = (torch.from_numpy(x).to(visible.device) for x in (rows, columns))
    alike = similarity[first, second] >= 0
    return first[alike], second[alike]


class MatchedMemories(nn.Module):
    """A `ClusterMemory` for each modality; in late epochs their matched rows are mixed as well.

    Both memories move in the backward pass of their losses, as `ClusterMemory` says. With a share s below 1 the same
    backward pass, once both have moved, matches their rows (`match_clusters`) and mixes each pair (a, b):

    1. if a is in the visible batch: M_v[a] ← s·M_v[a] + (1-s)·M_i[b], to unit length;
    2. then, if b is in the infrared batch: M_i[b] ← s·M_i[b] + (1-s)·M_v[a], to unit length, with M_v[a] as just
       changed. It is no swap (section 11, point 1): with both in the batch both rows end near the infrared centre.

    The gradient of a step sees neither its moves nor its mixing.

    Args:
        visible, infrared: centres [Kv, d] and [Ki, d], normalised on entry.
        momentum, temperature: of both `ClusterMemory`.
        mix_share: s; 1 = no mixing.

    Attributes:
        pairs: the matched rows (two [P] int64) of the last backward pass, or None.
        mixed: by modality, bool [K], the rows that any backward pass has mixed.
    """

    def __init__(
        self, visible: Tensor, infrared: Tensor, momentum: float, temperature: float, mix_share: float = 1.0
    ) -> None:
        super().__init__()
        self.visible = ClusterMemory(visible, momentum, temperature)
        self.infrared = ClusterMemory(infrared, momentum, temperature)
        self.mix_share = mix_share
        self.pairs: tuple[Tensor, Tensor] | None = None
        self.mixed = {
            name: torch.zeros(len(centers), dtype=torch.bool, device=centers.device)
            for name, centers in (("visible", visible), ("infrared", infrared))
        }

    def forward(
        self, visible: Tensor, infrared: Tensor, visible_labels: Tensor, infrared_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two contrast losses of features [B, d] (any length) with clusters [B] int64 of their modality."""
        if self.mix_share < 1:
            visible, infrared = _MixInBackward.apply(visible, infrared, self, visible_labels, infrared_labels)
        return self.visible(visible, visible_labels), self.infrared(infrared, infrared_labels)

    @torch.no_grad()
    def mix_(self, visible_labels: Tensor, infrared_labels: Tensor) -> None:
        """Mixes the matched rows of a batch's clusters, in place. Pairs share no row, so all are mixed at once."""
        visible, infrared, s = self.visible.features, self.infrared.features, self.mix_share
        first, second = self.pairs = match_clusters(visible, infrared)

        chosen = torch.isin(first, visible_labels.to(first.device))
        a, b = first[chosen], second[chosen]
        visible[a] = F.normalize(s * visible[a] + (1 - s) * infrared[b], dim=1)
        self.mixed["visible"][a] = True

        chosen = torch.isin(second, infrared_labels.to(second.device))
        a, b = first[chosen], second[chosen]
        infrared[b] = F.normalize(s * infrared[b] + (1 - s) * visible[a], dim=1)
        self.mixed["infrared"][b] = True


class _MixInBackward(torch.autograd.Function):
    """Passes both inputs on. Its backward pass needs the gradients of both: both memories have moved when it runs."""

    @staticmethod
    def forward(ctx, visible: Tensor, infrared: Tensor, memories: MatchedMemories, *labels: Tensor):
        ctx.memories, ctx.labels = memories, labels
        return visible.view_as(visible), infrared.view_as(infrared)

    @staticmethod
    def backward(ctx, grad_visible: Tensor, grad_infrared: Tensor):
        ctx.memories.mix_(*ctx.labels)
        return grad_visible, grad_infrared, None, None, None
