"""SYSU-MM01: raw folders `cam1 … cam6/<id>/<image>.jpg` with `exp/*_id.txt`, and the prepared folders made of them."""

import os
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np

from sdcl.data.records import (
    DEMO_HINT,
    IMAGE_SUFFIXES,
    MODALITIES,
    ImageRecord,
    Task,
    TestSet,
    list_names,
    market_records,
    modality_folder,
    place_files,
)
from sdcl.errors import UserError
from sdcl.evaluation import sysu_gallery, sysu_official_gallery, sysu_query

CAMERAS = {"visible": (1, 2, 4, 5), "infrared": (3, 6)}
TRIALS = range(10)  # galleries of a test
ORDERS = ("exp", "rand_perm_cam.mat")  # ten random orders of every folder's images
QUERIES_PER_IDENTITY = 4  # of each test identity and modality, in the same-modality diagnostic folders

_ID = re.compile("[0-9]{1,4}")


def prepare(data_dir: Path, progress: bool = True) -> list[str]:
    """Make `rgb_modify/` and `ir_modify/` in `data_dir` from the raw folders there.

    Each gets `bounding_box_train/` (the training and validation ids), `query/` (the first four images of each test id)
    and `bounding_box_test/` (its other images), files named `<id>_c<camera>_<image>.jpg`. Files are hard links where
    possible. The call may be interrupted and repeated; folders that hold anything else stay untouched.

    Returns one note for each folder left untouched. Raises UserError when raw folders, id lists or images are missing
    and when writing fails.
    """
    training, test = raw_split(data_dir)
    plans = {}
    for modality in MODALITIES:
        folder = os.path.join(data_dir, modality_folder(modality))
        queries, others = _split_queries(raw_records(data_dir, modality, test))
        plans[os.path.join(folder, "bounding_box_train")] = _named(raw_records(data_dir, modality, training))
        plans[os.path.join(folder, "query")] = _named(queries)
        plans[os.path.join(folder, "bounding_box_test")] = _named(others)
    return place_files(plans, progress)


def train_records(data_dir: str | os.PathLike[str], modality: str) -> list[ImageRecord]:
    """The training images of a modality ("visible" or "infrared") from its prepared folder, sorted by path as text.

    Raises UserError when the folder is missing or empty or holds a file of another kind of name.
    """
    folder = os.path.join(data_dir, modality_folder(modality), "bounding_box_train")
    if not os.path.lexists(folder):
        raise UserError(
            f"{folder}: no prepared training images; run `python prepare_sysu.py --data-dir {data_dir}` first "
            f"({DEMO_HINT})"
        )
    return market_records(folder)


def test_set(data_dir: str | os.PathLike[str], shots: int = 1, galleries: str = "seeded") -> TestSet:
    """The cross-modality test on the raw folders: the modes `all_search` and `indoor_search`, each of ten galleries.

    shots: gallery images of an identity and camera. With more than one the modes are named for it, such as
    `all_search_10_shot`: their numbers do not compare with single-shot ones.
    galleries: picks by Python's generator ("seeded") or by `exp/rand_perm_cam.mat` ("official").

    Raises UserError when folders or lists are missing or malformed.
    """
    if galleries == "official" and not os.path.isfile(os.path.join(data_dir, *ORDERS)):
        raise UserError(
            f"{os.path.join(data_dir, *ORDERS)}: no such file; the official galleries are picked by it: copy it there "
            "from SYSU-MM01 as released, or test with --galleries seeded"
        )
    gallery_of = {"seeded": sysu_gallery, "official": sysu_official_gallery}[galleries]
    try:
        query = [ImageRecord(*q) for q in sysu_query(data_dir)]
        picks = {
            mode: [[ImageRecord(*g) for g in gallery_of(data_dir, mode, t, shots)] for t in TRIALS]
            for mode in ("all", "indoor")
        }
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"the test set cannot be read: {error}") from error
    # One image is often picked in several trials: each is embedded once.
    visible = sorted({record for trials in picks.values() for gallery in trials for record in gallery})
    row = {record: i for i, record in enumerate(visible)}
    rows = ("infrared", np.arange(len(query)))
    variant = "" if shots == 1 else f"_{shots}_shot"
    tasks = [
        Task(f"{mode}_search{variant}", rows, [("visible", np.array([row[r] for r in gallery])) for gallery in trials])
        for mode, trials in picks.items()
    ]
    return TestSet({"visible": visible, "infrared": query}, tasks, galleries)


def raw_split(data_dir: str | os.PathLike[str]) -> tuple[list[int], list[int]]:
    """Sorted training ids (those of `train_id.txt` and `val_id.txt`) and test ids of the raw data set.

    Raises UserError when a folder or list is missing, a list is malformed, an id is in both parts, or a listed id has
    no image at any camera.
    """
    folders = [*(f"cam{camera}" for camera in range(1, 7)), "exp"]
    absent = [name for name in folders if not os.path.exists(os.path.join(data_dir, name))]
    if absent:
        raise UserError(
            f"{data_dir}: {', '.join(absent)} not found; put SYSU-MM01 as released (cam1 … cam6 and exp) there, "
            f"or name its folder with --data-dir ({DEMO_HINT})"
        )
    training = sorted({*read_ids(data_dir, "train_id.txt"), *read_ids(data_dir, "val_id.txt")})
    test = sorted(set(read_ids(data_dir, "test_id.txt")))
    both = sorted({*training} & {*test})
    if both:
        raise UserError(
            f"{os.path.join(data_dir, 'exp')}: id {both[0]} is both a training and a test id ({len(both)} such ids); "
            "restore the released id lists"
        )
    cameras = [camera for modality in MODALITIES for camera in CAMERAS[modality]]
    seen = {record.identity for record in _raw_images(data_dir, cameras, training + test)}
    unseen = [identity for identity in training + test if identity not in seen]
    if unseen:
        raise UserError(
            f"{os.path.join(data_dir, 'exp')}: the lists name id {unseen[0]:04d}, which has no image in cam1 … cam6 "
            f"({len(unseen)} such ids); the copy of the data set is incomplete: copy the missing folders"
        )
    return training, test


def raw_records(data_dir: str | os.PathLike[str], modality: str, identities: Iterable[int]) -> list[ImageRecord]:
    """Raw images of these ids in a modality's cameras, sorted by id, camera and file name."""
    return sorted(_raw_images(data_dir, CAMERAS[modality], identities), key=lambda r: (r.identity, r.camera, r.path))


def read_ids(data_dir: str | os.PathLike[str], name: str) -> list[int]:
    """Ids of `exp/<name>`: one line of numbers in 0…9999, separated by commas. Raises UserError."""
    path = os.path.join(data_dir, "exp", name)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it is part of SYSU-MM01 as released, copy it there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    entries = [entry.strip() for entry in text.strip().strip(",").split(",")]
    for entry in entries:
        if not _ID.fullmatch(entry):  # digits alone, so that no entry can name a path outside the data folder
            raise UserError(
                f"{path}: must be one line of ids (0…9999) separated by commas, but holds {entry[:40]!r}; "
                "restore the released file"
            )
    return [int(entry) for entry in entries]


def _raw_images(
    data_dir: str | os.PathLike[str], cameras: Iterable[int], identities: Iterable[int]
) -> list[ImageRecord]:
    """Images of these ids in these cameras; an id without a folder at a camera was not seen there."""
    records = []
    names = {f"{identity:04d}": identity for identity in identities}
    for camera in cameras:
        folder = os.path.join(data_dir, f"cam{camera}")
        try:
            present = sorted(names.keys() & set(os.listdir(folder)))
        except NotADirectoryError:
            raise UserError(f"{folder}: this is a file, the folder of camera {camera} is needed here") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
        for name in present:
            path = os.path.join(folder, name)
            images = [image for image in list_names(path) if image.lower().endswith(IMAGE_SUFFIXES)]
            records += [ImageRecord(os.path.join(path, image), names[name], camera) for image in images]
    return records


def _split_queries(records: list[ImageRecord]) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The first images of each identity, and all others; `records` are sorted by identity."""
    queries, others = [], []
    for _, group in groupby(records, key=lambda record: record.identity):
        images = list(group)
        queries += images[:QUERIES_PER_IDENTITY]
        others += images[QUERIES_PER_IDENTITY:]
    return queries, others


def _named(records: Iterable[ImageRecord]) -> dict[str, str]:
    """Prepared file name -> raw path."""
    return {f"{r.identity:04d}_c{r.camera}_{os.path.basename(r.path)}": r.path for r in records}
