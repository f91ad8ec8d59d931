"""Files that a kill or a full disk cannot damage, and JSON that a user may have damaged."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdcl.errors import UserError

__all__ = ["check_writable", "read_json", "remove_leftovers", "write_atomically", "write_json"]


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
        if interruption := next((e for e in _causes(error) if not isinstance(e, Exception)), None):
            raise interruption from None                       # and a Ctrl-C
        raise UserError(
            f"cannot write {path}: {_reason(error)}. A file of this name that was there before is whole. Free space, "
            "or correct the permissions, and repeat (training: with --resume auto)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _reason(error: BaseException) -> str:
    """What the system said: torch.save raises an error of its own while it handles the system's."""
    for found in _causes(error):
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the one during whose handling it was raised, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__context__


def check_writable(path: Path) -> None:
    """Raises UserError where a file of this name could not be written: before work is done that would be lost."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder. Name a file")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"cannot write {path}: the folder {folder} {what}. Make it, or name a file in another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: the folder {folder} may not be written to. Name a file in another")


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed writes left in a folder that nobody else writes to."""
    for temporary in sorted(folder.glob(".*.tmp")):
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that this project wrote.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):                       # no JSON, or no UTF-8
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object. Restore it, or delete it and run again")
    return data
