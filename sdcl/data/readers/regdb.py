"""RegDB: raw images with ten numbered splits in `idx/`, and the prepared folders made from them.

`idx/{train,test}_{visible,thermal}_{1…10}.txt` hold lines `relative/path.bmp label`. What RegDB calls thermal is
"infrared" here.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdcl.data.prepare import place_files
from sdcl.data.records import (
    DEMO_HINT,
    MODALITIES,
    ImageRecord,
    Task,
    TestSet,
    market_records,
    modality_folder,
    open_regular,
    path_below,
    shown,
    whole_number,
)
from sdcl.data.verify import CheckReport, Count, count_report
from sdcl.errors import UserError

TRIALS = range(1, 11)
CAMERA = 1  # one camera a modality
# Nguyen et al., "Person Recognition System Based on a Combination of Body Images …", Sensors 2017, and the ten splits
# in common use: in each trial 206 of 412 identities train and 206 test, with 10 images an identity and modality.
PUBLISHED: Mapping[str, Count] = {
    f"{modality} {what}": count
    for modality in MODALITIES
    for what, count in (
        ("images of a trial", 4_120),
        ("training identities", 206),
        ("training images", 2_060),
        ("training images, raw", 2_060),
        ("test identities", 206),
        ("test images", 2_060),
    )
}
COST = "results of other images or splits do not compare with published ones"

QUERIES_PER_IDENTITY = 4  # of each test identity and modality, in the same-modality diagnostic folders

_LIST_NAMES = {"visible": "visible", "infrared": "thermal"}


def prepare(data_dir: Path, progress: bool = True) -> list[str]:
    """Make `rgb_modify/<trial>/` and `ir_modify/<trial>/` in `data_dir` for all ten trials.

    Each gets `bounding_box_train/`, `bounding_box_test/` (all images of the trial's lists) and `query/` (the first four
    test images of each identity), files named `<label>_c1_<file>`. Files are hard links where possible. The call may
    be interrupted and repeated; folders that hold anything else stay untouched.

    Returns one note for each folder left untouched. Raises UserError when lists or images are missing, a list is
    malformed, and when writing fails.
    """
    plans = {}
    for trial in TRIALS:
        for modality in MODALITIES:
            folder = os.path.join(data_dir, modality_folder(modality), str(trial))
            test = test_records(data_dir, modality, trial)
            plans[os.path.join(folder, "bounding_box_train")] = _named(list_records(data_dir, "train", modality, trial))
            plans[os.path.join(folder, "query")] = _named(_first_images(test))
            plans[os.path.join(folder, "bounding_box_test")] = _named(test)
    return place_files(plans, progress)


def train_records(data_dir: str | os.PathLike[str], modality: str, trial: int) -> list[ImageRecord]:
    """A trial's training images of a modality from its prepared folder, sorted by path as text.

    modality: "visible" or "infrared"; trial: 1…10, ValueError otherwise.
    Raises UserError when the folder is missing or empty or holds a file of another kind of name.
    """
    _check_trial(trial)
    folder = os.path.join(data_dir, modality_folder(modality), str(trial), "bounding_box_train")
    if not os.path.lexists(folder):
        raise UserError(
            f"{folder}: no prepared training images; run `python prepare_regdb.py --data-dir {data_dir}` first "
            f"({DEMO_HINT})"
        )
    return market_records(folder)


def test_records(data_dir: str | os.PathLike[str], modality: str, trial: int) -> list[ImageRecord]:
    """A trial's test images of a modality: raw files in the order of the test list. Arguments as `train_records`.

    Raises UserError for a missing or malformed list and for listed images that do not exist.
    """
    return list_records(data_dir, "test", modality, trial)


def test_set(data_dir: str | os.PathLike[str], trial: int) -> TestSet:
    """A trial's test: all of its test images of one modality against all of the other, in both directions.

    Arguments and what is raised: as `test_records`.
    """
    images = {m: test_records(data_dir, m, trial) for m in MODALITIES}
    visible, infrared = ((m, np.arange(len(images[m]))) for m in MODALITIES)
    return TestSet(
        images, [Task("visible_to_thermal", visible, [infrared]), Task("thermal_to_visible", infrared, [visible])]
    )


def verify(
    data_dir: str | os.PathLike[str],
    deep: bool,
    trials: Sequence[int] = TRIALS,
    published: Mapping[str, Count] | None = PUBLISHED,
    progress: bool = True,
) -> CheckReport:
    """Count RegDB in `data_dir`: the lists of these trials and their prepared training folders.

    deep, published, and what is raised: as `sysu.verify`. Where a count is not the same in all trials, the trials
    that differ are named.
    """
    by_trial: dict[str, dict[int, int]] = {}
    paths: list[str] = []
    for trial in trials:
        for modality in MODALITIES:
            prepared = train_records(data_dir, modality, trial)
            raw = list_records(data_dir, "train", modality, trial)
            test = test_records(data_dir, modality, trial)
            found = {
                "images of a trial": len({record.path for record in [*raw, *test]}),  # fewer if the lists overlap
                "training identities": len({record.identity for record in prepared}),
                "training images": len(prepared),
                "training images, raw": len(raw),
                "test identities": len({record.identity for record in test}),
                "test images": len(test),
            }
            for what, count in found.items():
                by_trial.setdefault(f"{modality} {what}", {})[trial] = count
            paths += [record.path for record in [*raw, *test, *prepared]]
    counts = {what: _over_trials(found) for what, found in by_trial.items()}
    wanted = dict(published or {})
    for modality in MODALITIES:
        wanted.setdefault(f"{modality} training images", counts[f"{modality} training images, raw"])
    return count_report("RegDB", counts, published, wanted, COST, paths if deep else [], progress)


def list_records(data_dir: str | os.PathLike[str], split: str, modality: str, trial: int) -> list[ImageRecord]:
    """The raw images that `idx/<split>_<modality>_<trial>.txt` names, in its order; split is "train" or "test"."""
    _check_trial(trial)
    modality_folder(modality)  # checks the name
    path = os.path.join(data_dir, "idx", f"{split}_{_LIST_NAMES[modality]}_{trial}.txt")
    try:
        with open_regular(path) as file:  # names that are not UTF-8 are carried through
            lines = file.read().decode("utf-8-sig", "surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: no such file; put RegDB as released (Visible, Thermal and idx) into {data_dir}, "
            f"or name its folder with --data-dir ({DEMO_HINT})"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    records = [_parse(line, data_dir, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise UserError(f"{path}: the list is empty; restore the released file")
    absent = [record.path for record in records if not os.path.isfile(record.path)]
    if absent:
        raise UserError(
            f"{path}: {len(absent):,} of {len(records):,} listed images do not exist, the first is {shown(absent[0])}; "
            "the copy of RegDB is incomplete: copy the missing files"
        )
    return records


def _over_trials(counts: Mapping[int, int]) -> Count:
    """The count that all trials share, or the most frequent one with the trials that differ."""
    usual = Counter(counts.values()).most_common(1)[0][0]
    others = [f"trial {trial}: {count:,}" for trial, count in counts.items() if count != usual]
    return f"{usual:,} ({', '.join(others)})" if others else usual


def _parse(line: str, data_dir: str | os.PathLike[str], where: str) -> ImageRecord:
    """One line `relative/path.bmp label`; `where` names it in errors."""
    parts = line.rsplit(maxsplit=1)
    if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
        raise UserError(f"{where}: must read `path.bmp label`, but is {shown(line)[:80]!r}; restore the released file")
    return ImageRecord(path_below(data_dir, parts[0], where), whole_number(parts[1], where), CAMERA)


def _first_images(records: list[ImageRecord]) -> list[ImageRecord]:
    """The first images of each identity by path."""
    groups = defaultdict(list)
    for record in sorted(records):
        groups[record.identity].append(record)
    return [record for images in groups.values() for record in images[:QUERIES_PER_IDENTITY]]


def _named(records: list[ImageRecord]) -> dict[str, str]:
    """Prepared file name -> raw path. UserError when two raw files would share a name."""
    named: dict[str, str] = {}
    for record in records:
        name = f"{record.identity}_c{CAMERA}_{os.path.basename(record.path)}"
        if named.setdefault(name, record.path) != record.path:
            raise UserError(
                f"{record.path} and {named[name]} would both be prepared as {name}: one file name twice under one "
                "label; restore the released lists"
            )
    return named


def _check_trial(trial: int) -> None:
    if trial not in TRIALS:
        raise ValueError(f"RegDB has trials 1 to 10, not {trial!r}")
