"""`--help`: in a moment, in the groups of the settings' source, with ranges, and without what does not apply."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdcl.config import PRESETS
from sdcl.frame.cli import TrainOptions
from sdcl.frame.help import help_text

ROOT = Path(__file__).parent.parent


def text_of(preset: str) -> str:
    return help_text(f"train_sdcl.py {preset}", "Trains.", TrainOptions(PRESETS[preset]))


PROGRAMS = sorted(path.name for path in ROOT.glob("train_*.py"))


@pytest.mark.parametrize("program, arguments", [
    *((program, ["sysu", "--help"]) for program in PROGRAMS), ("train_sdcl.py", ["--help"]),
    ("train_sdcl.py", ["sysu", "--no-such-option"]),
])  # fmt: skip
def test_help_does_not_wait_for_torch(program, arguments):
    code = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('loaded' if 'torch' in sys.modules else 'without torch', file=sys.stderr))\n"
        f"sys.argv = {[program, *arguments]!r}\n"
        f"runpy.run_path({program!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.endswith("without torch\n"), done.stderr
    assert done.returncode == (2 if "--no-such-option" in arguments else 0)


def test_help_takes_less_than_two_seconds():
    start = time.process_time()
    for preset in PRESETS:
        text_of(preset)
    assert time.process_time() - start < 2


def test_groups_ranges_defaults_and_texts():
    text = text_of("sysu")
    groups = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups == [
        "Program", "Run", "Data", "Machine", "The run's folder", "Network", "Pseudo-labels", "Batches",
        "Memories and losses", "Parts of the method, for ablations", "Schedule",
    ]  # fmt: skip
    assert "  --eps NUMBER, above 0 and below 1 (default: 0.6)\n      DBSCAN radius on the Jaccard distance" in text
    assert "  --accumulate INT|auto, at least 1 and at most 1e+07 (default: auto)" in text
    assert "  --precision {fp32|tf32|bf16} (default: fp32)" in text
    assert "  --cnl, --no-cnl (default: --cnl)" in text
    assert "  --homogeneous-weight NUMBER NUMBER, at least 0 and at most 1e+06 (default: 1.0 0.1)" in text
    data, network = text.split("\nData:\n")[1].split("\n\n")[0], text.split("\nNetwork:\n")[1].split("\n\n")[0]
    assert "--augment " in data and "--workers " in data and "--drop-path " in network and "--eps" not in data
    assert "smaller where the set is small and its images are alike (RegDB: 0.3)." in text, "no line breaks off"


def test_drawn_people_where_there_are_some():
    assert "--synthetic-seed" not in text_of("sysu") and "--synthetic-identities" in text_of("demo")


def test_every_setting_has_a_text():
    lines = text_of("demo").splitlines()
    names = [n for n, line in enumerate(lines) if line.startswith("  --")]
    assert len(names) > 60
    for n in names:
        assert lines[n + 1].startswith("      "), lines[n]
