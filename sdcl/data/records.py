"""Image records and the Market-1501 style folders that hold them.

Both data sets are prepared into folders of files named `<id>_c<camera>_<image>`; this module reads such folders
(whichever program wrote them) and writes them (hard links where the file system allows, copies elsewhere).
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sdcl.errors import UserError

MODALITIES = ("visible", "infrared")
PREPARED_FOLDERS = {"visible": "rgb_modify", "infrared": "ir_modify"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
DEMO_HINT = "without the data set, `bash scripts/demo.sh` runs the whole method on generated images"

_NAME = re.compile(r"(-?\d+)_c(\d+)")
_PARTIAL = ".partial-"  # a copy in progress; the leading dot hides it from every listing
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


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


def images_below(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the images (`IMAGE_SUFFIXES`) in a folder and its sub-folders, linked ones too, sorted as text.

    Hidden files and folders are left out. Raises UserError when a folder is missing or may not be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    paths = []
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not is_junk(name)]
        paths += [os.path.join(place, n) for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not is_junk(n)]
    return sorted(paths)


def identity_and_camera(name: str) -> tuple[int, int] | None:
    """The numbers of a file name that begins with `<id>_c<camera>`, padded with zeros or not; None for another name."""
    match = _NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


def market_records(folder: str | os.PathLike[str]) -> list[ImageRecord]:
    """Records of a folder of `<id>_c<camera>_<image>` files, sorted by path as text.

    The order matters: pseudo-label numbers and tie rules follow it (method page, section 3). Ids may be padded with
    zeros or not. Raises UserError for a missing or empty folder and for a file whose name has another form.
    """
    records = []
    for name in list_names(folder):
        numbers = identity_and_camera(name)
        if numbers is None:
            raise UserError(
                f"{os.path.join(folder, name)}: the name is not of the form <id>_c<camera>_<image>; "
                "move the file elsewhere or rename it"
            )
        records.append(ImageRecord(os.path.join(folder, name), *numbers))
    if not records:
        raise UserError(f"{folder}: the folder holds no image; delete it and run the prepare script again")
    return records


@contextmanager
def write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the failures of writing below `folder` into a UserError that says what to do."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{error.filename or folder}: a file is where a folder should be; move it away") from None
    except PermissionError as error:
        raise UserError(f"{error.filename or folder}: no permission to write; prepare a data folder you own") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: the disk is full; free some space and run the same command again") from None
        if error.errno == errno.EROFS:
            raise UserError(f"{folder}: the file system is read-only; link the data set somewhere writable") from None
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None


def place_files(plans: Mapping[str, Mapping[str, str]], progress: bool) -> list[str]:
    """Fill folders with links to, or copies of, other files.

    plans: folder -> {file name: source path}. Every file appears whole or not at all, and one that is already there is
    left alone, so that the call may be interrupted and repeated. A folder that holds any file the plan does not
    account for (another name, or another size than its source) was made by another program or from other raw files:
    nothing in it is touched.
    progress: show a progress bar.

    Returns one note for each folder that was left untouched for that reason. Raises UserError when writing fails.
    """
    notes = []
    missing: list[tuple[str, str]] = []
    for folder, plan in plans.items():
        present = list_names(folder) if os.path.lexists(folder) else []
        strangers = [
            name for name in present if name not in plan or not _same_size(os.path.join(folder, name), plan[name])
        ]
        if strangers:
            notes.append(
                f"{folder}: left as it is with {len(present):,} files, of which {len(strangers):,} do not come from "
                f"the raw images here (the first: {strangers[0]}; the raw images would give {len(plan):,}); "
                "delete the folder to have it made anew"
            )
            continue
        have = set(present)
        missing += [(plan[name], os.path.join(folder, name)) for name in plan if name not in have]
        with write_errors(folder):
            os.makedirs(folder, exist_ok=True)
    for source, destination in tqdm(missing, desc="preparing", unit="file", disable=not progress or not missing):
        with write_errors(os.path.dirname(destination)):
            _link_or_copy(source, destination)
    return notes


def _same_size(path: str, source: str) -> bool:
    try:
        return os.stat(path).st_size == os.stat(source).st_size
    except OSError:  # a symbolic link to nowhere
        return False


def _link_or_copy(source: str, destination: str) -> None:
    source = os.path.realpath(source)  # a hard link to a relative symbolic link would point nowhere
    try:
        os.link(source, destination)
        return
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    folder, name = os.path.split(destination)
    partial = os.path.join(folder, _PARTIAL + name)
    shutil.copyfile(source, partial)
    os.replace(partial, destination)
