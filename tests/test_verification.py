"""The vectors that the published implementations computed, through scripts/verify.py; and that it sees deviations."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from scripts import verify  # noqa: E402
from sdcl.errors import UserError  # noqa: E402
from verification.vectors import read_case  # noqa: E402

FILES = verify.vector_files()


LONG = ("sdcl/G1", "sdcl/G2")  # whole networks of the published size
CASES = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in FILES]


@pytest.mark.parametrize("name", CASES)
def test_case(name, capsys):
    assert verify.main(["--only", name]) == 0
    line = capsys.readouterr().out
    assert line.startswith(name) and " ok " in line and line.count("\n") == 1


def test_every_case_is_there_and_they_stay_small():
    assert [n for n in FILES if n.startswith("sdcl/")] == [f"sdcl/G{i}" for i in (1, 2, 4, 5, 6, 7, 8, 9, 10)]
    assert len(FILES) == 22
    assert sum(f.stat().st_size for f in FILES.values()) < 4.5e6


@pytest.mark.parametrize(
    ("name", "array", "bound"),
    [
        ("sdcl/G4", "a.15.6/distance", True),
        ("sdcl/G5", "shared/grad0", True),
        ("sdcl/G6", "a/memory", True),
        ("sdcl/G7", "a/visible.infrared/live_deep", True),
        ("sdcl/G7", "a/infrared.visible/mask", False),
        ("sdcl/G8", "regdb/labels", False),
        ("sdcl/G9", "sysu.few/cmc", True),
        ("sdcl/G10", "a/indoor/3/camera", False),
        ("aml/A5", "a/memory/second", True),
        ("cclnet/C5", "joined/memory1_visible", True),
        ("pic/P3", "far/soft_triplet", True),
    ],
)
def test_a_deviation_is_seen(name, array, bound):
    """One number of what was computed changed by a thousandth of the largest, or one label by one."""
    case = read_case(FILES[name], torch.device("cpu"))
    wanted = case.arrays[array]
    place = np.unravel_index(np.argmax(~case.arrays["regdb/flagged"]) if "labels" in array else 0, wanted.shape)
    wanted[place] = wanted[place] + 1e-3 * np.abs(wanted).max() if bound else wanted[place] ^ 1
    verify.comparison(name)(case)
    assert case.failures and " FAILED " in case.line() and array.partition("/")[2] in case.line()


def test_an_array_of_another_shape_is_seen():
    case = read_case(FILES["sdcl/G6"], torch.device("cpu"))
    case.arrays["a/memory"] = case.arrays["a/memory"][:-1]
    verify.comparison("sdcl/G6")(case)
    assert "shape" in case.line()


def test_unknown_cases_are_refused():
    with pytest.raises(UserError, match="no case is called sdcl/G99: there are aml/A3"):
        verify.main(["--only", "sdcl/G99"])
