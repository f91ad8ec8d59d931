"""Lays what this project computes beside vectors that the published implementations computed, one line a case.

    python scripts/verify.py                       all vectors, on the CPU
    python scripts/verify.py --device cuda         on the first GPU, in float32 without TF32
    python scripts/verify.py --only sdcl/G5 sdcl/G7

A line gives the largest deviation in the case, as a share of the largest value of the array that it is in; labels,
masks and lists must be equal. The exit status is 1 when a case deviates beyond its bound. The vectors are in
verification/<method>/, the comparisons in verification/<method>.py.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sdcl.startup  # noqa: E402, F401  # first: it tells what is missing

# isort: split
import torch  # noqa: E402

from sdcl.errors import UserError, run_program  # noqa: E402
from verification.vectors import Case, read_case  # noqa: E402


def vector_files() -> dict[str, Path]:
    """`<method>/<case>` → vector file, cases in the order of their numbers."""
    found = {f"{f.parent.name}/{f.stem.partition('_')[0]}": f for f in ROOT.glob("verification/*/*.npz")}
    return dict(sorted(found.items(), key=lambda item: (item[1].parent.name, len(item[0]), item[0])))


def comparison(name: str) -> Callable[[Case], None]:
    """What compares the case `<method>/<case>`."""
    method, _, case = name.partition("/")
    return importlib.import_module(f"verification.{method}").CASES[case]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="CASE", nargs="+", help="these cases, such as sdcl/G5")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    a = parser.parse_args(arguments)
    files = vector_files()
    if unknown := sorted({*(a.only or ())} - files.keys()):
        raise UserError(f"no case is called {', '.join(unknown)}: there are {', '.join(files)}")
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; leave the option out to compare on the CPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    failed = False
    for name, file in files.items():
        if a.only and name not in a.only:
            continue
        case = read_case(file, torch.device(a.device))
        case.name = f"{name} {file.stem.partition('_')[2].replace('_', ' ')}"
        comparison(name)(case)
        print(case.line(), flush=True)
        failed = failed or bool(case.failures)
    return int(failed)


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
