"""The vectors that the published implementation computed, where they are at hand."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("case", ["G1", "G2", "G4", "G5", "G6", "G7", "G8", "G9", "G10"])
def test_case(golden, case):
    command = [
        sys.executable,
        str(golden / "check_golden.py"),
        str(golden),
        "--only",
        case,
        "--adapters",
        str(ROOT / "tests/golden_adapters.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{case} ok" in done.stdout
