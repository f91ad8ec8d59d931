"""PIC's vectors that the published program computed, where they are at hand.

P1, P2, P9 and A2 run the whole ResNet-50, in float64 too, which takes minutes: SDCL_SLOW=1 asks for them. A1 to A3 are
of AGW, which PIC is built on.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
slow = pytest.mark.skipif("SDCL_SLOW" not in os.environ, reason="takes minutes; SDCL_SLOW=1 runs it")


FAST = ("P3", "P4", "P5", "P6", "P7", "P8", "A1", "A3")


@pytest.mark.parametrize("cases", [FAST, pytest.param(("P1", "P2", "P9", "A2"), marks=slow)])
def test_cases(golden, cases):
    vectors = golden / "pic"
    if not vectors.exists():
        pytest.skip(f"no PIC vectors: {vectors} does not exist")
    command = [sys.executable, str(vectors / "check_pic.py"), str(vectors), "--agw", "--only", *cases]
    command += ["--adapters", str(ROOT / "tests/pic_adapters.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{case} ok" in done.stdout for case in cases)
