"""Several runs of one method that differ in their seed, and their mean and deviation.

    python scripts/seeds.py sysu --seeds 1 2 3                          runs/seeds-sdcl-sysu/seed-1, …
    python scripts/seeds.py regdb --seeds 1 2 3 --trial 1               further options go to train_sdcl.py
    python scripts/seeds.py demo --method pic --data-seeds 0 1 2        other drawn people for each data seed
    python scripts/seeds.py sysu --table-only                           the table of what has been run so far

The same command goes on where an interrupted one stopped, and leaves finished runs alone. One run says little about a
difference of a point or two: docs/protocols.md has what is known of the spread of published numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from sdcl import distributed
from sdcl.errors import run_program
from sdcl.frame.many_runs import Row, parser, results_table, train_all
from sdcl.frame.method import method_named


def main(arguments: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("preset", help="of the method, such as sysu")
    options.add_argument("--method", default="sdcl", help="the method (%(default)s)")
    a, further = options.parse_known_args(arguments)
    a.run_dir = a.run_dir or Path(f"runs/seeds-{a.method}-{a.preset}")
    method = method_named(a.method)
    rows = [Row(".", method.title, method)]
    train_all(rows, a.preset, a, further)
    if distributed.is_main():
        print(f"\n{results_table(rows, a.run_dir)}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
