"""Pseudo-labels of a modality, and the files in which stage 0 hands them on (CCLNet page, sections 2 and 4)."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.clustering import cluster
from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.memory import cluster_centers

__all__ = ["LABEL_FILES", "cluster_modality", "read_labels", "write_labels"]

LABEL_FILES = {
    "visible": "train_rgb_resized_pseudo_label.npy",
    "infrared": "train_ir_resized_pseudo_label.npy",
}
"""The published names, so that the authors' files can be put in place of a run's own."""


def cluster_modality(features: Tensor, eps: float, min_samples: int, k1: int, k2: int) -> tuple[Tensor, Tensor]:
    """Clusters a modality by itself.

    Args:
        features: [N, d] of unit length. The others as in `sdcl.clustering.cluster`.

    Returns:
        labels [N] int64, 0 … K-1, -1 = outlier, and centres [K, d]: means of the *normalised* features (SDCL's are of
        un-normalised ones), to unit length.

    Raises:
        ValueError: there is no cluster.
    """
    labels = torch.from_numpy(cluster(features, eps, min_samples, k1, k2)).to(features.device)
    return labels, F.normalize(cluster_centers(features, labels), dim=1)


def write_labels(folder: Path, labels: dict[str, Tensor]) -> None:
    """Writes both modalities' labels [N] as int64 NumPy files with the published names."""
    for modality, y in labels.items():
        data = io.BytesIO()  # np.save would add .npy to the name of a temporary file
        np.save(data, y.cpu().numpy().astype(np.int64))
        write_atomically(folder / LABEL_FILES[modality], partial(_write_bytes, data.getvalue()))


def _write_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def read_labels(path: Path, rows: int, modality: str) -> Tensor:
    """Stored labels [rows] int64 of a modality's training images, in the order of the sorted paths.

    Raises:
        UserError: no such file, no NumPy file of integers, labels for another number of images, or labels that leave
            a cluster empty.
    """
    if not path.is_file():
        raise UserError(f"no stored {modality} labels at {path}; run stage 0 first, or name the folder that has them")
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a NumPy file of labels ({error})") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path} holds no list of whole numbers, which labels are")
    if len(labels) != rows:
        raise UserError(
            f"{path} has {len(labels)} labels, but there are {rows} {modality} training images; labels belong to one "
            "data set and its sorted order, so take those of this one or run stage 0"
        )
    labels = labels.astype(np.int64)
    found = np.unique(labels[labels >= 0])
    if len(found) == 0 or labels.min() < -1 or found[-1] != len(found) - 1:
        raise UserError(f"{path} must number its clusters 0, 1, 2, … without gaps, and outliers -1")
    return torch.from_numpy(labels)
