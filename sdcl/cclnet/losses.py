"""The losses of the three stages (CCLNet page, sections 5 to 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sdcl.cclnet.memory import MatchedMemories

__all__ = ["prompt_loss", "step_losses", "text_loss"]


def prompt_loss(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """Stage 1, one modality: images find the texts of their cluster and texts its images (section 6).

    L(u, w) = -mean_i mean_{j: y_j = y_i} log softmax_j(u_i·w_j), and the loss is L(images, texts) + L(texts, images).
    Nothing is normalised and there is no temperature (section 11, point 4).

    Args:
        images, texts: [B, d]. labels: [B] int64, the clusters of both.
    """
    same = (labels[:, None] == labels[None]).to(images.dtype)
    same = same / same.sum(1, keepdim=True)
    logits = images @ texts.t()
    image_to_text, text_to_image = (-(same * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.t()))
    return image_to_text + text_to_image


def text_loss(projections: Tensor, texts: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Stage 2, one modality: images are classified among the texts of all clusters (section 7).

    Cross-entropy of p·Tᵀ, un-normalised and without temperature, against (1-smoothing)·onehot + smoothing/K; the mean
    over images that have a label, 0 when none has.

    Args:
        projections: [B, d]. texts: [K, d]. labels: [B] int64, 0 … K-1, -1 = none; on the CPU they spare a wait.
    """
    if not bool((labels >= 0).any()):
        return projections.sum() * 0.0
    logits, labels = projections @ texts.t(), labels.to(projections.device, non_blocking=True)
    return F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)


def step_losses(
    memories: MatchedMemories,
    features: dict[str, Tensor],
    labels: dict[str, Tensor],
    projections: dict[str, Tensor] | None = None,
    texts: dict[str, Tensor] | None = None,
    text_labels: dict[str, Tensor] | None = None,
    smoothing: float = 0.1,
) -> dict[str, Tensor]:
    """The loss terms of a step of stage 0 or 2; the loss is their sum. Dicts are by modality, "visible", "infrared".

    Args:
        memories: of this epoch; they move in the backward pass.
        features: [B, d] each, un-normalised. labels: [B], clusters of this epoch.
        projections, texts, text_labels: stage 2: [B, P] of the same images, [K, P] of all stored clusters, [B] the
            images' stored labels, -1 = none. Labels may be on the CPU, whatever the others' device.
    """
    visible, infrared = memories(features["visible"], features["infrared"], labels["visible"], labels["infrared"])
    terms = {"contrast_visible": visible, "contrast_infrared": infrared}
    if projections is not None and texts is not None and text_labels is not None:
        for modality, p in projections.items():
            terms[f"text_{modality}"] = text_loss(p, texts[modality], text_labels[modality], smoothing)
    return terms
