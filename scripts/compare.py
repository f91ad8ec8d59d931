"""Lays runs beside each other and beside the published one: a table, a figure, and where a run leaves the published
band.

    python scripts/compare.py runs/sysu --published sysu
    python scripts/compare.py runs/sysu runs/sysu-bf16 runs/sysu-seed2
    python scripts/compare.py runs/regdb --published regdb --output regdb.png
    python scripts/compare.py runs/sysu --format latex                  a paper's rows, in LaTeX or Markdown, alone

A run over RegDB's trials counts as one run for each of its trials. Without --published the runs' own data set decides,
if they all have one; runs on drawn people have none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from sdcl.errors import UserError, run_program  # noqa: E402
from sdcl.files import check_writable  # noqa: E402
from sdcl.report.comparison import (  # noqa: E402
    comparison_figure,
    comparison_table,
    departures,
    differing,
    methods_of,
    paper_table,
    verdict,
)
from sdcl.report.run_files import read_run, run_folders  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders")
    parser.add_argument("--published", metavar="SET", help="compare with what was published on sysu, regdb, …")
    parser.add_argument("--output", type=Path, default=Path("comparison.png"), help="the figure (%(default)s)")
    parser.add_argument("--format", choices=("latex", "markdown"), help="print a table for a paper, and nothing else")
    a = parser.parse_args()
    if a.format is None:
        check_writable(a.output)
    runs = [read_run(folder) for given in a.runs for folder in run_folders(given)]
    own = {run.published for run in runs}
    dataset = a.published or (own.pop() if len(own) == 1 else None)
    known = sorted({name for m in methods_of(runs) if m.published for name in m.published.results})
    if a.published and a.published not in known:
        raise UserError(f"--published {a.published}: nothing is known of these methods there ({', '.join(known)})")

    if a.format is not None:
        print(paper_table(runs, dataset, a.format))
        return
    print(comparison_table(runs, dataset))
    if different := differing(runs):
        print("\nThe runs differ in")
        print("\n".join(f"  {line}" for line in different))
    for method in methods_of(runs):
        curve = method.published.curves.get(dataset) if method.published and dataset else None
        if curve is None:
            continue
        print(f"\nThe published band of {method.title}: {curve.rule}.")
        for run in runs:
            if run.method is method:
                print(f"\n{run.folder}: {verdict(run, departures(run, curve))}")
    comparison_figure(runs, dataset).savefig(a.output, dpi=150)
    print(f"\n{a.output} shows the curves")


if __name__ == "__main__":
    run_program(main)
