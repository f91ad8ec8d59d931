"""Checkpoints that a kill or a full disk cannot damage, and what is in them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdcl.errors import UserError
from sdcl.settings import RunSettings
from sdcl.tensor_files import fill, read_weights
from sdcl.version import __version__

__all__ = [
    "FORMAT",
    "is_own_format",
    "load_weights",
    "pack",
    "read_checkpoint",
    "read_json",
    "remove_leftovers",
    "save_checkpoint",
    "write_atomically",
    "write_json",
]

FORMAT = "sdcl-1"
"""Marks a file of this project (`is_own_format` tells formats apart by it)."""

CONTENTS = {
    "model": dict, "config": dict, "epoch": int, "trial": int, "fingerprint": str, "metrics": dict, "code_version": str,
}  # fmt: skip
"""What every checkpoint holds beside its format and method, and its type."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, syncs it to disk and renames it; `path` is old or new, never
    half. A kill in between leaves the temporary file (`remove_leftovers`).

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before is whole.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)                                       # the rename itself
        os.close(folder)
    except (OSError, RuntimeError) as error:                   # torch.save turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"cannot write {path}: {reason}. A file of this name that was there before is whole. Free space, or "
            "correct the permissions, and repeat (training: with --resume auto)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed writes left in a folder that nobody else writes to."""
    for temporary in sorted(folder.glob(".*.tmp")):
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that this project wrote.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:  # no JSON, or no UTF-8
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object. Restore it, or delete it and run again")
    return data


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
    write_atomically(path, lambda p: torch.save(dict(checkpoint), p))


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """All tensors of a checkpoint's "model" into the network, or UserError: nothing missing, nothing of another
    shape."""
    names = list(model.state_dict())
    source = checkpoint["model"]
    fill(model, source, dict(zip(names, names, strict=True)), path, sorted(source.keys() - set(names)))


def is_own_format(path: Path) -> bool:
    """Whether the file is a checkpoint of this project rather than another implementation's."""
    return read_weights(path).get("format") == FORMAT


def read_checkpoint(path: Path, further: tuple[str, ...] = ()) -> dict[str, Any]:
    """A checkpoint of this project, as a dict on the CPU; no pickled code is run.

    Args:
        further: names that it must hold beyond `CONTENTS`.

    Raises:
        UserError: missing, damaged, of another format, or not whole.
    """
    data = read_weights(path)
    if data.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project; the file that training goes on from is last.pth")
    absent = [name for name in (*CONTENTS, *further) if name not in data]
    if absent:
        raise UserError(f"{path} is only a part of a checkpoint: it lacks {', '.join(absent)}; take last.pth or "
                        "best.pth as training wrote them")  # fmt: skip
    data.setdefault("method", "sdcl")  # files of version 0.1 do not name it
    wrong = [name for name, kind in {"method": str, **CONTENTS}.items() if not isinstance(data[name], kind)]
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} in it is of another type; take last.pth or best.pth as "
                        "training wrote them")  # fmt: skip
    return data
