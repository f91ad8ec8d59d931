"""From a raw data set to Market-1501 style folders: links to its images, named `<id>_c<camera>_<image>`.

Hard links where the file system allows, copies elsewhere; and what the `prepare_*.py` programs do alike.
"""

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from sdcl.data.records import list_names, shown
from sdcl.data.verify import CheckReport
from sdcl.errors import UserError

_PARTIAL = ".partial-"  # a copy in progress; the leading dot hides it from every listing
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def prepare_program(
    description: str,
    default_dir: str,
    prepare: Callable[[Path], list[str]],
    verify: Callable[[Path, bool], CheckReport],
) -> int:
    """Parse the command line, prepare, verify. Returns the exit status: 0, or 1 when files cannot be read.

    description: the program's help text. default_dir: the data set's folder.
    prepare: returns notes on folders left untouched. verify: called with the folder and whether to read every image.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(default_dir), help="the data set's folder (%(default)s)")
    parser.add_argument(
        "--check",
        choices=("deep", "counts", "none"),
        default="deep",
        help="afterwards count and read every image, count only, or do neither (%(default)s)",
    )
    options = parser.parse_args()
    for note in prepare(options.data_dir):
        print(f"note: {note}", file=sys.stderr)
    if options.check == "none":
        return 0
    report = verify(options.data_dir, options.check == "deep")
    print(report.table())
    print(report.verdict)
    return 1 if report.unreadable else 0


@contextmanager
def write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the failures of writing below `folder` into a UserError that says what to do."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{error.filename or folder}: a file is where a folder should be; move it away") from None
    except PermissionError as error:
        raise UserError(f"{error.filename or folder}: no permission to write; prepare a data folder you own") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: the disk is full; free some space and run the same command again") from None
        if error.errno == errno.EROFS:
            raise UserError(f"{folder}: the file system is read-only; link the data set somewhere writable") from None
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None


def place_files(plans: Mapping[str, Mapping[str, str]], progress: bool) -> list[str]:
    """Fill folders with links to, or copies of, other files.

    plans: folder -> {file name: source path}. Every file appears whole or not at all, and one that is already there is
    left alone, so that the call may be interrupted and repeated. A folder that holds any file the plan does not
    account for (another name, or another size than its source) was made by another program or from other raw files:
    nothing in it is touched.
    progress: show a progress bar.

    Returns one note for each folder that was left untouched for that reason. Raises UserError when writing fails.
    """
    notes = []
    missing: list[tuple[str, str]] = []
    for folder, plan in plans.items():
        present = list_names(folder) if os.path.lexists(folder) else []
        strangers = [
            name for name in present if name not in plan or not _same_size(os.path.join(folder, name), plan[name])
        ]
        if strangers:
            notes.append(
                f"{folder}: left as it is with {len(present):,} files, of which {len(strangers):,} do not come from "
                f"the raw images here (the first: {strangers[0]}; the raw images would give {len(plan):,}); "
                "delete the folder to have it made anew"
            )
            continue
        have = set(present)
        missing += [(plan[name], os.path.join(folder, name)) for name in plan if name not in have]
        with write_errors(folder):
            os.makedirs(folder, exist_ok=True)
    for source, destination in tqdm(missing, desc="preparing", unit="file", disable=not progress or not missing):
        with write_errors(os.path.dirname(destination)):
            _link_or_copy(source, destination)
    return notes


def _same_size(path: str, source: str) -> bool:
    try:
        return os.stat(path).st_size == os.stat(source).st_size
    except OSError:  # a symbolic link to nowhere
        return False


def _link_or_copy(source: str, destination: str) -> None:
    source = os.path.realpath(source)  # a hard link to a relative symbolic link would point nowhere
    try:
        os.link(source, destination)
        return
    except FileExistsError:
        if os.path.isdir(destination) or not _same_size(destination, source):
            raise
        return  # another run that prepares the same was first
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    folder, name = os.path.split(destination)
    partial = os.path.join(folder, f"{_PARTIAL}{os.getpid()}-{name}")
    try:
        shutil.copyfile(source, partial)
    except shutil.SpecialFileError:
        raise UserError(f"{shown(source)}: a FIFO or a device, not a file; remove it") from None
    os.replace(partial, destination)
