"""Images to embeddings, for clustering, tests and users' own pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl import distributed
from sdcl.config import Config
from sdcl.data.cache import pixel_reader
from sdcl.data.loading import evaluation_loader
from sdcl.data.records import ImageRecord
from sdcl.data.transforms import normalize_bytes
from sdcl.models import Embeddings, SDCLModel

__all__ = ["clustering_features", "embed", "embed_images", "embed_records", "retrieval_features"]


@torch.no_grad()
def embed_images(
    model: SDCLModel, images: Tensor, modality: Literal["visible", "infrared"], precision: str = "fp32"
) -> Embeddings:
    """Deep and shallow [B, D] float32 of images [B, 3, H, W]: the mean of each and its mirror image, by a model in
    evaluation mode."""
    with distributed.autocast(images.device, precision):
        plain, flipped = (model(**{modality: x}) for x in (images, images.flip(3)))
    return Embeddings(*((a.float() + b.float()) / 2 for a, b in zip(plain, flipped, strict=True)))


@torch.no_grad()
def embed(
    model: SDCLModel,
    paths: Sequence[str],
    modality: Literal["visible", "infrared"],
    *,
    interpolation: Literal["bicubic", "lanczos"] = "lanczos",
    batch_size: int = 256,
    workers: int = 0,
    image_cache: Path | None = None,
    precision: str = "fp32",
    progress: Callable[[int], object] | None = None,
) -> Embeddings:
    """Embeddings of image files: the mean of image and horizontal flip (method page, sections 3 and 8).

    With several processes each embeds its share and all get the whole.

    Args:
        model: put into evaluation mode and back; its device is used.
        paths: N image files.
        modality: which patch embedding they go through.
        interpolation: of the resize; bicubic for clustering, Lanczos for tests, as published (section 9.5).
        image_cache: folder where resized images are kept from one call to the next (`sdcl.data.cache`).
        progress: called with the number of images after each batch.

    Returns:
        deep and shallow [N, D] float32 on the model's device, un-normalised.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    size = model.config.image_height, model.config.image_width
    device = model.cls_token.device
    own = distributed.shares(len(paths))[distributed.rank()]
    read = pixel_reader(paths, modality, size, interpolation, image_cache, workers)
    loader = evaluation_loader(list(paths[own]), torch.from_numpy, batch_size, workers, read)
    was_training = model.training
    model.eval()
    embedded = []
    try:
        for images in loader:
            images = normalize_bytes(images.to(device, non_blocking=True))
            embedded.append(embed_images(model, images, modality, precision))
            if progress is not None:
                progress(len(images))
    finally:
        model.train(was_training)
    none = torch.empty(0, model.dim, dtype=torch.float32, device=device)
    levels = zip(*(embedded or [Embeddings(none, none)]), strict=True)
    return Embeddings(*(distributed.gather_shares(torch.cat(level), len(paths)) for level in levels))


def embed_records(
    model: SDCLModel,
    records: dict[str, list[ImageRecord]],
    config: Config,
    interpolation: Literal["bicubic", "lanczos"],
    bar: Callable[[str, int], Callable[[int], object]] | None = None,
) -> dict[str, Embeddings]:
    """`embed` for the images of each modality, with a run's settings; rows as in `records`.

    bar: makes a progress bar of a name and a number of images.
    """
    return {
        modality: embed(
            model,
            [record.path for record in rows],
            modality,  # type: ignore[arg-type]
            interpolation=interpolation,
            batch_size=config.embedding_batch,
            workers=config.workers,
            image_cache=config.image_cache,
            precision=config.precision,
            progress=bar(f"embed {modality}", len(rows)) if bar else None,
        )
        for modality, rows in records.items()
    }


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
