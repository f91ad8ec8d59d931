"""AML's losses (method page, sections 5 and 7): single ones without weights, then all of a step with theirs.

Self-contained: pure functions of features, classifiers and memories. All are computed in float32.
Several are sums over the batch, not means: their weights hold for the published batch sizes (64 and 128).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "StepLosses",
    "circle_logits",
    "distance_gap",
    "divergence",
    "hard_triplet",
    "mutual_divergence",
    "similarity_gap",
    "smoothed_cross_entropy",
    "stage1_losses",
    "stage2_losses",
]


@dataclass(frozen=True)
class StepLosses:
    """total: scalar, to run backward from. terms: its weighted parts by name, detached scalars."""

    total: Tensor
    terms: dict[str, Tensor]


# -- single losses -----------------------------------------------------------------------------------------------------


def circle_logits(
    features: Tensor, classifier: Tensor, targets: Tensor, scale: float = 64.0, margin: float = 0.35
) -> Tensor:
    """Circle logits (Sun et al., CVPR 2020, equation 6; section 5).

    For cosines s: scale·α⁺·(s − (1−m)) at the target, scale·α⁻·(s − m) elsewhere, with α⁺ = max(0, 1+m−s) and
    α⁻ = max(0, s+m), which no gradient goes through.

    Args:
        features: [B, d], any length. classifier: [classes, d], any length. targets: int64 [B].

    Returns:
        [B, classes].
    """
    s = F.linear(F.normalize(features, dim=1), F.normalize(classifier, dim=1))
    positive = F.relu(1 + margin - s.detach()) * (s - (1 - margin))
    negative = F.relu(s.detach() + margin) * (s - margin)
    is_target = F.one_hot(targets, len(classifier)).bool()
    return scale * torch.where(is_target, positive, negative)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross-entropy with 1−ε on the target and ε/(classes−1) on every other class; mean over the batch.

    logits: [B, classes], at least two classes. (torch's `label_smoothing` gives the target a share of ε too.)
    """
    log_p = F.log_softmax(logits, dim=1)
    own = log_p.gather(1, targets[:, None])[:, 0]
    others = log_p.sum(1) - own
    return -((1 - epsilon) * own + epsilon / (logits.shape[1] - 1) * others).mean()


def hard_triplet(features: Tensor, targets: Tensor) -> Tensor:
    """Soft-margin triplet of the hardest pairs (Hermans et al., 2017): mean of softplus(d⁺ − d⁻).

    d⁺: a row's largest Euclidean distance to a row of its label, itself included; d⁻: its smallest to another label's.
    features: [B, d], used as they are. targets: [B], at least two labels.
    """
    distance = _distances(features)
    same = targets[:, None] == targets
    farthest = distance.masked_fill(~same, -torch.inf).amax(1)
    nearest = distance.masked_fill(same, torch.inf).amin(1)
    return F.softplus(farthest - nearest).mean()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """½·(KL(teacher‖student) + KL(student‖teacher)) of the softmaxes of [B, classes], summed over the batch.

    The teacher is a constant; the gradient reaches the student through both terms.
    """
    return mutual_divergence(logits, teacher.detach()) / 2


def mutual_divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL(a‖b) + KL(b‖a) of the softmaxes of [B, classes], summed over the batch; both sides learn."""
    log_a, log_b = F.log_softmax(a, dim=1), F.log_softmax(b, dim=1)
    return ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum()


def similarity_gap(features: Tensor, teacher: Tensor) -> Tensor:
    """Sum over all pairs of rows of (cosine − the teacher's cosine)², both [B, d]; the teacher is a constant."""
    own, wanted = (F.normalize(x, dim=1) for x in (features, teacher.detach()))
    return (own @ own.T - wanted @ wanted.T).square().sum()


def distance_gap(a: Tensor, b: Tensor) -> Tensor:
    """Sum over all pairs of rows of (distance in a − distance in b)², Euclidean, of unit rows; both sides learn."""
    return (_distances(F.normalize(a, dim=1)) - _distances(F.normalize(b, dim=1))).square().sum()


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances [B, B] of rows, squares clamped below at 1e-12.

    Of differences, not of ‖a‖² + ‖b‖² − 2ab, which cancels where rows are close (section 13.7).
    """
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)


# -- all losses of a step ----------------------------------------------------------------------------------------------


def stage1_losses(
    first_visible: Tensor,
    first_transformed: Tensor,
    second_transformed: Tensor,
    first_classifier: Tensor,
    second_classifier: Tensor,
    targets: Tensor,
    kl_weight: float = 0.1,
    similarity_weight: float = 0.5,
    *,
    smoothing: float = 0.1,
    scale: float = 64.0,
    margin: float = 0.35,
) -> StepLosses:
    """All losses of a stage-1 step (section 5).

    A = network 1 on visible views teaches C = network 2 on transformed views, which teaches B = network 1 on
    transformed views; nothing teaches A. That is the asymmetry.

    Args:
        first_visible, first_transformed, second_transformed: features [B, d] of A, B and C.
        first_classifier, second_classifier: [classes, d].
        targets: int64 [B], pseudo-labels of the source.
        kl_weight: 0 in the first pass, where no logits are taught; 0.1 in the second.

    Returns:
        terms: cross-entropy and triplet of A, B, C; then KL and SIM of C taught by A (`_12`) and B taught by C (`_21`).
    """
    features = {
        "1_visible": (first_visible, first_classifier),
        "1_transformed": (first_transformed, first_classifier),
        "2_transformed": (second_transformed, second_classifier),
    }
    logits, terms = {}, {}
    for name, (x, classifier) in features.items():
        logits[name] = circle_logits(x, classifier, targets, scale, margin)
        terms[f"cross_entropy_{name}"] = smoothed_cross_entropy(logits[name], targets, smoothing)
        terms[f"triplet_{name}"] = hard_triplet(x, targets)
    a, b, c = logits.values()
    zero = first_visible.new_zeros(())
    terms["kl_12"] = kl_weight * divergence(c, a) if kl_weight else zero
    terms["kl_21"] = kl_weight * divergence(b, c) if kl_weight else zero
    terms["sim_12"] = similarity_weight * similarity_gap(second_transformed, first_visible)
    terms["sim_21"] = similarity_weight * similarity_gap(first_transformed, second_transformed)
    return _summed(terms)


def stage2_losses(
    first: Tensor,
    second: Tensor,
    targets: Tensor,
    memories: Sequence[Callable[[Tensor, Tensor], Tensor]],
    kl_weight: float = 0.01,
    similarity_weight: float = 0.05,
) -> StepLosses:
    """All losses of a stage-2 step (section 7); their backward pass moves the memories.

    Args:
        first, second: features [B, d] of network 1 on visible views and network 2 on channel views.
        targets: int64 [B], labels of the clustering; on the features' device or on the CPU (`move_rows_`).
        memories: of network 1 and network 2: (features, targets) → logits [B, K] (`sdcl.memory.ClusterLogits`).

    Returns:
        terms: cross-entropy of each network, KL and SIM, in which both networks learn.
    """
    z = [memory(x, targets) for memory, x in zip(memories, (first, second), strict=True)]
    y = targets.to(first.device, non_blocking=True)
    terms = {f"cross_entropy_{k}": _cross_entropy(logits, y) for k, logits in enumerate(z, 1)}
    terms["kl"] = kl_weight * mutual_divergence(*z)
    terms["sim"] = similarity_weight * distance_gap(first, second)
    return _summed(terms)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, its mean over the batch, with the classes summed one after another.

    The same number on every CPU: sums along a row go by vectors of the processor's own length, and where the loss is
    near zero, all of it in the last bits of 1 + …, two processors then differ by 1e-3 of it.
    """
    return F.nll_loss(F.log_softmax(logits.T, dim=0).T, targets)


def _summed(terms: dict[str, Tensor]) -> StepLosses:
    return StepLosses(torch.stack(list(terms.values())).sum(), {name: t.detach() for name, t in terms.items()})
