"""The programs on a tiny synthetic set, run in this process: what tests of whole runs share."""

import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import test_sdcl
import train_sdcl
from sdcl.errors import run_program
from sdcl.frame.cli import how_to_go_on

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from torture import EPOCHS, SETTINGS, STAGE2, Moment, Runs, differences, in_a_fork  # noqa: E402

__all__ = ["EPOCHS", "SETTINGS", "STAGE2", "Moment", "Result", "Runs", "differences", "in_a_fork", "in_process",
           "read_curves", "settings"]  # fmt: skip


class Result(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its error message, after a check that it is one line on stderr, with status 2 and no traceback."""
        assert self.status == 2, f"status {self.status}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.err.endswith(lines[0] + "\n"), self.err
        return lines[0]


def in_process(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """A function that runs `train_sdcl.py`, `test_sdcl.py` or, by its own name, another program with arguments on the
    CPU, as a command line would."""
    programs: dict[str, Callable[[list[str]], None]] = {"train": train_sdcl.main, "test": test_sdcl.main}

    def run(program: str, *arguments: object) -> Result:
        gc.collect()  # a run that ended in an error holds its folder's lock until its last frame is gone
        capsys.readouterr()
        words = [str(a) for a in arguments]
        pinned = words + ["--device", "cpu"] * (len(words) > 1 and "--device" not in words)
        with pytest.raises(SystemExit) as stopped:
            main = programs.get(program) or importlib.import_module(program).main
            run_program(lambda: main(pinned), how_to_go_on)
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, *capsys.readouterr())

    return run


def read_curves(folder: Path) -> EventAccumulator:
    """Everything in a folder of event files; unlike TensorBoard it shows twice what is there twice."""
    everything = {"scalars": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=everything, purge_orphaned_data=False).Reload()


def settings(**changes: object) -> list[str]:
    """The tiny settings with some of them changed: settings(eps=0.7, trial=2)."""
    return [*SETTINGS, *(str(x) for name, value in changes.items() for x in (f"--{name.replace('_', '-')}", value))]
