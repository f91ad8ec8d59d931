"""Counts of a data set against the published ones, and which of its files cannot be read."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from sdcl.data import folder, regdb, sysu
from sdcl.data.loading import open_image
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.errors import UserError
from sdcl.evaluation import sysu_gallery, sysu_query

Count = int | str

# Wu et al., "RGB-Infrared Cross-Modality Person Re-Identification", ICCV 2017, and the protocol in common use since.
SYSU_PUBLISHED: Mapping[str, Count] = {
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
SYSU_COST = "the usual incomplete copy (367 training identities) trains to about 10 points less"

# Nguyen et al., "Person Recognition System Based on a Combination of Body Images …", Sensors 2017, and the ten splits
# in common use: in each trial 206 of 412 identities train and 206 test, with 10 images an identity and modality.
REGDB_PUBLISHED: Mapping[str, Count] = {
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
REGDB_COST = "results of other images or splits do not compare with published ones"


@dataclass(frozen=True)
class CheckRow:
    """One counted thing: what was found, what is published (None: nothing to compare with), whether it is right."""

    what: str
    found: Count
    published: Count | None
    ok: bool


@dataclass(frozen=True)
class CheckReport:
    """Result of a verification.

    unreadable: path -> reason; empty when every file was read, or when none was (`opened` = 0).
    cost: what differing counts mean for the results.
    """

    name: str
    rows: list[CheckRow]
    cost: str
    opened: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def differing(self) -> list[CheckRow]:
        """Rows whose count is not the published one, or not that of the raw folders."""
        return [row for row in self.rows if not row.ok]

    @property
    def ok(self) -> bool:
        """Every count right and every opened file readable."""
        return not self.differing and not self.unreadable

    def table(self) -> str:
        """Several lines: what, found, published, verdict; then the unreadable files, if any."""
        lines = [("", "found", "published", "")]
        for row in self.rows:
            published = "" if row.published is None else _text(row.published)
            lines.append((row.what, _text(row.found), published, "ok" if row.ok else "DIFFERS"))
        if self.opened:
            verdict = "FAILS" if self.unreadable else "ok"
            lines.append(("unreadable files", f"{len(self.unreadable):,} of {self.opened:,}", "", verdict))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        table = [
            f"{what:<{widths[0]}}  {found:>{widths[1]}}  {published:>{widths[2]}}  {verdict}".rstrip()
            for what, found, published, verdict in lines
        ]
        return "\n".join([*table, *(f"unreadable: {reason}" for reason in self.unreadable.values())])

    @property
    def verdict(self) -> str:
        """One line: all is well, or what is wrong and what it costs."""
        parts = []
        if self.unreadable:
            first = next(iter(self.unreadable))
            parts.append(f"{len(self.unreadable):,} of {self.opened:,} files cannot be read (the first: {first})")
        if self.differing:
            listed = "; ".join(_difference(row) for row in self.differing)
            parts.append(f"WARNING: counts differ from the published ones: {listed}. Note that {self.cost}")
        if parts:
            return f"{self.name}: {'. '.join(parts)}."
        compared = any(row.published is not None for row in self.rows)
        counts = "all counts are as published" if compared else "counts agree"
        return f"{self.name}: {counts}{f', all {self.opened:,} files can be read' if self.opened else ''}."


def verify_sysu(
    data_dir: str | os.PathLike[str],
    deep: bool,
    published: Mapping[str, Count] | None = SYSU_PUBLISHED,
    progress: bool = True,
) -> CheckReport:
    """Count SYSU-MM01 in `data_dir`, prepared training folders and raw folders.

    deep: also read every image of the raw folders and of the prepared training folders (minutes).
    published: counts to compare with, by the rows' names; None for a set that only shares the layout.
    Raises UserError when folders or id lists are missing, malformed, or name absent identities.
    """
    training_ids, test_ids = sysu.raw_split(data_dir)
    counts: dict[str, Count] = {}
    wanted = dict(published or {})
    paths: list[str] = []
    for modality in MODALITIES:
        prepared = sysu.train_records(data_dir, modality)
        raw = sysu.raw_records(data_dir, modality, training_ids)
        counts[f"{modality} training identities"] = len({record.identity for record in prepared})
        counts[f"{modality} training images"] = len(prepared)
        counts[f"{modality} training images, raw"] = len(raw)
        counts[f"{modality} cameras"] = " ".join(map(str, sorted({record.camera for record in prepared})))
        wanted.setdefault(f"{modality} training images", len(raw))
        paths += [record.path for record in [*raw, *sysu.raw_records(data_dir, modality, test_ids), *prepared]]
    counts["test identities"] = len(test_ids)
    try:
        counts["infrared queries"] = len(sysu_query(data_dir))
        counts["all-search gallery of a trial"] = len(sysu_gallery(data_dir, "all", 0))
        counts["indoor-search gallery of a trial"] = len(sysu_gallery(data_dir, "indoor", 0))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    return _report("SYSU-MM01", counts, published, wanted, SYSU_COST, paths if deep else [], progress)


def verify_regdb(
    data_dir: str | os.PathLike[str],
    deep: bool,
    trials: Sequence[int] = regdb.TRIALS,
    published: Mapping[str, Count] | None = REGDB_PUBLISHED,
    progress: bool = True,
) -> CheckReport:
    """Count RegDB in `data_dir`: the lists of these trials and their prepared training folders.

    deep, published, and what is raised: as `verify_sysu`. Where a count is not the same in all trials, the trials
    that differ are named.
    """
    by_trial: dict[str, dict[int, int]] = {}
    paths: list[str] = []
    for trial in trials:
        for modality in MODALITIES:
            prepared = regdb.train_records(data_dir, modality, trial)
            raw = regdb.list_records(data_dir, "train", modality, trial)
            test = regdb.test_records(data_dir, modality, trial)
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
    return _report("RegDB", counts, published, wanted, REGDB_COST, paths if deep else [], progress)


def verify_folder(data_dir: str | os.PathLike[str]) -> CheckReport:
    """Count what `sdcl.data.folder` makes of the names in `data_dir`; there is nothing published to compare with.

    Raises UserError as its functions do.
    """
    counts: dict[str, Count] = {}
    training = {m: folder.train_records(data_dir, m) for m in MODALITIES}
    for modality, records in training.items():
        counts[f"{modality} training identities"] = len({record.identity for record in records})
        counts[f"{modality} training images"] = len(records)
        counts[f"{modality} cameras"] = " ".join(map(str, sorted({record.camera for record in records})))
    test = folder.test_set(data_dir)
    for task in test.tasks:
        asked, found = (test.of(side)[0] for side in (task.query, task.galleries[0]))
        mode = task.mode.replace("_", " ")
        counts[f"{mode}, queries"] = len(asked)
        counts[f"{mode}, gallery images"] = len(found)
        counts[f"{mode}, identities in both"] = len({*asked.tolist()} & {*found.tolist()})
    return _report("the data folder", counts, None, {}, "", [], progress=False)


def find_unreadable(paths: Iterable[str], progress: bool = True) -> tuple[int, dict[str, str]]:
    """Decode every image once (hard links of one file together), in threads.

    Returns the number of files opened and path -> reason for those that cannot be read, sorted by path.
    """
    files: dict[tuple[int, int], str] = {}
    unreadable: dict[str, str] = {}
    for path in sorted(set(paths)):
        try:
            status = os.stat(path)
        except OSError as error:
            unreadable[path] = f"{path}: {error.strerror}"
        else:
            files.setdefault((status.st_dev, status.st_ino), path)
    with ThreadPoolExecutor() as pool:
        reading = pool.map(_reason, files.values())
        reasons = list(tqdm(reading, "reading every image", len(files), unit="file", disable=not progress))
    count = len(files) + len(unreadable)
    unreadable |= {path: reason for path, reason in zip(files.values(), reasons, strict=True) if reason}
    return count, dict(sorted(unreadable.items()))


def data_fingerprint(records: Sequence[ImageRecord]) -> str:
    """16 hexadecimal digits that identify these images by name (relative to their common folder) and file size.

    Equal wherever the data set lies; another number of images, other names or sizes give another one.
    """
    if not records:
        raise ValueError("no images to take a fingerprint of")
    root = os.path.commonpath([os.path.dirname(record.path) for record in records])
    digest = hashlib.sha256()
    for path in sorted(record.path for record in records):
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; the file was there a moment ago, or is a broken link") from None
        digest.update(f"{os.path.relpath(path, root)}\0{size}\n".encode())
    return digest.hexdigest()[:16]


def _report(
    name: str,
    counts: Mapping[str, Count],
    published: Mapping[str, Count] | None,
    wanted: Mapping[str, Count],
    cost: str,
    paths: Sequence[str],
    progress: bool,
) -> CheckReport:
    """wanted: what a count must equal to be right: the published count, else what the raw folders hold."""
    rows = [
        CheckRow(what, found, (published or {}).get(what), found == wanted.get(what, found))
        for what, found in counts.items()
    ]
    opened, unreadable = find_unreadable(paths, progress) if paths else (0, {})
    return CheckReport(name, rows, cost, opened, unreadable)


def _over_trials(counts: Mapping[int, int]) -> Count:
    """The count that all trials share, or the most frequent one with the trials that differ."""
    usual = Counter(counts.values()).most_common(1)[0][0]
    others = [f"trial {trial}: {count:,}" for trial, count in counts.items() if count != usual]
    return f"{usual:,} ({', '.join(others)})" if others else usual


def _difference(row: CheckRow) -> str:
    instead = "" if row.published is None else f" instead of {_text(row.published)}"
    return f"{row.what} {_text(row.found)}{instead}"


def _text(count: Count) -> str:
    return f"{count:,}" if isinstance(count, int) else count


def _reason(path: str) -> str:
    """Why an image cannot be read, or an empty text."""
    try:
        open_image(path)
    except UserError as error:
        return str(error)
    return ""
