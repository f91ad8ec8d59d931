"""Image records, what tests are made of, and the folders of images that hold them."""

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

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
