"""SYSU-MM02: three lists of images in `train/` and `test/` (data page, "SYSU-MM02").

`train.txt`, `test_rgb.txt` and `test_ir.txt` hold lines `<path below the folder> <id> <camera>`; camera 1 is visible, 2
and 3 are infrared. The training images are cut out of untrimmed videos by a detector, unlabelled: the ids of their list
are placeholders as far as is known here, any whole number is accepted, and nothing uses them. Unknown too, as nobody
here has the files: what they are called, and whether paths begin with `train/` or `test/`, so both forms are read.
"""

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np

from sdcl.data.images import find_unreadable
from sdcl.data.records import DEMO_HINT, MODALITIES, ImageRecord, Task, TestSet, whole_number
from sdcl.data.verify import CheckReport, CheckRow, Count
from sdcl.errors import UserError

UNKNOWN = -1
"""Identity of every training image."""
CAMERAS = {"visible": (1,), "infrared": (2, 3)}
TRAINING, TEST = "train.txt", {"visible": "test_rgb.txt", "infrared": "test_ir.txt"}

# Wu, Lin, Zheng, "Asymmetric Mutual Learning …", IEEE TCSVT 2024, and the README of its code.
PUBLISHED: Mapping[str, Count] = {
    "visible training images": 7_440,
    "infrared training images": 13_614,
    "visible test images": 2_360,
    "infrared test images": 2_360,
    "test identities": 118,
}
COST = "results of other images do not compare with published ones"

_LINE = re.compile(r"(.+) (-?\d+) (\d+)")


def train_records(data_dir: str | os.PathLike[str], modality: str) -> list[ImageRecord]:
    """The training images of a modality ("visible" or "infrared"), sorted by path as text.

    Raises UserError when the list is missing, malformed or without an image of the modality, and for listed images
    that do not exist.
    """
    listed = list_records(data_dir, TRAINING)
    records = sorted(r._replace(identity=UNKNOWN) for r in listed if r.camera in CAMERAS[modality])
    if not records:
        raise UserError(
            f"{os.path.join(data_dir, TRAINING)}: no {modality} image (camera {_cameras(modality)}) is listed; restore "
            "the released file"
        )
    return records


def test_set(data_dir: str | os.PathLike[str]) -> TestSet:
    """All test images of one modality against all of the other, both directions; nothing is removed, no draws.

    Raises UserError as `train_records` does, and for an image of the other modality's camera.
    """
    images = {m: list_records(data_dir, TEST[m]) for m in MODALITIES}
    for modality, records in images.items():
        wrong = next((r for r in records if r.camera not in CAMERAS[modality]), None)
        if wrong:
            raise UserError(
                f"{os.path.join(data_dir, TEST[modality])}: {wrong.path} is of camera {wrong.camera}, but {modality} "
                f"images are of camera {_cameras(modality)}; restore the released file"
            )
    visible, infrared = ((m, np.arange(len(images[m]))) for m in MODALITIES)
    return TestSet(
        images, [Task("visible_to_infrared", visible, [infrared]), Task("infrared_to_visible", infrared, [visible])]
    )


def list_records(data_dir: str | os.PathLike[str], name: str) -> list[ImageRecord]:
    """The images that a list names, in its order. CRLF line ends and a last line without one are read as they should.

    Raises UserError for a missing, empty or malformed list, an image twice, and images that do not exist.
    """
    path = os.path.join(data_dir, name)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: no such file; put SYSU-MM02 as released (train, test and three lists) into {data_dir}, or name "
            f"its folder with --data-dir ({DEMO_HINT})"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    entries = [_parse(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UserError(f"{path}: the list is empty; restore the released file")
    if len({entry[0] for entry in entries}) < len(entries):
        raise UserError(f"{path}: {len(entries) - len({e[0] for e in entries})} images are listed twice; restore it")
    root = _root(data_dir, "train" if name == TRAINING else "test", entries[0][0])
    records = [ImageRecord(os.path.join(root, *relative.parts), i, c) for relative, i, c in entries]
    absent = [record.path for record in records if not os.path.isfile(record.path)]
    if absent:
        raise UserError(
            f"{path}: {len(absent):,} of {len(records):,} listed images do not exist, the first is {absent[0]}; the "
            "copy of SYSU-MM02 is incomplete: copy the missing files"
        )
    return records


def verify(
    data_dir: str | os.PathLike[str],
    deep: bool = False,
    published: Mapping[str, Count] | None = PUBLISHED,
    progress: bool = True,
) -> CheckReport:
    """Counts of `data_dir` beside the published ones. deep: also read every image. Raises UserError as the readers."""
    training = {m: train_records(data_dir, m) for m in MODALITIES}
    test = test_set(data_dir).images
    counts: dict[str, Count] = {f"{m} training images": len(training[m]) for m in MODALITIES}
    counts |= {f"{m} test images": len(test[m]) for m in MODALITIES}
    counts["test identities"] = len({r.identity for records in test.values() for r in records})
    wanted = published or {}
    rows = [CheckRow(what, n, wanted.get(what), n == wanted.get(what, n)) for what, n in counts.items()]
    paths = [r.path for records in (*training.values(), *test.values()) for r in records]
    return CheckReport("SYSU-MM02", rows, COST, *(find_unreadable(paths, progress) if deep else (0, {})))


def _parse(line: str, where: str) -> tuple[PurePosixPath, int, int]:
    """One line `<path> <id> <camera>`; `where` names it in errors."""
    match = _LINE.fullmatch(line.strip())
    if not match:
        raise UserError(f"{where}: must read `path id camera`, but is {line[:80]!r}; restore the released file")
    relative, camera = PurePosixPath(match[1]), whole_number(match[3], where)
    if relative.is_absolute() or ".." in relative.parts or "\\" in match[1] or "\0" in match[1]:
        raise UserError(f"{where}: {match[1][:80]!r} leads out of the data folder; restore the released file")
    if camera not in (1, 2, 3):
        raise UserError(f"{where}: camera {camera} is unknown (1 is visible, 2 and 3 are infrared)")
    return relative, whole_number(match[2], where), camera


def _root(data_dir: str | os.PathLike[str], split: str, first: PurePosixPath) -> str:
    """Where a list's paths begin: at the data folder, as is expected, or at its `train` or `test`."""
    inside = os.path.join(data_dir, split)
    found_inside = os.path.isfile(os.path.join(inside, *first.parts))
    return inside if found_inside and not os.path.isfile(os.path.join(data_dir, *first.parts)) else str(data_dir)


def _cameras(modality: str) -> str:
    return " or ".join(map(str, CAMERAS[modality]))
