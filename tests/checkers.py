"""The programs that come with golden vectors and check them, run in this process."""

import importlib.util
import sys
from pathlib import Path
from unittest import mock

import pytest
from outcomes import Outcome, outcome


def run_checker(golden: Path, method: str, *cases: str, **changes: object) -> Outcome:
    """`python check_<method>.py` on some cases with this project's adapters; or a skip that says what is missing.

    changes: of constants of the program. What it imports from its own folders is forgotten afterwards: other programs'
    modules have the same names.
    """
    program = golden / method / f"check_{method}.py"
    if not program.exists():
        pytest.skip(f"no golden vectors of {method}: {program} does not exist")
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    adapters = Path(__file__).parent / f"{method}_adapters.py"
    words = [str(program), str(program.parent), "--only", *cases, "--adapters", str(adapters)]
    with mock.patch.object(sys, "path", [*sys.path]):
        spec.loader.exec_module(module)
        vars(module).update(changes)
        done = outcome(words, module.main)
    folders = (program.parent, golden)
    for name, imported in list(sys.modules.items()):
        if Path(getattr(imported, "__file__", None) or "/").parent in folders:
            del sys.modules[name]
    return done
