"""Checkpoints that a kill or a full disk cannot damage, and what is in them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sdcl.version import __version__
from sdcl.config import Config
from sdcl.errors import UserError

__all__ = ["FORMAT", "is_own_format", "pack", "read_checkpoint", "save_checkpoint", "write_atomically", "write_json"]

FORMAT = "sdcl-1"
"""Marks a file of this project (`load_checkpoint` tells formats apart by it)."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, syncs it to disk and renames it; `path` is old or new, never half.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before is whole.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)                                       # the rename itself
        os.close(folder)
    except (OSError, RuntimeError) as error:                   # torch.save turns a full disk into a RuntimeError
        raise UserError(f"cannot write {path}: {error}. An earlier file of this name is whole; free space or correct "
                        "the permissions and go on with --resume auto") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))


def pack(model: nn.Module, config: Config, *, epoch: int, stage: int, trial: int, fingerprint: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """What `best.pth` holds: enough to test, convert and judge the weights. Plain types and tensors only."""
    return {"format": FORMAT, "model": model.state_dict(), "config": config.to_json(), "epoch": epoch, "stage": stage, "trial": trial,
            "fingerprint": fingerprint, "metrics": metrics, "code_version": __version__}


def save_checkpoint(path: Path, checkpoint: dict[str, Any], optimizer: Optimizer | None = None, **state: Any) -> None:
    """Writes a packed checkpoint, with the optimiser and further state where a run is to go on from it (`last.pth`)."""
    if optimizer is not None:
        checkpoint = {**checkpoint, "optimizer": optimizer.state_dict(), **state}
    write_atomically(path, lambda p: torch.save(checkpoint, p))


def is_own_format(path: Path) -> bool:
    """Whether the file is a checkpoint of this project rather than another implementation's."""
    return _read(path).get("format") == FORMAT


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this project, as a dict on the CPU; no pickled code is run.

    Raises:
        UserError: missing, damaged, or of another format.
    """
    data = _read(path)
    if data.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project")
    return data


def _read(path: Path) -> dict[str, Any]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {first}); it is damaged or of another kind") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a checkpoint")
    return data
