"""Kills training runs with SIGKILL, once in every epoch, lets them go on, and compares each with an uninterrupted run.

    python scripts/torture.py                20 kills, a few minutes on two CPU cores
    python scripts/torture.py --kills 100 --seed 7 --keep /tmp/torture

Half of the kills come from outside at a random time, half strike at a chosen place: while a checkpoint is being
written, before it takes its name, and between one file and the next. Both stages take their turn. A run that went on
must leave the same files, with equal weights, optimiser, labels, log (but for its times) and results, to the last bit.

Prints a table and a verdict. Exit status: 0 all equal, 1 some differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sdcl.startup  # noqa: E402, F401  # it tells what is missing

EPOCHS, STAGE2 = 4, 2
SETTINGS = (
    "--device cpu --synthetic-seed None --pretrained None "
    "--image-height 32 --image-width 16 --dim 32 --depth 2 --heads 2 "
    f"--epochs {EPOCHS} --stage2-from {STAGE2} --steps-stage1 2 --steps-stage2 2 --identities 2 --instances 4 "
    "--min-samples 2 --k1 5 --k1-visible-stage2 5 --k2 2 --eps 0.6 --association-k 2 --smooth-k 1 "
    "--learning-rate 1e-5 --drop-path 0.3 --workers 0"
).split()
"""A network and a schedule that take a second or two, with every part of the method and random depth in them."""

PLACES = {
    "half": "half of {} written",
    "before": "{} written, not yet renamed",
    "after": "{} just renamed",
}


@dataclass(frozen=True)
class Moment:
    """When a run is killed, once `lines` epochs are in its log: some time later, or at a place in the writing of
    `file`."""

    lines: int
    file: str = ""
    place: str = ""
    delay: float = 0.0
    """Seconds, where no file is given."""

    def __str__(self) -> str:
        return PLACES[self.place].format(self.file) if self.file else f"{self.delay:.2f} s into an epoch"


class Runs:
    """Tiny training runs in processes of their own, on one synthetic set below `folder`, each going on where it
    stands."""

    def __init__(self, folder: Path) -> None:
        import sklearn.metrics  # noqa: F401  # once, for all runs

        import train_sdcl  # noqa: F401
        from sdcl.data.readers import sysu
        from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout

        self.folder, self.data = folder, folder / "data"
        people = SyntheticConfig(6, 3, images_per_camera=2, height=32, width=16, absence=0.0)
        write_sysu_layout(self.data, people, workers=1, progress=False)
        sysu.prepare(self.data, progress=False)

    def start(self, name: str, *options: str, trap: Moment | None = None) -> BaseProcess:
        """Starts `train_sdcl.py demo` with run folder `name`; what it prints goes to `name`.txt beside it."""
        folders = ["--data-dir", str(self.data), "--run-dir", str(self.folder / name)]
        arguments = ["demo", *SETTINGS, *folders, "--resume", "auto", *options]
        child = (arguments, self.folder / f"{name}.txt", trap)
        process = multiprocessing.get_context("fork").Process(target=_train, args=child)
        process.start()
        return process

    def to_the_end(self, name: str, *options: str) -> None:
        """Runs it and waits. Raises RuntimeError, with what it printed, when it fails."""
        process = self.start(name, *options)
        process.join()
        if process.exitcode != 0:
            said = (self.folder / f"{name}.txt").read_text()
            raise RuntimeError(f"{name} ended with status {process.exitcode}:\n{said}")

    def killed(self, name: str, moment: Moment) -> int:
        """Starts a run, or lets it go on, and kills it at the moment. Returns the number of finished epochs, -1 if it
        ended by itself."""
        process = self.start(name, trap=moment if moment.file else None)
        log, config = self.folder / name / "log.jsonl", self.folder / name / "config.json"
        while not moment.file and process.is_alive():
            if config.exists() and _lines(log) >= moment.lines:
                time.sleep(moment.delay)
                process.kill()
                break
            time.sleep(0.002)
        process.join()
        return _lines(log) if process.exitcode == -signal.SIGKILL else -1


def _read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def _epoch_seconds(log: list[dict[str, Any]]) -> float:
    return sum(sum(line["seconds"].values()) for line in log) / len(log)


def _lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def in_a_fork(output: Path) -> None:
    """What a fork of this process does first: it has none of its parent's threads, and prints to the end of a file."""
    import torch

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = file = open(output, "a", buffering=1)  # noqa: SIM115 - until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)


def _train(arguments: list[str], output: Path, trap: Moment | None) -> None:
    """In a child: the training program, with a trap in `os.replace` that kills it at the moment."""
    import train_sdcl
    from sdcl.errors import run_program

    in_a_fork(output)
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if trap and target.name == trap.file and _lines(target.parent / "log.jsonl") >= trap.lines:
            if trap.place == "half":
                os.truncate(source, os.path.getsize(source) // 2)
            if trap.place == "after":
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    run_program(lambda: train_sdcl.main(arguments))


def differences(expected: Path, found: Path) -> list[str]:
    """In what two run folders differ, apart from times, their own names and the order to resume."""
    import torch

    out = []
    names = [sorted(path.name for path in folder.iterdir()) for folder in (expected, found)]
    if names[0] != names[1]:
        out.append(f"files {names[1]} instead of {names[0]}")
    for name in sorted(set(names[0]) & set(names[1])):
        a, b = expected / name, found / name
        if name.endswith(".pth"):
            contents: list[Any] = [torch.load(path, map_location="cpu", weights_only=True) for path in (a, b)]
        elif name.endswith(".jsonl"):
            contents = [_read(path) for path in (a, b)]
        elif name.endswith(".json"):
            contents = [json.loads(path.read_text()) for path in (a, b)]
        else:
            continue
        out += [f"{name}: {where}" for where in _unequal(*contents)]
    return out


def _unequal(a: Any, b: Any, where: str = "") -> list[str]:
    """Places at which two nested structures differ."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        free = {"seconds", "run_dir", "resume"}
        return [w for k in sorted({*a, *b} - free, key=str) for w in _unequal(a.get(k), b.get(k), f"{where}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [w for i, (x, y) in enumerate(zip(a, b, strict=True)) for w in _unequal(x, y, f"{where}[{i}]")]
    if torch.is_tensor(a) and torch.is_tensor(b):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [where]


def draw_moments(rng: random.Random, log: list[dict[str, Any]], seconds: float) -> list[Moment]:
    """A moment in each epoch, half of them random times and half places.

    log: of the uninterrupted run: it tells which epochs are selected. seconds: of an epoch.
    """
    rank1 = [line["all_search"]["rank1"] for line in log]
    at_random_time = rng.sample([True, False], 2) * (EPOCHS // 2)  # so that each stage gets both
    moments = []
    for epoch in range(EPOCHS):
        if at_random_time[epoch]:
            moments.append(Moment(epoch, delay=rng.uniform(0, seconds)))
            continue
        files = [(epoch + 1, "last.pth")]
        if all(rank1[epoch] > before for before in rank1[:epoch]):
            files.append((epoch + 1, "best.pth"))
        if epoch == STAGE2:
            files.append((epoch, "stage1.pth"))
        if epoch == EPOCHS - 1:
            files.append((EPOCHS, "results.json"))
        moments.append(Moment(*rng.choice(files), place=rng.choice(sorted(PLACES))))
    return moments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs that are killed (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--keep", type=Path, help="keep all run folders in this new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return torture(Runs(folder), options.kills, random.Random(options.seed))


def torture(runs: Runs, kills: int, rng: random.Random) -> int:
    """Kills runs, each once in every epoch, until there were that many kills; prints a line for each. Returns the exit
    status."""
    start = time.perf_counter()
    runs.to_the_end("uninterrupted")
    reference = runs.folder / "uninterrupted"
    log = _read(reference / "log.jsonl")
    seconds = _epoch_seconds(log)
    print(f"uninterrupted run: {EPOCHS} epochs, stage 2 from epoch {STAGE2}, {time.perf_counter() - start:.0f} s")
    print(f"{'run':>4}  {'kill':>4}  {'epochs done':>11}  {'stage':>5}  moment", flush=True)
    failed = killed = number = 0
    while killed < kills:
        number += 1
        name = f"killed-{number}"
        for moment in draw_moments(rng, log, seconds)[: kills - killed]:
            done = runs.killed(name, moment)
            if done < 0:  # a random time, but the machine is less busy now than before, and the run has ended
                break
            killed += 1
            print(f"{number:>4}  {killed:>4}  {done:>11}  {1 if done < STAGE2 else 2:>5}  {moment}", flush=True)
        try:
            runs.to_the_end(name)
            unequal = differences(reference, runs.folder / name)
            seconds = min(seconds, _epoch_seconds(_read(runs.folder / name / "log.jsonl")))
        except RuntimeError as error:
            unequal = [str(error)]
        failed += bool(unequal)
        verdict = "equal to the uninterrupted run" if not unequal else f"DIFFERS: {'; '.join(unequal[:5])}"
        print(f"{number:>4}  {verdict}", flush=True)
    print(f"{killed} kills in {number} runs: {number - failed} ended equal to the uninterrupted run, {failed} did not "
          f"({time.perf_counter() - start:.0f} s)")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
