"""market1501_gen, AML's source: Market-1501 images, their generated infrared partners, and pseudo-labels (data page).

    market1501_train/, market1501_test/                           originals, `<id>_c<camera>…` as in Market-1501
    market1501_train_<style>/, market1501_test_<style>/           partners of the same names in the style of a target
    pplr_pseudo_labels.pth, or pseudo_labels.txt                  labels by file name

The id in a name takes no part but for -1, which marks an image to leave out; the camera does, in sampling.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcl.data.records import IMAGE_SUFFIXES, ImageRecord, identity_and_camera, list_names
from sdcl.data.verify import CheckReport, CheckRow, Count
from sdcl.errors import UserError
from sdcl.tensor_files import read_plain

FOLDERS = ("market1501_train", "market1501_test")
LABEL_FILES = ("pplr_pseudo_labels.pth", "pseudo_labels.txt")
TRUE_IDS = "names"
"""Instead of a label file: the identities in the file names, which makes the source supervised."""
JUNK = -1

_FORMS = (
    "a label file is a pickled sequence of entries (path, label, …), or text with a line `name label` for each image"
)


@dataclass(frozen=True)
class Source:
    """Labelled source images and their partners.

    records: `identity` is the label 0 … classes-1, renumbered in the order of the labels. partners: path of the
    generated partner of each record. unlabelled: images that no label names, left out. unknown: labels of images that
    are not there. origin: where the labels come from, for the report.
    """

    records: list[ImageRecord]
    partners: list[str]
    unlabelled: int
    unknown: int
    origin: str

    @property
    def classes(self) -> int:
        return 1 + max(record.identity for record in self.records)

    def report(self) -> CheckReport:
        """What was found; nothing is published to compare with."""
        sizes = Counter(record.identity for record in self.records)
        counts: dict[str, Count] = {
            "source images with a label": len(self.records),
            "source images without": self.unlabelled,
            "labels of images that are not there": self.unknown,
            "pseudo-identities": len(sizes),
            "of a single image": sum(n == 1 for n in sizes.values()),
            "labels from": self.origin,
        }
        return CheckReport("market1501_gen", [CheckRow(what, n, None, True) for what, n in counts.items()], "")


def load_source(data_dir: str | os.PathLike[str], style: str, labels: str | os.PathLike[str] | None = None) -> Source:
    """The source images that have a label, with their partners, sorted by folder and name.

    Args:
        style: ending of the partners' folders: sysumm01, sysumm02 or regdb.
        labels: a label file; "names" for the identities in the file names; None: the file in `data_dir`.

    Raises:
        UserError: folders are missing, an original or a partner has no counterpart, a name has another form, the
            labels cannot be read or name none of the images.
    """
    pairs = [pair for folder in FOLDERS for pair in _pairs(data_dir, folder, f"{folder}_{style}")]
    if str(labels) == TRUE_IDS:
        by_name = {os.path.basename(record.path): record.identity for record, _ in pairs}
        origin = "the identities in the file names: the source is supervised"
    else:
        file = _label_file(data_dir) if labels is None else Path(labels)
        by_name, origin = read_labels(file), file.name
    used = [pair for pair in pairs if os.path.basename(pair[0].path) in by_name]
    if not used:
        raise UserError(
            f"{data_dir}: none of the {len(pairs):,} source images is named by the labels ({origin}), which are of "
            "another data set, or of names of another form"
        )
    known = sorted({by_name[os.path.basename(record.path)] for record, _ in used})
    number = {label: n for n, label in enumerate(known)}
    records = [r._replace(identity=number[by_name[os.path.basename(r.path)]]) for r, _ in used]
    names = {os.path.basename(record.path) for record, _ in pairs}
    return Source(
        records, [partner for _, partner in used], len(pairs) - len(used), len(by_name.keys() - names), origin
    )


def original_images(data_dir: str | os.PathLike[str]) -> list[ImageRecord]:
    """All originals but junk, with the identities of their names, sorted by folder and name. Raises UserError for
    folders that are missing or empty, and names of another form."""
    return [record for folder in FOLDERS for record in _records(data_dir, folder, _names(data_dir, folder))]


def read_labels(path: str | os.PathLike[str]) -> dict[str, int]:
    """File name → label of a pseudo-label file, pickled or text; no pickled code is run.

    Raises:
        UserError: no such file, another form, an image with two labels, or a negative label: outliers must be left
            out, or a class of them would be learnt.
    """
    path = Path(path)
    entries = _text_entries(path) if path.suffix == ".txt" else _pickled_entries(path)
    labels: dict[str, int] = {}
    for place, (name, label) in enumerate(entries, 1):
        name = name.replace("\\", "/").rsplit("/", 1)[-1]
        if label < 0:
            raise UserError(
                f"{path}: entry {place} ({name}) has the label {label}; leave outliers out of the file: a class of "
                "them would be learnt"
            )
        if labels.setdefault(name, label) != label:
            raise UserError(f"{path}: {name} has the labels {labels[name]} and {label}; give each image one")
    if not labels:
        raise UserError(f"{path}: it holds no label; {_FORMS}")
    return labels


def write_labels(path: Path, labels: Mapping[str, int]) -> None:
    """The plain-text form, a line `name label` for each image, sorted by name."""
    path.write_text("".join(f"{name} {labels[name]}\n" for name in sorted(labels)), encoding="utf-8")


def _text_entries(path: Path) -> list[tuple[str, int]]:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_FORMS}") from None
    entries = []
    for n, line in enumerate(lines, 1):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            if not name.strip() or not label.removeprefix("-").isdecimal() or not label.isascii():
                raise UserError(f"{path}, line {n}: must read `name label`, but is {line[:80]!r}")
            entries.append((name.strip(), int(label)))
    return entries


def _pickled_entries(path: Path) -> list[tuple[str, int]]:
    data = read_plain(path)
    if not isinstance(data, list | tuple):
        raise UserError(f"{path} holds a {type(data).__name__}; {_FORMS}")
    entries = []
    for n, entry in enumerate(data, 1):
        fine = isinstance(entry, list | tuple) and len(entry) >= 2 and isinstance(entry[0], str)
        label = entry[1].item() if fine and hasattr(entry[1], "item") else entry[1] if fine else None
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(f"{path}: entry {n} is {str(entry)[:80]}; {_FORMS}")
        entries.append((entry[0], label))
    return entries


def _label_file(data_dir: str | os.PathLike[str]) -> Path:
    files = [Path(data_dir) / name for name in LABEL_FILES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"{data_dir}: neither {' nor '.join(LABEL_FILES)} is there; the first comes with market1501_gen, the "
            "second (lines `name label`) can be of any clustering; or name a file with --source-labels"
        )
    return found


def _pairs(data_dir: str | os.PathLike[str], originals: str, partners: str) -> list[tuple[ImageRecord, str]]:
    """Originals with their partners' paths, sorted by name; names compared as sets, junk left out."""
    names = {folder: _names(data_dir, folder) for folder in (originals, partners)}
    for folder, other in ((originals, partners), (partners, originals)):
        lonely = sorted(names[folder] - names[other])
        if lonely:
            raise UserError(
                f"{os.path.join(data_dir, other)}: {len(lonely):,} of the {len(names[folder]):,} images of {folder} "
                f"have none of the same name there, the first is {lonely[0]}; copy the missing files, or delete the "
                "surplus"
            )
    records = _records(data_dir, originals, names[originals])
    return [(r, os.path.join(data_dir, partners, os.path.basename(r.path))) for r in records]


def _records(data_dir: str | os.PathLike[str], folder: str, names: set[str]) -> list[ImageRecord]:
    """Sorted by name; all names have the form."""
    numbers = {name: identity_and_camera(name) or (JUNK, 0) for name in names}
    return [ImageRecord(os.path.join(data_dir, folder, name), *numbers[name]) for name in sorted(names)]


def _names(data_dir: str | os.PathLike[str], folder: str) -> set[str]:
    """Names of a flat folder's images without junk. UserError for a missing folder and a name of another form."""
    path = os.path.join(data_dir, folder)
    if not os.path.isdir(path):
        raise UserError(
            f"{path}: no such folder; put market1501_gen as released into {data_dir}, or name its folder with "
            "--source-dir"
        )
    names = {name for name in list_names(path) if name.lower().endswith(IMAGE_SUFFIXES)}
    for name in sorted(names):
        numbers = identity_and_camera(name)
        if numbers is None:
            raise UserError(f"{os.path.join(path, name)}: the name does not begin with <id>_c<camera>")
        if numbers[0] == JUNK:
            names.discard(name)
    if not names:
        raise UserError(f"{path}: it holds no image; put market1501_gen as released into {data_dir}")
    return names
