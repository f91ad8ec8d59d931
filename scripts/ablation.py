"""What each part of a method contributes: trains without and with it over seeds, and prints the table.

    python scripts/ablation.py demo --seeds 1 2 3 --data-seeds 0 1 2    drawn people, other people for each data seed
    python scripts/ablation.py sysu --seeds 1 2 --precision bf16        further options go to train_sdcl.py
    python scripts/ablation.py demo --table-only                        the table of what has been run so far
    python scripts/ablation.py demo --method pic                        another method that has such parts

The rows build on one another: the method's baseline first, then one more of its parts in each row. Each run has a
folder of its own, <run-dir>/<row>/seed-<n>; the same command goes on where an interrupted one stopped, and leaves
finished runs alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from sdcl import distributed
from sdcl.errors import UserError, run_program
from sdcl.frame.many_runs import Row, parser, results_table, train_all
from sdcl.frame.method import Method, method_named


def rows_of(method: Method) -> list[Row]:
    """The rows of a method's ablation, as it describes them."""
    if not method.ablation:
        raise UserError(f"{method.title} names no parts that can be left out")
    return [Row(folder, title, method, tuple(options)) for folder, (title, options) in method.ablation.items()]


def main(arguments: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("preset", help="of the method, such as demo")
    options.add_argument("--method", default="sdcl", help="the method (%(default)s)")
    a, further = options.parse_known_args(arguments)
    a.run_dir = a.run_dir or Path(f"runs/ablation-{a.preset}")
    rows = rows_of(method_named(a.method))
    train_all(rows, a.preset, a, further)
    if distributed.is_main():
        print(f"\n{results_table(rows, a.run_dir)}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
