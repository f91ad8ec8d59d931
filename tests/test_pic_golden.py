"""PIC's vectors that the published program computed, where they are at hand.

P1, P2, P9 and A2 run the whole ResNet-50, in float64 too, which takes minutes: SDCL_SLOW=1 asks for them. A1 to A3 are
of AGW, which PIC is built on.
"""

import os

import pytest
from checkers import run_checker

pytestmark = pytest.mark.slow

FAST = ("P3", "P4", "P5", "P6", "P7", "P8", "A1", "A3")
takes_minutes = pytest.mark.skipif("SDCL_SLOW" not in os.environ, reason="takes minutes; SDCL_SLOW=1 runs it")


@pytest.mark.parametrize("cases", [FAST, pytest.param(("P1", "P2", "P9", "A2"), marks=takes_minutes)])
def test_cases(golden, cases):
    done = run_checker(golden, "pic", *cases)
    assert done.status == 0, done.said
    assert all(f"{case} ok" in done.said for case in cases)
