"""The nearest images of one query, by a trained network of any method."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sdcl.data.records import IMAGE_SUFFIXES, images_below
from sdcl.errors import UserError
from sdcl.frame.embedding import embed_paths
from sdcl.frame.export import Modality, load_trained

__all__ = ["Hit", "nearest_images"]


class Hit(NamedTuple):
    """An image of the gallery and its similarity to the query."""

    path: str
    similarity: float


def nearest_images(
    checkpoint: Path, query: Path, gallery: Path, modalities: tuple[Modality, Modality], top: int
) -> list[Hit]:
    """The `top` images of a folder (its subfolders included) that are most similar to a query image, nearest first.

    Args:
        checkpoint: of this project, any method's; similarities are those of its final test.
        query: an image file; it is left out where it lies in the gallery itself.
        modalities: of the query and of the gallery.

    Raises:
        UserError: no such file or folder, no image in it, or one that cannot be read.
    """
    method, model, config, _ = load_trained(checkpoint)
    paths = [path for path in images_below(gallery) if Path(path).resolve() != query.resolve()]
    if not paths:
        raise UserError(f"{gallery} holds no image to search ({', '.join(IMAGE_SUFFIXES)})")
    features = []
    for files, modality in (([str(query)], modalities[0]), (paths, modalities[1])):
        levels = embed_paths(
            method.embedding,
            model,
            files,
            modality,
            config.image_size,
            interpolation=method.interpolation,
            batch_size=config.embedding_batch,
            workers=config.workers,
        )
        features.append(next(iter(method.features(levels, config, True).values())))
    similarity = method.similarity(*features)[0].cpu()
    order = similarity.argsort(descending=True, stable=True)[:top]
    return [Hit(paths[i], float(similarity[i])) for i in order.tolist()]
