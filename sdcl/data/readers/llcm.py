"""LLCM: lists of training images in `idx/`, and test images in folders of cameras and identities (data page, "LLCM").

What other papers call near infrared (NIR) is "infrared" here. Cameras of both modalities carry the same numbers.
"""

import os
import random
import re
from collections.abc import Mapping

import numpy as np

from sdcl.data.records import (
    DEMO_HINT,
    IMAGE_SUFFIXES,
    MODALITIES,
    ImageRecord,
    Task,
    TestSet,
    list_names,
    open_regular,
    path_below,
    shown,
    whole_number,
)
from sdcl.data.verify import CheckReport, Count, count_report
from sdcl.errors import UserError

CAMERAS = {"visible": (1, 2, 3, 4, 5, 6, 7, 8, 9), "infrared": (1, 2, 4, 5, 6, 7, 8, 9)}
TRIALS = range(10)  # galleries of a test
FOLDERS = {"visible": "test_vis", "infrared": "test_nir"}
LISTS = {"visible": "train_vis.txt", "infrared": "train_nir.txt"}
TEST_IDS = os.path.join("idx", "test_id.txt")
DIRECTIONS = (("infrared", "visible"), ("visible", "infrared"))

# Zhang, Wang, "Diverse Embedding Expansion Network …", CVPR 2023. The set was revised later: a difference is no fault.
PUBLISHED: Mapping[str, Count] = {
    "visible training identities": 713,
    "visible training images": 16_946,
    "infrared training identities": 713,
    "infrared training images": 13_975,
    "test identities": 351,
    "visible test images": 8_680,
    "infrared test images": 7_166,
}
REMARK = "the counts beside them are the paper's; the set was revised after it, so that others can be right"

_CAMERA = re.compile(r"(?<![A-Za-z0-9])c(?:am)?0*([1-9])(?![0-9])")
_ID = re.compile("[0-9]{1,4}")


def train_records(data_dir: str | os.PathLike[str], modality: str) -> list[ImageRecord]:
    """The images of a modality ("visible" or "infrared") that its training list names, sorted by path as text.

    The camera is the number after `c` or `cam` in the file's name or its folder; 1 where there is none.

    Raises:
        UserError: the list is missing or malformed, or names images that do not exist.
    """
    file = os.path.join(data_dir, "idx", LISTS[modality])
    records = []
    for number, line in enumerate(_read(file, data_dir).splitlines(), 1):
        if not line.strip():
            continue
        where, parts = f"{file}, line {number}", line.rsplit(maxsplit=1)
        if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
            raise UserError(f"{where}: must read `path label`, but is {shown(line)[:80]!r}; restore the released file")
        path = path_below(data_dir, parts[0], where)
        records.append(ImageRecord(path, whole_number(parts[1], where), camera_of(parts[0]) or 1))
    if not records:
        raise UserError(f"{file}: the list is empty; restore the released file")
    absent = [record.path for record in records if not os.path.isfile(record.path)]
    if absent:
        raise UserError(
            f"{file}: {len(absent):,} of {len(records):,} listed images do not exist, the first is {shown(absent[0])}; "
            "the copy of LLCM is incomplete: copy the missing files"
        )
    return sorted(records)


def camera_of(path: str) -> int | None:
    """The camera that a training image's path names, the file's name before its folders; None where none does."""
    for part in reversed(path.split("/")):
        found = _CAMERA.search(part.replace("_", " "))
        if found:
            return int(found[1])
    return None


def test_set(data_dir: str | os.PathLike[str]) -> TestSet:
    """Both directions, `infrared_to_visible` and `visible_to_infrared`, each of ten seeded galleries.

    Query: every test image of a modality. Gallery of trial t, from the other one: Python's generator seeded with t;
    over the identities in ascending order, and for each over the cameras in ascending order, one `choice` from the
    sorted names of the folder, if it exists.

    Raises UserError when folders or the list of identities are missing or malformed.
    """
    ids = test_ids(data_dir)
    folders = {m: _folders(data_dir, m, ids) for m in MODALITIES}
    images = {m: sorted((r for f in found for r in f), key=_by_camera) for m, found in folders.items()}
    row = {record: n for records in images.values() for n, record in enumerate(records)}
    tasks = []
    for asked, searched in DIRECTIONS:
        galleries = []
        for trial in TRIALS:
            draw = random.Random(trial)
            picks = [draw.choice(folder) for folder in folders[searched]]
            galleries.append((searched, np.array([row[pick] for pick in picks])))
        tasks.append(Task(f"{asked}_to_{searched}", (asked, np.arange(len(images[asked]))), galleries))
    return TestSet(images, tasks, "seeded")


def test_ids(data_dir: str | os.PathLike[str]) -> list[int]:
    """Sorted test identities. Raises UserError for a missing or malformed list, or one that names an identity twice."""
    file = os.path.join(data_dir, TEST_IDS)
    entries = [entry.strip() for entry in _read(file, data_dir).strip().strip(",").split(",")]
    for entry in entries:
        if not _ID.fullmatch(entry):
            raise UserError(
                f"{file}: must be one line of identities (0…9999) separated by commas, but holds {entry[:40]!r}; "
                "restore the released file"
            )
    ids = sorted(int(entry) for entry in entries)
    twice = [a for a, b in zip(ids, ids[1:], strict=False) if a == b]
    if twice:
        raise UserError(f"{file}: it names identity {twice[0]} twice; restore the released file")
    return ids


def verify(
    data_dir: str | os.PathLike[str],
    deep: bool = False,
    published: Mapping[str, Count] | None = PUBLISHED,
    progress: bool = True,
) -> CheckReport:
    """Counts of `data_dir` beside the paper's, which are a remark: none of them is called wrong.

    deep: also read every image. Raises UserError as the readers do.
    """
    training = {m: train_records(data_dir, m) for m in MODALITIES}
    test = test_set(data_dir).images
    counts: dict[str, Count] = {}
    for modality, records in training.items():
        counts[f"{modality} training identities"] = len({r.identity for r in records})
        counts[f"{modality} training images"] = len(records)
        counts[f"{modality} cameras"] = " ".join(map(str, sorted({r.camera for r in records})))
    counts["test identities"] = len(test_ids(data_dir))
    counts |= {f"{m} test images": len(test[m]) for m in MODALITIES}
    unnamed = sum(camera_of(os.path.relpath(r.path, data_dir)) is None for part in training.values() for r in part)
    remarks = [REMARK] if any(counts.get(what) != n for what, n in (published or {}).items()) else []
    if unnamed:
        remarks.append(f"{unnamed:,} training images name no camera and are taken as camera 1's")
    paths = [r.path for records in (*training.values(), *test.values()) for r in records] if deep else []
    return count_report("LLCM", counts, published, {}, "", paths, progress, "; ".join(remarks))


def _by_camera(record: ImageRecord) -> tuple[int, int, str]:
    return record.camera, record.identity, record.path


def _folders(data_dir: str | os.PathLike[str], modality: str, ids: list[int]) -> list[list[ImageRecord]]:
    """The images of every test folder of a modality, sorted by name; folders by identity, then camera."""
    root, found = os.path.join(data_dir, FOLDERS[modality]), []
    absent = [f"cam{c}" for c in CAMERAS[modality] if not os.path.isdir(os.path.join(root, f"cam{c}"))]
    if absent:
        raise UserError(f"{root}: {', '.join(absent)} not found; {_hint(data_dir)}")
    for identity in ids:
        for camera in CAMERAS[modality]:
            folder = os.path.join(root, f"cam{camera}", f"{identity:04d}")
            if not os.path.lexists(folder):
                continue
            names = [name for name in list_names(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
            if not names:                        # skipping it would shift every later pick of the trial, unnoticed
                raise UserError(f"{folder}: it holds no image; the copy of LLCM is incomplete: copy this folder")
            found.append([ImageRecord(os.path.join(folder, name), identity, camera) for name in names])
    if not found:
        raise UserError(f"{root}: no identity of {TEST_IDS} has a folder there; the copy of LLCM is incomplete")
    return found


def _read(file: str, data_dir: str | os.PathLike[str]) -> str:
    """A list's text; names that are not UTF-8 are carried through."""
    try:
        with open_regular(file) as opened:
            return opened.read().decode("utf-8-sig", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file}: no such file; {_hint(data_dir)}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _hint(data_dir: str | os.PathLike[str]) -> str:
    return (
        f"put LLCM as released (vis, nir, idx, test_vis and test_nir) into {data_dir}, or name its folder with "
        f"--data-dir ({DEMO_HINT})"
    )
