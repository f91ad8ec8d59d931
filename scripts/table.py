"""The table of methods: trains every method that is here on the same drawn people, and prints mean and deviation.

    python scripts/table.py                                     all methods, three drawn data sets: hours on a laptop
    python scripts/table.py --methods sdcl pic --data-seeds 0   some of them, on one data set
    python scripts/table.py --table-only                        the table of what has been run so far

A method is a train_<method>.py with a `demo` preset; one that names a baseline has a row for that, too. Beside each
method stands what its network gives before training, and chance. The same command goes on where an interrupted one
stopped, and leaves finished runs alone. Drawn people tell whether a method works, not which is better on real ones.
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

ROOT = Path(__file__).resolve().parent.parent
PRESET = "demo"


def methods_here() -> list[Method]:
    """The methods whose programs lie beside test_sdcl.py or in the working directory and that have a demo preset."""
    programs = {file.stem for folder in (ROOT, Path.cwd()) for file in folder.glob("train_*.py")}
    found = [method_named(name.removeprefix("train_")) for name in sorted(programs)]
    return [method for method in found if PRESET in method.presets]


def rows_of(method: Method) -> list[Row]:
    """The method's baseline, where its ablation begins with one, and the method."""
    rows = [Row(method.name, f"{method.title}{' (supervised)' if method.supervised else ''}", method)]
    if "baseline" in method.ablation:
        name, options = method.ablation["baseline"]
        rows.insert(0, Row(f"{method.name}-baseline", f"{method.title}, {name}", method, tuple(options)))
    return rows


def main(arguments: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--methods", nargs="+", help="these methods (default: all that are here)")
    options.set_defaults(seeds=[1], data_seeds=[0, 1, 2], run_dir=Path("runs/table"))
    a, further = options.parse_known_args(arguments)
    methods = [method_named(name) for name in a.methods] if a.methods else methods_here()
    if lacking := [method.title for method in methods if PRESET not in method.presets]:
        raise UserError(f"{', '.join(lacking)}: no preset '{PRESET}', so nothing to train on drawn people")
    rows = [row for method in methods for row in rows_of(method)]
    train_all(rows, PRESET, a, further)
    if distributed.is_main():
        print(f"\n{results_table(rows, a.run_dir)}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
