"""Tests and times everything that a GPU is used for, and writes one report.

    bash scripts/check_gpu.sh                          all parts, under ten minutes on one GPU; report in gpu-report.md
    bash scripts/check_gpu.sh tests steps              these parts alone
    bash scripts/check_gpu.sh --output runs/gpu.md     another place for the report

A part is a few commands with a time limit for all of them; the report has what they printed. A part that lacks a GPU,
or a second one, says so and is skipped. The exit status is 1 when a command failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sdcl.startup  # noqa: E402, F401  # first: it tells what is missing

# isort: split
import torch  # noqa: E402

from sdcl.distributed import gpu_trouble  # noqa: E402
from sdcl.errors import run_program  # noqa: E402

PYTHON = sys.executable
WAYS = ["fp32", "tf32", "bf16", "bf16+compile", "checkpointing", "accumulate-4"]


@dataclass(frozen=True)
class Part:
    """Commands whose output goes into the report under one title.

    Attributes:
        limit: seconds for all of them; what is then not done is said to be missing.
        gpus: how many it needs.
    """

    title: str
    commands: list[list[str]]
    limit: int
    gpus: int = 1


@dataclass
class Outcome:
    """What came of a part: "ok", or why it was skipped or failed."""

    said: str
    seconds: float = 0.0
    outputs: list[str] = field(default_factory=list)


def clustering(rows: int, *ways: str) -> list[str]:
    return [PYTHON, "scripts/bench_clustering.py", "--rows", str(rows), "--rounds", "1", "--plain-up-to", "0", "--ways",
            *ways]  # fmt: skip


def steps(preset: str, *ways: str) -> list[str]:
    return [PYTHON, "scripts/bench_step.py", "--preset", preset, "--rounds", "3", "--ways", *ways]


def parts(folder: Path) -> dict[str, Part]:
    """All parts by name, in the order in which they run; folder: for what they write."""
    workers = str(max(0, (os.cpu_count() or 1) - 1))
    epoch = ["train_sdcl.py", "demo-large", "--device", "cuda", "--pretrained", "None", "--epochs", "1", "--workers",
             workers, "--data-dir", str(folder / "data"), "--no-tensorboard"]  # fmt: skip
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pytest = [PYTHON, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    others = ["tests/test_clustering.py", "tests/test_evaluation.py", "tests/test_device_augment.py",
              "tests/test_distributed.py"]  # fmt: skip
    return {
        "tests": Part("Tests on the GPU", [[*pytest, "tests/gpu", *others, "-k", "gpu or cuda"]], limit=150),
        "vectors": Part("Published vectors", [[PYTHON, "scripts/verify.py", "--device", "cuda"]], limit=60),
        "steps": Part("Time and memory of a step", [steps("sysu", *WAYS), steps("demo-large", "fp32", "bf16")], 120),
        "clustering": Part(
            "Clustering",
            [clustering(22_258, "cuda", "fast"), *(clustering(n, "cuda") for n in (100_000, 300_000, 1_000_000))],
            limit=100,
        ),
        "input": Part(
            "Reading and augmenting", [[PYTHON, "scripts/bench_input.py", "--device", "cuda", "--rounds", "1"]], 50
        ),
        "epoch": Part("One epoch of demo-large", [[PYTHON, *epoch, "--run-dir", str(folder / "epoch")]], limit=100),
        "two": Part(
            "One epoch of demo-large on two GPUs",
            [[*torchrun, *epoch, "--run-dir", str(folder / "two")],
             [PYTHON, *epoch, "--parallel", "dp", "--run-dir", str(folder / "dp")]],
            limit=100,
            gpus=2,
        ),
    }  # fmt: skip


def machine() -> list[str]:
    """Lines of the report's head: versions, driver and cards."""
    lines = [
        f"- {platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors",
        f"- torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
    ]
    trouble = gpu_trouble()
    if trouble:
        return [*lines, f"- no usable GPU: {trouble}"]
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        cards = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return [*lines, *(f"- {card}" for card in cards)]


def run(part: Part) -> Outcome:
    """Runs a part's commands, one after another."""
    trouble, gpus = gpu_trouble(), torch.cuda.device_count()
    if part.gpus and trouble:
        return Outcome(f"skipped: no usable GPU: {trouble}")
    if part.gpus > gpus:
        return Outcome(f"skipped: it needs {part.gpus} GPUs, there are {gpus}")
    outcome, start = Outcome("ok"), time.monotonic()
    for command in part.commands:
        left = part.limit - (time.monotonic() - start)
        shown = " ".join(["python" if word == PYTHON else word for word in command])
        try:
            done = subprocess.run(
                command, cwd=ROOT, timeout=max(1, left),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            printed, status = done.stdout, f"status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
            status = f"not done within the part's {part.limit} s"
        outcome.outputs.append(f"$ {shown}\n{_readable(printed)}" + (f"\n[{status}]" if status else ""))
        if status:
            outcome.said = f"FAILED: `{shown}`: {status}"
    outcome.seconds = time.monotonic() - start
    return outcome


def _readable(printed: bytes) -> str:
    """What a terminal would show in the end of lines that were written over, as progress bars are."""
    lines = printed.decode(errors="replace").rstrip().split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def report(outcomes: dict[str, tuple[Part, Outcome]]) -> str:
    """The Markdown page."""
    lines = [f"# GPU check, {date.today()}", "", *machine(), "", "| part | outcome | seconds |", "|---|---|---:|"]
    lines += [f"| {name} | {o.said.replace('|', '/')} | {o.seconds:.0f} |" for name, (_, o) in outcomes.items()]
    for name, (part, outcome) in outcomes.items():
        if outcome.outputs:
            lines += ["", f"## {part.title} ({name})", "", "```", "\n\n".join(outcome.outputs), "```"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts(Path()))
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"))
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.parts if name not in names]:
        parser.error(f"there is no part {unknown[0]}: choose of {', '.join(names)}")
    outcomes: dict[str, tuple[Part, Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(Path(folder)).items():
            if not args.parts or name in args.parts:
                outcomes[name] = part, run(part)
                print(f"{name}: {outcomes[name][1].said}", flush=True)
                args.output.write_text(report(outcomes))
    print(f"the report is in {args.output}")
    return int(any(o.said.startswith("FAILED") for _, o in outcomes.values()))


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
