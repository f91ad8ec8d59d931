"""Images to embeddings, for clustering, tests and users' own pictures, whichever method's network makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcl import distributed
from sdcl.data.cache import pixel_reader
from sdcl.data.loading import evaluation_loader
from sdcl.data.records import ImageRecord
from sdcl.data.transforms import normalize_bytes
from sdcl.settings import RunSettings

__all__ = ["Embed", "Levels", "device_of", "embed_paths", "embed_records", "with_mirror_image"]

Levels = dict[str, Tensor]
"""Name of a level → embeddings of N images, [N, d] float32."""

Embed = Callable[[Any, Tensor, str], Levels]
"""Network, normalised images [B, 3, H, W] and their modality to the levels' embeddings (`Method.embed`)."""


def with_mirror_image(embed: Embed) -> Embed:
    """The same for the mean of each image's embedding and its mirror image's."""

    def mean(model: Any, images: Tensor, modality: str) -> Levels:
        plain, flipped = (embed(model, x, modality) for x in (images, images.flip(3)))
        return {level: (plain[level].float() + flipped[level].float()) / 2 for level in plain}

    return mean


def device_of(model: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(model.parameters()).device


@torch.no_grad()
def embed_paths(
    embed: Embed,
    model: nn.Module,
    paths: Sequence[str],
    modality: str,
    size: tuple[int, int],
    *,
    interpolation: str = "lanczos",
    batch_size: int = 256,
    workers: int = 0,
    image_cache: Path | None = None,
    precision: str = "fp32",
    progress: Callable[[int], object] | None = None,
) -> Levels:
    """Embeddings of image files. With several processes each embeds its share and all get the whole.

    Args:
        embed: how this network makes embeddings of images.
        model: put into evaluation mode and back; its device is used.
        paths: N image files.
        modality: "visible" or "infrared".
        size: height and width to which images are resized, by `interpolation`.
        image_cache: folder where resized images are kept from one call to the next (`sdcl.data.cache`).
        precision: "bf16" for autocast; embeddings are float32 always.
        progress: called with the number of images after each batch.

    Returns:
        each level [N, d] float32 on the model's device.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    device = device_of(model)
    own = distributed.shares(len(paths))[distributed.rank()]
    read = pixel_reader(paths, modality, size, interpolation, image_cache, workers)
    loader = evaluation_loader(list(paths[own]), torch.from_numpy, batch_size, workers, read)
    parts: list[Levels] = []

    def add(images: Tensor, rows: int) -> None:
        with distributed.autocast(device, precision):
            found = embed(model, images, modality)
        parts.append({level: x[:rows].float() for level, x in found.items()})

    was_training = model.training
    model.eval()
    try:
        for images in loader:
            add(normalize_bytes(images.to(device, non_blocking=True)), len(images))
            if progress is not None:
                progress(len(images))
        if not parts:  # a process without a share: levels and their widths, but no row
            add(torch.zeros(1, 3, *size, device=device), 0)
    finally:
        model.train(was_training)
    return {level: distributed.gather_shares(torch.cat([p[level] for p in parts]), len(paths)) for level in parts[0]}


def embed_records(
    embed: Embed,
    model: nn.Module,
    records: Mapping[str, Sequence[ImageRecord]],
    config: RunSettings,
    interpolation: str,
    bar: Callable[[str, int], Callable[[int], object]] | None = None,
) -> dict[str, Levels]:
    """`embed_paths` for the images of each modality, with a run's settings; rows as in `records`.

    bar: makes a progress bar of a name and a number of images.
    """
    return {
        modality: embed_paths(
            embed,
            model,
            [record.path for record in rows],
            modality,
            config.image_size,
            interpolation=interpolation,
            batch_size=config.embedding_batch,
            workers=config.workers,
            image_cache=config.image_cache,
            precision=config.precision,
            progress=bar(f"embed {modality}", len(rows)) if bar else None,
        )
        for modality, rows in records.items()
    }
