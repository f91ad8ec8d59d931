"""Checkpoints: what is in them, writing and reading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.settings import RunSettings
from sdcl.tensor_files import fill, read_weights
from sdcl.version import __version__

__all__ = [
    "FORMAT",
    "load_weights",
    "own_checkpoint",
    "pack",
    "read_checkpoint",
    "save_checkpoint",
]

FORMAT = "sdcl-1"
"""Marks a file of this project (`own_checkpoint` tells formats apart by it)."""

CONTENTS = {
    "model": dict, "config": dict, "epoch": int, "trial": int, "fingerprint": str, "metrics": dict, "code_version": str,
}  # fmt: skip
"""What every checkpoint holds beside its format and method, and its type."""


def pack(
    model: nn.Module,
    config: RunSettings,
    *,
    method: str,
    epoch: int,
    trial: int,
    fingerprint: str,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """What `best.pth` holds: enough to test, convert and judge the weights. Plain types and tensors only."""
    return {
        "format": FORMAT,
        "method": method,
        "model": model.state_dict(),
        "config": config.to_json(),
        "epoch": epoch,
        "trial": trial,
        "fingerprint": fingerprint,
        "metrics": dict(metrics),
        "code_version": __version__,
    }


def save_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes a packed checkpoint, with whatever else a run needs to go on from it."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given the name alone, torch would not say why a write failed
            torch.save(dict(checkpoint), file)

    write_atomically(path, write)


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """All tensors of a checkpoint's "model" into the network, or UserError: nothing missing, nothing of another
    shape."""
    names = list(model.state_dict())
    source = checkpoint["model"]
    fill(model, source, dict(zip(names, names, strict=True)), path, sorted(source.keys() - set(names)))


def own_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint as `read_checkpoint` gives it, or None: the file is readable, but of another implementation.

    Raises UserError where the file is missing, damaged, or not whole.
    """
    data = read_weights(path)
    return _whole(data, path, CONTENTS) if data.get("format") == FORMAT else None


def read_checkpoint(path: Path, further: Mapping[str, type] = MappingProxyType({})) -> dict[str, Any]:
    """A checkpoint of this project, as a dict on the CPU; no pickled code is run.

    Args:
        further: what it must hold beyond `CONTENTS`, name → type.

    Raises:
        UserError: missing, damaged, of another format, or not whole.
    """
    data = read_weights(path)
    if data.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project; the file that training goes on from is last.pth")
    return _whole(data, path, CONTENTS | dict(further))


def _whole(data: dict[str, Any], path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    """The same dict with its method; UserError when something wanted is absent or of another type."""
    absent = [name for name in wanted if name not in data]
    if absent:
        raise UserError(f"{path} is only a part of a checkpoint: it lacks {', '.join(absent)}; take last.pth or "
                        "best.pth as training wrote them")  # fmt: skip
    data.setdefault("method", "sdcl")  # files of version 0.1 do not name it
    wrong = [name for name, kind in {"method": str, **wanted}.items() if not isinstance(data[name], kind)]
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} in it is of another type; take last.pth or best.pth as "
                        "training wrote them")  # fmt: skip
    return data
