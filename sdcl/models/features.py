"""Images to SDCL's two embeddings, and embeddings to what clustering and tests compare (method page, sections 3, 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.frame.embedding import embed_paths, with_mirror_image
from sdcl.models.sdcl_model import Embeddings, SDCLModel

__all__ = ["clustering_features", "embed", "embed_levels", "retrieval_features"]

Modality = Literal["visible", "infrared"]


def embed_levels(model: SDCLModel, images: Tensor, modality: str) -> dict[str, Tensor]:
    """"deep" and "shallow" [B, D] of images [B, 3, H, W], un-normalised, by a model in evaluation mode."""
    return model(**{modality: images})._asdict()


def embed(model: SDCLModel, paths: Sequence[str], modality: Modality, **how: Any) -> Embeddings:
    """Embeddings of image files: the mean of image and horizontal flip (method page, sections 3 and 8).

    Args:
        model: put into evaluation mode and back; its device is used.
        paths: N image files.
        modality: which patch embedding they go through.
        how: `interpolation` ("lanczos" for tests, the default; "bicubic" for clustering, section 9.5), `batch_size`,
            `workers`, `image_cache`, `precision`, `progress`, as `sdcl.frame.embedding.embed_paths` takes them.

    Returns:
        deep and shallow [N, D] float32 on the model's device, un-normalised.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    size = model.config.image_height, model.config.image_width
    return Embeddings(**embed_paths(with_mirror_image(embed_levels), model, paths, modality, size, **how))


def clustering_features(embeddings: Embeddings, shallow: bool = True) -> Tensor:
    """L2-normalise(concat(deep, shallow)) [N, 2D] (section 3, point 2); without `shallow` the deep level [N, D]."""
    return F.normalize(torch.cat(embeddings, dim=1) if shallow else embeddings.deep, dim=1)


def retrieval_features(embeddings: Embeddings, each_level: bool, shallow: bool = True) -> Tensor:
    """What test similarities are dot products of, [N, 2D] (section 8).

    Args:
        embeddings: un-normalised.
        each_level: normalise deep and shallow by themselves (the final SYSU-MM01 test: the sum of two cosines) rather
            than their concatenation (RegDB, and every test during training).
        shallow: False for an ablated model that uses the deep level alone.
    """
    if each_level and shallow:
        return torch.cat([F.normalize(x, dim=1) for x in embeddings], dim=1)
    return clustering_features(embeddings, shallow)
