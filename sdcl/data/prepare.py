"""What `prepare_sysu.py` and `prepare_regdb.py` do alike: prepare, count, read every image, say how it stands."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from sdcl.data.verify import CheckReport


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
