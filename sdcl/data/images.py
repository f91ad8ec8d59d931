"""Image files: opened by one rule for training, tests, export and cache (data page, "Image files"), and which of them
cannot be read, known before hours are spent on the others."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from sdcl import distributed
from sdcl.data.records import ImageRecord, open_regular, shown
from sdcl.errors import UserError

NAMED = 10
"""So many unreadable files are named; of more the number is told."""

SPECIAL = {
    "16 bits": "have 16 bits a pixel, of which the upper 8 are used (0 … 65535 becomes 0 … 255)",
    "transparency": "have transparency, which is left out of account",
    "CMYK": "are CMYK, converted to RGB without a colour profile",
    "orientation": "are turned upright, as their EXIF orientation says",
}
"""Kinds of images that are not read as they are, and what happens to them."""

# Large images that are no bomb are read in silence; from twice this size on Pillow refuses them, with a reason.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112
_ENOUGH = "32-bit and floating-point pixels have no largest value to scale by; save it with 8 or 16 bits"


def open_image(path: str) -> Image.Image:
    """Reads a whole image file as RGB of 8 bits, upright.

    Of 16 bits a pixel the upper 8 are used; transparency is left out of account.

    Raises:
        UserError: with the path, for a missing, truncated or other file, and for pixels of 32 bits.
    """
    try:
        return _decode(path)[0]
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such image") from None
    except Exception as error:  # decoders meet broken files with errors of many kinds
        raise UserError(
            f"{shown(path)}: cannot be read as an image ({_why(error)}); restore this file, or go on without it: "
            "--skip-unreadable"
        ) from None


def _decode(path: str) -> tuple[Image.Image, list[str]]:
    """The image as RGB, and which kinds of `SPECIAL` it is."""
    with open_regular(path) as file, Image.open(file) as opened:
        image: Image.Image = opened
        kinds = ["transparency"] if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info else []
        kinds += ["CMYK"] if image.mode == "CMYK" else []
        if _turned(image):
            kinds.append("orientation")
            image = ImageOps.exif_transpose(image)
        # Pillow before 11.3 opens a PNG of 16 bits as one of 32.
        if image.mode.startswith("I;16") or image.mode == "I" and opened.format == "PNG":
            kinds.append("16 bits")
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(_ENOUGH)
        return image.convert("RGB"), kinds


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # noqa: BLE001 - metadata that cannot be read turn nothing
        return False


def _why(error: Exception) -> str:
    """What a decoder said, without the path before it."""
    return " ".join(str(error).split()) or type(error).__name__


class Inspection(NamedTuple):
    """Image files that were opened: their number, path -> why it cannot be read, sorted by path, and how many are of
    each kind of `SPECIAL`."""

    opened: int
    unreadable: dict[str, str]
    special: dict[str, int]


def inspect_images(paths: Iterable[str], progress: bool = True) -> Inspection:
    """Decodes every image once (hard links of one file together), in threads."""
    files: dict[tuple[int, int], str] = {}
    unreadable: dict[str, str] = {}
    for path in sorted(set(paths)):
        try:
            status = os.stat(path)
        except OSError as error:
            unreadable[path] = str(error.strerror)
        else:
            files.setdefault((status.st_dev, status.st_ino), path)
    special: Counter[str] = Counter()
    opened = len(files) + len(unreadable)
    with ThreadPoolExecutor() as pool:
        reading = tqdm(pool.map(_look, files.values()), "reading every image", len(files), unit="file",
                       disable=not progress)  # fmt: skip
        for path, (reason, kinds) in zip(files.values(), reading, strict=True):
            special.update(kinds)
            if reason:
                unreadable[path] = reason
    return Inspection(opened, dict(sorted(unreadable.items())), dict(special))


def find_unreadable(paths: Iterable[str], progress: bool = True) -> tuple[int, dict[str, str]]:
    """The number of files opened, and path -> `path: reason` for those that cannot be read (`inspect_images`)."""
    found = inspect_images(paths, progress)
    return found.opened, {path: f"{shown(path)}: {reason}" for path, reason in found.unreadable.items()}


def unreadable_images(records: Mapping[str, Sequence[ImageRecord]], kind: str, skip: bool) -> set[str]:
    """Opens every image of these records and returns the paths of those that cannot be read.

    It takes seconds (every epoch reads the same files again) and happens once, on one process, with a bar. Images that
    are not read as they are (`SPECIAL`) are counted on standard error.

    Args:
        records: by modality.
        kind: "training" or "test", for messages.
        skip: say which they are on standard error and go on without them, rather than stop.

    Raises:
        UserError: some cannot be read and `skip` is off, or a modality is left without images.
    """
    paths = [record.path for part in records.values() for record in part]
    found = distributed.from_main(lambda: inspect_images(paths, progress=sys.stderr.isatty()))
    for special, count in sorted(found.special.items()):
        _say(f"note: {count:,} {kind} images {SPECIAL[special]}")
    if not found.unreadable:
        return set()
    # Of several links to one file the first alone was opened.
    broken = {file_key(path): reason for path, reason in found.unreadable.items()}
    reasons = {path: broken[file_key(path)] for path in sorted(paths) if file_key(path) in broken}
    named = ", ".join(f"{shown(path)} ({reason})" for path, reason in list(reasons.items())[:NAMED])
    more = f" and {len(reasons) - NAMED:,} more" if len(reasons) > NAMED else ""
    what = f"{len(reasons):,} of {len(paths):,} {kind} images cannot be read: {named}{more}"
    if not skip:
        raise UserError(f"{what}. Restore them, or leave them out with --skip-unreadable")
    for modality, part in records.items():
        if all(record.path in reasons for record in part):
            raise UserError(f"{what}. No {modality} image is left: restore them")
    _say(f"warning: {what}. They are left out; results of fewer images do not compare with published ones")
    return set(reasons)


def file_key(path: str) -> tuple[int, int] | str:
    """What tells files apart, whatever they are called: device and inode; the path itself for a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _look(path: str) -> tuple[str, list[str]]:
    """Why an image cannot be read, or an empty text, and which kinds of `SPECIAL` it is."""
    try:
        return "", _decode(path)[1]
    except Exception as error:  # noqa: BLE001 - as in open_image
        return _why(error), []


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)
