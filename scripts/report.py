"""Writes a page about a run: curves, results, ranked lists, t-SNE, distances, attention, augmented views, settings.

    python scripts/report.py runs/demo                          writes runs/demo/report.html
    python scripts/report.py runs/regdb                         one page for each trial that has begun
    python scripts/report.py runs/sysu --cache-features         keep the test images' embeddings for the next time
    python scripts/report.py runs/sysu --figures figures        the page's figures as PDF files, too

The page needs no network and no other file. A run that still goes on can be looked at as well.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from sdcl.errors import run_program  # noqa: E402
from sdcl.report import write_report  # noqa: E402
from sdcl.report.run_files import run_folders  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument(
        "--data-dir", type=Path, help="the data set's folder, if it is no longer where the run found it"
    )
    parser.add_argument(
        "--cache-features",
        action="store_true",
        help="keep the test embeddings in RUN/embeddings-best.npz and use them again; test_sdcl.py shares them",
    )
    parser.add_argument("--figures", metavar="DIR", type=Path, help="write each figure of the page into DIR, too")
    parser.add_argument("--figure-format", choices=("pdf", "svg"), default="pdf", help="theirs (%(default)s)")
    a = parser.parse_args()
    for folder in run_folders(a.run):
        say = partial(print, file=sys.stderr)
        print(write_report(folder, a.data_dir, a.cache_features, say, a.figures, a.figure_format))


if __name__ == "__main__":
    run_program(main)
