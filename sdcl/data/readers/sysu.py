"""SYSU-MM01: raw folders `cam1 … cam6/<id>/<image>.jpg` with `exp/*_id.txt`, and the prepared folders made of them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from sdcl.data.prepare import place_files
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
    open_regular,
)
from sdcl.data.verify import CheckReport, Count, count_report
from sdcl.errors import UserError
from sdcl.evaluation import official_orders, sysu_gallery, sysu_official_gallery, sysu_query

CAMERAS = {"visible": (1, 2, 4, 5), "infrared": (3, 6)}
TRIALS = range(10)  # galleries of a test
ORDERS = ("exp", "rand_perm_cam.mat")  # ten random orders of every folder's images
LISTED = "folders as in " + "/".join(ORDERS)
NAMED = 5  # differing folders that a message names

# Wu et al., "RGB-Infrared Cross-Modality Person Re-Identification", ICCV 2017, and the protocol in common use since.
PUBLISHED: Mapping[str, Count] = {
    "visible training identities": 395,
    "visible training images": 22_258,
    "visible training images, raw": 22_258,
    "visible cameras": "1 2 4 5",
    "infrared training identities": 395,
    "infrared training images": 11_909,
    "infrared training images, raw": 11_909,
    "infrared cameras": "3 6",
    "test identities": 96,
    "infrared queries": 3_803,
    "all-search gallery of a trial": 301,
    "indoor-search gallery of a trial": 112,
}
COST = "the usual incomplete copy (367 training identities) trains to about 10 points less"

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


def verify(
    data_dir: str | os.PathLike[str],
    deep: bool,
    published: Mapping[str, Count] | None = PUBLISHED,
    progress: bool = True,
) -> CheckReport:
    """Count SYSU-MM01 in `data_dir`, prepared training folders and raw folders.

    deep: also read every image of the raw folders and of the prepared training folders (minutes).
    published: counts to compare with, by the rows' names; None for a set that only shares the layout.
    Raises UserError when folders or id lists are missing, malformed, or name absent identities.
    """
    training_ids, test_ids = raw_split(data_dir)
    counts: dict[str, Count] = {}
    wanted = dict(published or {})
    paths: list[str] = []
    for modality in MODALITIES:
        prepared = train_records(data_dir, modality)
        raw = raw_records(data_dir, modality, training_ids)
        counts[f"{modality} training identities"] = len({record.identity for record in prepared})
        counts[f"{modality} training images"] = len(prepared)
        counts[f"{modality} training images, raw"] = len(raw)
        counts[f"{modality} cameras"] = " ".join(map(str, sorted({record.camera for record in prepared})))
        wanted.setdefault(f"{modality} training images", len(raw))
        paths += [record.path for record in [*raw, *raw_records(data_dir, modality, test_ids), *prepared]]
    counts["test identities"] = len(test_ids)
    try:
        counts["infrared queries"] = len(sysu_query(data_dir))
        counts["all-search gallery of a trial"] = len(sysu_gallery(data_dir, "all", 0))
        counts["indoor-search gallery of a trial"] = len(sysu_gallery(data_dir, "indoor", 0))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    inventory = take_inventory(data_dir)
    if inventory is not None:
        counts[LISTED] = f"{inventory.folders - len(inventory.differing):,} of {inventory.folders:,}"
        wanted[LISTED] = f"{inventory.folders:,} of {inventory.folders:,}"
    remark = "" if inventory is None else inventory.message
    return count_report("SYSU-MM01", counts, published, wanted, COST, paths if deep else [], progress, remark)


@dataclass(frozen=True)
class Inventory:
    """A copy, folder by folder, against `exp/rand_perm_cam.mat`: it holds an order of the images of every identity at
    every camera, so that what a copy lacks is found exactly, not by a total.

    folders: identities at cameras that were compared. differing: `cam3/0006` → (images there, images listed)."""

    folders: int
    differing: dict[str, tuple[int, int]]

    @property
    def message(self) -> str:
        """What differs, in one line; empty when nothing does."""
        if not self.differing:
            return ""
        first = [f"{name} ({n} of {listed})" for name, (n, listed) in list(self.differing.items())[:NAMED]]
        more = f" and {len(self.differing) - NAMED:,} more" if len(self.differing) > NAMED else ""
        return (
            f"{len(self.differing):,} of {self.folders:,} folders do not hold as many images as "
            f"{'/'.join(ORDERS)} lists: {', '.join(first)}{more}; copy them again from the release"
        )


def take_inventory(data_dir: str | os.PathLike[str]) -> Inventory | None:
    """Number of images of every listed identity at every camera beside the list's; None where the list is not there.

    The identities are those of the id lists: other folders take no part. Raises UserError for a damaged list, and for
    id lists as `read_ids` does.
    """
    file = Path(data_dir, *ORDERS)
    if not file.is_file():
        return None
    try:
        order = official_orders(file)
    except ValueError as error:
        raise UserError(str(error)) from None
    identities = sorted({i for part in ("train", "val", "test") for i in read_ids(data_dir, f"{part}_id.txt")})
    places = {f"cam{c}/{i:04d}": len(order(i, c, 0)) for c in range(1, 7) for i in identities}
    found = {place: (_image_count(Path(data_dir, place)), listed) for place, listed in places.items()}
    seen = {place: counts for place, counts in found.items() if any(counts)}
    return Inventory(len(seen), {place: counts for place, counts in seen.items() if counts[0] != counts[1]})


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
    for name in folders[:-1]:
        if os.path.isdir(os.path.join(data_dir, name, name)):
            raise UserError(
                f"{os.path.join(data_dir, name, name)}: unpacked a level too low; move what it holds up into "
                f"{os.path.join(data_dir, name)}"
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
    images = _raw_images(data_dir, cameras, training + test)
    _check_cameras(data_dir, images, training, test)
    seen = {record.identity for record in images}
    unseen = [identity for identity in training + test if identity not in seen]
    if unseen:
        raise UserError(
            f"{os.path.join(data_dir, 'exp')}: the lists name id {unseen[0]:04d}, which has no image in cam1 … cam6 "
            f"({len(unseen)} such ids); the copy of the data set is incomplete: copy the missing folders"
        )
    return training, test


def _check_cameras(
    data_dir: str | os.PathLike[str], images: list[ImageRecord], training: list[int], test: list[int]
) -> None:
    """UserError where training or test has no image of a modality, which names the cameras that hold nothing."""
    for part, ids in (("training", {*training}), ("test", {*test})):
        filled = {record.camera for record in images if record.identity in ids}
        for modality, cameras in CAMERAS.items():
            if filled and not filled & {*cameras}:
                raise UserError(
                    f"{data_dir}: {' and '.join(f'cam{c}' for c in cameras)} hold no {modality} image of a {part} "
                    "identity; the copy of the data set is incomplete: copy these folders"
                )


def raw_records(data_dir: str | os.PathLike[str], modality: str, identities: Iterable[int]) -> list[ImageRecord]:
    """Raw images of these ids in a modality's cameras, sorted by id, camera and file name."""
    return sorted(_raw_images(data_dir, CAMERAS[modality], identities), key=lambda r: (r.identity, r.camera, r.path))


def read_ids(data_dir: str | os.PathLike[str], name: str) -> list[int]:
    """Ids of `exp/<name>`: one line of numbers in 0…9999, separated by commas. Raises UserError."""
    path = os.path.join(data_dir, "exp", name)
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig", "replace")
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
    identities = [int(entry) for entry in entries]
    twice = [identity for identity, count in Counter(identities).items() if count > 1]
    if twice:
        raise UserError(f"{path}: it names id {twice[0]} twice ({len(twice)} such ids); restore the released file")
    return identities


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


def _image_count(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(name.lower().endswith(IMAGE_SUFFIXES) for name in list_names(folder))


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
