"""What one stage hands on to the next, and the files that hold it (CCLNet page, sections 0 and 2)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.frame.checkpoints import save_checkpoint
from sdcl.tensor_files import read_weights

__all__ = ["LABEL_FILES", "Handover", "read_handover", "read_labels", "write_handover", "write_labels"]

LABEL_FILES = {
    "visible": "train_rgb_resized_pseudo_label.npy",
    "infrared": "train_ir_resized_pseudo_label.npy",
}
"""The published names, so that the authors' files can stand in for a run's own."""


@dataclass(frozen=True)
class Handover:
    """Dicts by modality, tensors on the CPU.

    Attributes:
        labels: [N] int64, stage 0's last clusters of all training images, -1 = none: the stored labels.
        contexts: [K, 4, w], stage 1's learned vectors, of those clusters; empty before it.
        texts: [K, P], the text vectors that they give; empty before the end of stage 1.
    """

    labels: dict[str, Tensor]
    contexts: dict[str, Tensor]
    texts: dict[str, Tensor]


# -- labels -------------------------------------------------------------------------------------------------------


def write_labels(folder: Path, labels: Mapping[str, Tensor]) -> None:
    """Writes both modalities' labels [N] as int64 NumPy files with the published names."""
    for modality, y in labels.items():
        data = io.BytesIO()  # np.save would add .npy to the name of a temporary file
        np.save(data, y.cpu().numpy().astype(np.int64))
        write_atomically(folder / LABEL_FILES[modality], partial(_write_bytes, data.getvalue()))


def _write_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def read_labels(folder: Path, records: Mapping[str, Sequence[ImageRecord]]) -> dict[str, Tensor]:
    """Stored labels [N] int64 of both modalities' training images, in the order of the sorted paths.

    Raises:
        UserError: a file is missing, is no NumPy file of whole numbers, has labels for another number of images, or
            leaves a cluster empty.
    """
    return {m: _read_labels(folder / LABEL_FILES[m], len(records[m]), m) for m in MODALITIES}


def _read_labels(path: Path, rows: int, modality: str) -> Tensor:
    if not path.is_file():
        raise UserError(f"no stored {modality} labels at {path}; run stage 0 first, or name the folder that has them")
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as a NumPy file of labels ({reason})") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path} holds no list of whole numbers, which labels are")
    return _checked(torch.from_numpy(labels.astype(np.int64)), rows, modality, path)


def _checked(labels: Tensor, rows: int, modality: str, path: Path) -> Tensor:
    """The labels, if they are those of so many images."""
    if len(labels) != rows:
        raise UserError(
            f"{path} has {len(labels)} labels, but there are {rows} {modality} training images; labels belong to one "
            "data set and its sorted order, so take those of this one or run stage 0"
        )
    found = labels[labels >= 0].unique()
    if len(found) == 0 or int(labels.min()) < -1 or int(found[-1]) != len(found) - 1:
        raise UserError(f"{path} must number its clusters 0, 1, 2, … without gaps, and outliers -1")
    return labels


# -- prompts ------------------------------------------------------------------------------------------------------

FORMAT = "cclnet-prompts"


def write_handover(path: Path, handover: Handover) -> None:
    """Writes what stage 1 hands on to stage 2 (prompts.pth)."""
    save_checkpoint(path, {"format": FORMAT, **vars(handover)})


def read_handover(path: Path, records: Mapping[str, Sequence[ImageRecord]] | None = None) -> Handover:
    """What `write_handover` wrote.

    Args:
        records: training images by modality that the labels must fit; None: not compared.

    Raises:
        UserError: no such file, another kind of file, or of other images.
    """
    data = read_weights(path)
    parts: dict[str, Any] = {name: data.get(name) for name in ("labels", "contexts", "texts")}
    whole = all(isinstance(part, dict) and all(m in part for m in MODALITIES) for part in parts.values())
    if data.get("format") != FORMAT or not whole:
        raise UserError(f"{path} is not what stage 1 hands on; take the prompts.pth of a run that finished stage 1")
    handover = Handover(**parts)
    for m, rows in (records or {}).items():
        _checked(handover.labels[m], len(rows), m, path)
    return handover
