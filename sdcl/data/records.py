"""Image records, what tests are made of, and the folders of images that hold them."""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from sdcl.errors import UserError

MODALITIES = ("visible", "infrared")
PREPARED_FOLDERS = {"visible": "rgb_modify", "infrared": "ir_modify"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
DEMO_HINT = "without the data set, `bash scripts/demo.sh` runs the whole method on generated images"

_NAME = re.compile(r"(-?\d+)_c(\d+)")


class ImageRecord(NamedTuple):
    """One image of a data set.

    `path` is absolute or relative to the working directory; `identity` and `camera` are the numbers of the data set.
    """

    path: str
    identity: int
    camera: int


@dataclass(frozen=True)
class Task:
    """One mode of a test, and its galleries, one a trial: modality and rows of the test set's images."""

    mode: str
    query: tuple[str, np.ndarray]
    galleries: list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class TestSet:
    """Images of a test by modality, each once, and what is retrieved from what."""

    images: dict[str, list[ImageRecord]]
    tasks: list[Task]
    galleries: str = "all"
    """How gallery images were chosen: "seeded" or "official" picks, or "all" of them."""

    def of(self, side: tuple[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Identities and cameras of a query or gallery, int64 [n] each."""
        modality, rows = side
        records = [self.images[modality][r] for r in rows]
        return np.array([r.identity for r in records]), np.array([r.camera for r in records])


def modality_folder(modality: str) -> str:
    """Name of a modality's prepared folder. Raises ValueError for anything but "visible" and "infrared"."""
    if modality not in PREPARED_FOLDERS:
        raise ValueError(f"modality must be 'visible' or 'infrared', not {modality!r}")
    return PREPARED_FOLDERS[modality]


def is_junk(name: str) -> bool:
    """Files that file managers and interrupted copies leave behind: hidden ones and Thumbs.db."""
    return name.startswith(".") or name.lower() == "thumbs.db"


def list_names(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the files in a folder, sorted as text, junk left out.

    Raises UserError when the folder is missing, is a file, or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_junk(entry.name) and not entry.is_dir())
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise UserError(f"{folder}: this is a file, a folder is needed here") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def images_below(folder: str | os.PathLike[str], apart: Sequence[str | os.PathLike[str]] = ()) -> list[str]:
    """Paths of the images (`IMAGE_SUFFIXES`) in a folder and its sub-folders, linked ones too, sorted as text.

    Each real folder is read once, whatever number of links leads to it. Hidden files and folders are left out.

    Args:
        apart: folders that none of the links may lead into: the other parts of the set.

    Raises:
        UserError: a folder is missing or may not be read, or a link leads into a folder of `apart` or back to one that
            holds all of this.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)}: cannot be read ({error.strerror})") from None

    others = [os.path.realpath(other) for other in apart]
    paths, seen, waiting = [], set(), [os.fspath(folder)]
    while waiting:  # real folders first, then what links lead to, so that a folder's own name counts
        links = []
        for start in sorted(waiting):
            target = os.path.realpath(start)
            if start != os.fspath(folder):
                _check_link(start, target, os.path.realpath(folder), others)
            for place, folders, names in os.walk(start, onerror=refuse):
                real = os.path.realpath(place)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                inner = [os.path.join(place, name) for name in folders if not is_junk(name)]
                links += [path for path in inner if os.path.islink(path)]
                folders[:] = [os.path.basename(path) for path in inner if not os.path.islink(path)]
                images = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not is_junk(n)]
                paths += [os.path.join(place, n) for n in images]
        waiting = links
    return sorted(paths)


def _check_link(link: str, target: str, root: str, others: Sequence[str]) -> None:
    """UserError where a linked folder holds, or lies in, another part of the set, or holds the folder that is read."""
    for other in [*others, root]:
        if _holds(target, other) and other != target or other != root and _holds(other, target):
            raise UserError(
                f"{shown(link)}: this link leads to {shown(target)}, which belongs to another part of the set or holds "
                "all of this one; remove the link"
            )


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file to read its bytes. UserError for a FIFO or a device, which might never answer; OSError as
    `open` raises it."""
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{shown(path)}: a FIFO or a device, not a file; remove it")
    return file


def path_below(data_dir: str | os.PathLike[str], relative: str, where: str) -> str:
    """`data_dir` joined with a path of a list; UserError, beginning with `where`, for one that leads out of it."""
    if "\\" in relative:
        raise UserError(f"{where}: {shown(relative)[:80]!r} has \\ in it; the paths of a list are written with /")
    if "\0" in relative:
        raise UserError(f"{where}: {shown(relative)[:80]!r} holds a zero byte; restore the released file")
    root = os.path.abspath(data_dir)
    path = os.path.normpath(os.path.join(root, relative))
    if not _holds(root, path) or path == root:
        raise UserError(f"{where}: {shown(relative)[:80]!r} leads out of {data_dir}; restore the released file")
    return os.path.join(data_dir, os.path.relpath(path, root))


def whole_number(text: str, where: str) -> int:
    """The number that digits say; UserError, beginning with `where`, for one that no data set needs (int64)."""
    if len(text.lstrip("-0")) > 18:
        raise UserError(
            f"{where}: the number {text[:20]}… is too large: identities, labels and cameras have at most 18 digits"
        )
    return int(text)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed anywhere: bytes of its name that are not UTF-8 as \\x…"""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def identity_and_camera(path: str) -> tuple[int, int] | None:
    """The numbers of a file whose name begins with `<id>_c<camera>`, padded with zeros or not; None for another name.

    Raises UserError where they are too large for a number of 64 bits.
    """
    match = _NAME.match(os.path.basename(path))
    return (whole_number(match[1], shown(path)), whole_number(match[2], shown(path))) if match else None


def market_records(folder: str | os.PathLike[str]) -> list[ImageRecord]:
    """Records of a folder of `<id>_c<camera>_<image>` files, sorted by path as text.

    The order matters: pseudo-label numbers and tie rules follow it (method page, section 3). Ids may be padded with
    zeros or not. Raises UserError for a missing or empty folder and for a file whose name has another form.
    """
    records = []
    for name in list_names(folder):
        numbers = identity_and_camera(os.path.join(folder, name))
        if numbers is None:
            raise UserError(
                f"{shown(os.path.join(folder, name))}: the name is not of the form <id>_c<camera>_<image>; "
                "move the file elsewhere or rename it"
            )
        records.append(ImageRecord(os.path.join(folder, name), *numbers))
    if not records:
        raise UserError(f"{folder}: the folder holds no image; delete it and run the prepare script again")
    return records
