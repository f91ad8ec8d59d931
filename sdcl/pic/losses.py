"""PIC's four losses: pure functions on embeddings and logits (docs/pic.md, "Losses").

Self-contained but for torch: copy the first four functions. Distances are Euclidean, between un-normalised features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.pic.network import Outputs
from sdcl.pic.settings import PICConfig

__all__ = ["distances", "pic_losses", "soft_identity_loss", "soft_triplet_loss", "triplet_loss"]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """√max(|a|² + |b|² − 2a·b, 10⁻¹²) of all pairs of rows: [n, d] and [m, d] to [n, m]."""
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.t()
    return squares.clamp(min=1e-12).sqrt()


def hardest_rows(d: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, the farthest row of its identity and the nearest of another one; of equals the first (our reading).

    Args:
        d: distances [n, n] between rows.
        labels: int64 [n].

    Returns:
        int64 [n, 1] each.
    """
    same = labels[:, None] == labels
    farthest = d.masked_fill(~same, -torch.inf).argmax(1, keepdim=True)
    nearest = d.masked_fill(same, torch.inf).argmin(1, keepdim=True)
    return farthest, nearest


def triplet_loss(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """mean max(0, d(hardest positive) − d(hardest negative) + margin) over all rows (batch-hard triplets).

    Args:
        features: [n, d], rows of both modalities, un-normalised. Gradients flow through both ends of each distance.
        labels: int64 [n], at least two identities.
    """
    d = distances(features, features)
    positive, negative = (d.gather(1, rows) for rows in hardest_rows(d.detach(), labels))
    return F.relu(positive - negative + margin).mean()


def soft_identity_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """mean over rows of −Σ softmax(teacher) · log softmax(logits); both [m, identities], no gradient to the teacher."""
    return F.cross_entropy(logits, teacher.detach().softmax(1))


def soft_triplet_loss(features: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Each row's two hardest distances as the other modality's mean network sees them.

    For each row r, p and n are its hardest positive and negative among `features`. The prediction
    log softmax([d(r, p), d(r, n)]) is held against softmax([d(r, p), d(r, n)]) of the *same rows* of the teacher.

    Args:
        features: [m, d] of one modality's trained branch. The gradient goes to the anchors alone, as published: the
            second end of each distance counts as a constant.
        teacher: [m, d] of the other modality's mean branch; row r shows the same identity. No gradient.
        labels: int64 [m].
    """
    teacher = teacher.detach()
    d, target = distances(features, features.detach()), distances(teacher, teacher)
    pairs = torch.cat(hardest_rows(d.detach(), labels), dim=1)  # [m, 2]
    return F.cross_entropy(d.gather(1, pairs), target.gather(1, pairs).softmax(1))


def pic_losses(visible: Outputs, infrared: Outputs, labels: Tensor, config: PICConfig) -> dict[str, Tensor]:
    """The losses of a step, each with its graph.

    Args:
        visible, infrared: outputs of m images each; row r of both shows the same person.
        labels: int64 [m], identities 0 … C−1.

    Returns:
        scalars "identity", "triplet", "soft_identity" and "soft_triplet" (sums over the two directions) and their
        weighted sum "total"; without mean branches "identity", "triplet" and their plain sum (our reading).

    Raises:
        ValueError: the modalities' rows are not as many as the labels, so that they cannot teach each other.
    """
    if not len(visible.features) == len(infrared.features) == len(labels):
        raise ValueError(
            f"{len(visible.features)} visible rows, {len(infrared.features)} infrared rows and {len(labels)} labels: "
            "row r of both modalities must show the same identity, labels[r]"
        )
    both = torch.cat([labels, labels])
    losses = {
        "identity": F.cross_entropy(torch.cat([visible.logits, infrared.logits]), both),
        "triplet": triplet_loss(torch.cat([visible.features, infrared.features]), both, config.margin),
    }
    if visible.mean_features is None:
        return losses | {"total": losses["identity"] + losses["triplet"]}

    # Each modality is taught by the other one's mean branch.
    soft_identity, soft_triplet = [], []
    for student, teacher in ((visible, infrared), (infrared, visible)):
        assert teacher.mean_logits is not None and teacher.mean_features is not None
        soft_identity.append(soft_identity_loss(student.logits, teacher.mean_logits))
        soft_triplet.append(soft_triplet_loss(student.features, teacher.mean_features, labels))
    losses |= {"soft_identity": torch.stack(soft_identity).sum(), "soft_triplet": torch.stack(soft_triplet).sum()}
    losses["total"] = (
        config.conventional_weight * (losses["identity"] + losses["triplet"])
        + config.soft_identity_weight * losses["soft_identity"]
        + config.soft_triplet_weight * losses["soft_triplet"]
    )
    return losses
