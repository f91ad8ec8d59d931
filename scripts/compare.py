"""Lays runs beside each other and beside the published one: a table, a figure, and where a run leaves the published
band.

    python scripts/compare.py runs/sysu --published sysu
    python scripts/compare.py runs/sysu runs/sysu-bf16 runs/sysu-no-cra
    python scripts/compare.py runs/regdb --published regdb --output regdb.png

A run over RegDB's trials counts as one run for each of its trials. Without --published the runs' own data set decides,
if they all have one; runs on drawn people have none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sdcl.errors import run_program  # noqa: E402
from sdcl.report.comparison import comparison_figure, comparison_table, departures, verdict  # noqa: E402
from sdcl.report.published import band_rule  # noqa: E402
from sdcl.report.run_files import read_run, run_folders  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders")
    parser.add_argument("--published", choices=("sysu", "regdb"), help="the published curve to compare with")
    parser.add_argument("--output", type=Path, default=Path("comparison.png"), help="the figure (%(default)s)")
    a = parser.parse_args()
    runs = [read_run(folder) for given in a.runs for folder in run_folders(given)]
    own = {run.published for run in runs}
    published = a.published or (own.pop() if len(own) == 1 else None)

    print(comparison_table(runs, published))
    if published is not None:
        print(f"\nThe published band: {band_rule(published)}.")
        for run in runs:
            print(f"\n{run.folder}: {verdict(run, departures(run, published))}")
    comparison_figure(runs, published).savefig(a.output, dpi=150)
    print(f"\n{a.output} shows the curves")


if __name__ == "__main__":
    run_program(main)
