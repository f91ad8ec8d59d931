"""Images of any origin in the three folders of Market-1501, told apart by their names alone (data page, "Your own
images").

`bounding_box_train/`, `query/` and `bounding_box_test/` hold files `<id>_c<camera>_<anything>_<modality>.<ext>`, in
sub-folders or not:

- the identity is the number before the first `_`; images of identity -1 (junk) are left out everywhere;
- the camera is the number after `_c`; whatever follows its digits (Market-1501's `s1`) is of no account;
- the modality is one of `WORDS`, in any case, that stands by itself between `_`, `-`, `.` or spaces in the file's name,
  or in the name of a sub-folder.
"""

import os
import re

import numpy as np

from sdcl.data.records import (
    DEMO_HINT,
    MODALITIES,
    ImageRecord,
    Task,
    TestSet,
    identity_and_camera,
    images_below,
    shown,
)
from sdcl.data.verify import CheckReport, Count, count_report
from sdcl.errors import UserError

TRAINING, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
WORDS = {"visible": "visible", "rgb": "visible", "infrared": "infrared", "ir": "infrared", "thermal": "infrared"}
JUNK = -1
DIRECTIONS = (("infrared", "visible"), ("visible", "infrared"))
"""Modality of the query and of the gallery, in the order of the test's modes."""

_RULE = (
    "name images <id>_c<camera>_<anything>_<modality>.<ext>, such as 0007_c2_0001_infrared.jpg; the modality is one of "
    f"{', '.join(WORDS)} and can be the name of a sub-folder instead"
)


def train_records(data_dir: str | os.PathLike[str], modality: str) -> list[ImageRecord]:
    """The images of a modality ("visible" or "infrared") in `bounding_box_train`, sorted by path as text.

    Raises UserError when the folder is missing, holds no such image, or holds an image whose name has another form.
    """
    folder = os.path.join(data_dir, TRAINING)
    records = _records(folder)[modality]
    if not records:
        raise UserError(f"{folder}: it holds no {modality} image, and training needs both modalities; {_RULE}")
    return records


def test_set(data_dir: str | os.PathLike[str]) -> TestSet:
    """All of `query` against all images of the other modality in `bounding_box_test`.

    The modes are `infrared_to_visible` and `visible_to_infrared`, each where there are such queries and such gallery
    images; images that neither needs are not in the test. Nothing is removed from a ranking.
    Raises UserError when a folder is missing, an image's name has another form, or neither direction has images.
    """
    query, gallery = (_records(os.path.join(data_dir, name)) for name in (QUERY, GALLERY))
    images: dict[str, list[ImageRecord]] = {m: [] for m in MODALITIES}

    def side(modality: str, records: list[ImageRecord]) -> tuple[str, np.ndarray]:
        first = len(images[modality])
        images[modality] += records
        return modality, np.arange(first, len(images[modality]))

    tasks = [
        Task(f"{asked}_to_{found}", side(asked, query[asked]), [side(found, gallery[found])])
        for asked, found in DIRECTIONS
        if query[asked] and gallery[found]
    ]
    if not tasks:
        raise UserError(
            f"{data_dir}: {QUERY} and {GALLERY} hold no images of different modalities, so that there is nothing to "
            f"retrieve across them; {_RULE}"
        )
    return TestSet(images, tasks)


def verify(data_dir: str | os.PathLike[str]) -> CheckReport:
    """Count what this module makes of the names in `data_dir`; there is nothing published to compare with.

    Raises UserError as its functions do.
    """
    counts: dict[str, Count] = {}
    training = {m: train_records(data_dir, m) for m in MODALITIES}
    for modality, records in training.items():
        counts[f"{modality} training identities"] = len({record.identity for record in records})
        counts[f"{modality} training images"] = len(records)
        counts[f"{modality} cameras"] = " ".join(map(str, sorted({record.camera for record in records})))
    test = test_set(data_dir)
    for task in test.tasks:
        asked, found = (test.of(side)[0] for side in (task.query, task.galleries[0]))
        mode = task.mode.replace("_", " ")
        counts[f"{mode}, queries"] = len(asked)
        counts[f"{mode}, gallery images"] = len(found)
        counts[f"{mode}, identities in both"] = len({*asked.tolist()} & {*found.tolist()})
    return count_report("the data folder", counts, None, {}, "", [], progress=False)


def _records(folder: str) -> dict[str, list[ImageRecord]]:
    """The images of each modality below a folder, sorted by path as text, without junk."""
    if not os.path.isdir(folder):
        raise UserError(
            f"{folder}: no such folder; a data folder of this kind holds {TRAINING}, {QUERY} and {GALLERY}: put your "
            f"images there, or name their folder with --data-dir ({DEMO_HINT})"
        )
    root, part = os.path.split(folder)
    apart = [os.path.join(root, other) for other in (TRAINING, QUERY, GALLERY) if other != part]
    records: dict[str, list[ImageRecord]] = {m: [] for m in MODALITIES}
    for path in images_below(folder, apart):
        numbers = identity_and_camera(path)
        if numbers is None:
            raise UserError(f"{shown(path)}: the name does not begin with <id>_c<camera>; {_RULE}")
        words = re.split(r"[_\-.\s/\\]+", os.path.relpath(path, folder).lower())
        modalities = sorted({WORDS[word] for word in words if word in WORDS})
        if len(modalities) != 1:
            said = "both modalities" if modalities else "no modality"
            raise UserError(f"{shown(path)}: the name says {said}; {_RULE}")
        if numbers[0] != JUNK:
            records[modalities[0]].append(ImageRecord(path, *numbers))
    return records
