"""Image files: opened by one rule for training, tests, export and cache, and which of them cannot be read, known before
hours are spent on the others."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

from sdcl import distributed
from sdcl.data.records import ImageRecord
from sdcl.errors import UserError

NAMED = 10
"""So many unreadable files are named; of more the number is told."""


def open_image(path: str) -> Image.Image:
    """Read a whole image file as RGB. Raises UserError, with the path, for a missing, truncated or other file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except Exception as error:  # decoders meet broken files with errors of many kinds
        raise UserError(
            f"{path}: cannot be read as an image ({error}); restore this file, or go on without it: --skip-unreadable"
        ) from None


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


def unreadable_images(records: Mapping[str, Sequence[ImageRecord]], kind: str, skip: bool) -> set[str]:
    """Opens every image of these records and returns the paths of those that cannot be read.

    It takes seconds (every epoch reads the same files again) and happens once, on one process, with a bar.

    Args:
        records: by modality.
        kind: "training" or "test", for messages.
        skip: say which they are on standard error and go on without them, rather than stop.

    Raises:
        UserError: some cannot be read and `skip` is off, or a modality is left without images.
    """
    paths = [record.path for part in records.values() for record in part]
    _, reasons = distributed.from_main(lambda: find_unreadable(paths, progress=sys.stderr.isatty()))
    if not reasons:
        return set()
    broken = {_file(path) for path in reasons}  # of several links to one file the first alone was opened
    unreadable = [path for path in sorted(paths) if _file(path) in broken]
    more = f" and {len(unreadable) - NAMED:,} more" if len(unreadable) > NAMED else ""
    what = f"{len(unreadable):,} of {len(paths):,} {kind} images cannot be read: {', '.join(unreadable[:NAMED])}{more}"
    if not skip:
        raise UserError(f"{what}. Restore them, or leave them out with --skip-unreadable")
    for modality, part in records.items():
        if all(record.path in unreadable for record in part):
            raise UserError(f"{what}. No {modality} image is left: restore them")
    if distributed.is_main():
        print(f"warning: {what}. They are left out; results of fewer images do not compare with published ones",
              file=sys.stderr, flush=True)  # fmt: skip
    return set(unreadable)


def _file(path: str) -> tuple[int, int] | str:
    """What tells files apart, whatever they are called: device and inode; the path itself for a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _reason(path: str) -> str:
    """Why an image cannot be read, or an empty text."""
    try:
        open_image(path)
    except UserError as error:
        return str(error)
    return ""
