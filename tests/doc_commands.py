"""The commands that README and docs show, and a folder in which they run at a size for tests.

The folder looks like a checkout in which somebody followed the README: the project's files, tiny drawn data sets as
released in data/, a tiny backbone in pretrained/ under the documented name. The commands run as they are written; what
is small is the presets (`tiny_presets`), and for programs without a preset the options in SMALLER, put behind.

Shell scripts run in a shell, with a `python` that writes down its arguments and does nothing. Those lines, as the
commands that begin with `python`, then run in this process, since each new one would import PyTorch for seconds.
"""

import dataclasses
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cclnet_runs
import torch
from outcomes import Outcome, outcome
from test_docs import blocks
from tiny_sets import draw_folder, save_image
from weight_files import backbone

from sdcl.config import PRESETS, Config, ModelConfig
from sdcl.data.synthetic import SyntheticConfig, write_regdb_layout, write_sysu_layout
from sdcl.models import build_model, save_published_format

ROOT = Path(__file__).resolve().parents[1]
MODEL = ModelConfig(image_height=32, image_width=16, dim=32, depth=2, heads=2, drop_path=0.0)

SMALLER = {
    "scripts/bench_clustering.py": "--rows 100 --plain-up-to 0 --width 16 --rounds 1 --ways fast",
    "scripts/bench_input.py": "--height 32 --width 16 --identities 2 --instances 2 --steps 1 --rounds 1",
    "scripts/bench_scale.py": "--rows 100 200 --width 16 --batch 8 --phases metrics",
    "scripts/bench_test.py": "--identities 2 --queries 50 --trials 2 --rounds 1",
    "scripts/label_source.py": "--k1 8 --k2 3",
    "train_aml.py": "--synthetic-identities 4 3 --synthetic-images 4 --synthetic-size 32 16 --image-height 32 "
    "--image-width 16 --channels 2 --source-iterations 2 --target-iterations 2 --source-batch 8 --target-batch 8 "
    "--eps 0.5 --k1 8 --k2 3 --clusters 5",
    "train_pic.py": "--width 4 --blocks 1 1 1 1 --image-height 32 --image-width 16 --identities 4 --instances 6 "
    "--epochs 1 --pretrained None --synthetic-identities 4 3 --synthetic-images 4 --workers 0",
    "train_mine.py": "--synthetic-identities 6 4 --synthetic-images 4 --epochs 1 --steps 1 --clusters 9 --width 2 "
    "--data-dir data/mine-demo",
    "sdcl.data.synthetic": "--train-identities 2 --test-identities 2 --height 32 --width 16 --workers 1",
}

PROGRAM = r"(?:[A-Z_]+=\S+ )*(?:python3?|bash|torchrun|pip) "


class Command(NamedTuple):
    page: str
    line: int
    text: str


# -- what the pages show -----------------------------------------------------------------------------------------------


def commands(page: Path) -> list[Command]:
    """Commands in order: each line of a ```shell block, lines of other blocks (but Python's) and code within a line
    that begin with the name of a program. Remarks (` # …`) are left out."""
    found, fence = [], ""
    prose = ""  # the page with all blocks blanked out
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        edge, indented = line.startswith("```"), line.startswith("    ")
        if edge:
            fence = "" if fence else line[3:] or "text"
        named = (fence or indented) and fence != "python" and re.match(rf"\s*{PROGRAM}", line)
        if named or (fence == "shell" and not edge and line.strip()):
            found.append(Command(page.name, number, re.sub(r"\s+# .*", "", line.strip())))
        prose += "\n" if fence or edge or indented else f"{line}\n"
    for match in re.finditer(rf"`({PROGRAM}[^`]*)`", prose):
        line_number = prose.count("\n", 0, match.start()) + 1
        found.append(Command(page.name, line_number, " ".join(match[1].split())))
    return sorted(found, key=lambda command: command.line)


def options_shown(page: Path) -> set[str]:
    """Every `--option` in code of the page."""
    code = re.findall(r"```.*?```|`[^`]+`|^    [^\n]*", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return {option for part in code for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", part)}


# -- the folder --------------------------------------------------------------------------------------------------------


def tiny_presets() -> dict[str, Config]:
    """The presets with a network and a schedule that take a second; everything else as published."""
    return {
        name: dataclasses.replace(
            preset,
            model=dataclasses.replace(MODEL, pretrained=None if name == "demo" else preset.model.pretrained),
            synthetic_identities=(4, 3),
            synthetic_images=4,
            workers=0,
            epochs=2,
            stage2_from=1,
            heterogeneous_from=1,
            **dict.fromkeys(("steps_stage1", "steps_stage2", "identities", "smooth_k"), 1),
            **dict.fromkeys(("instances", "k1", "k1_visible_stage2", "association_k"), 4),
            **dict.fromkeys(("k2", "min_samples"), 2),
            eps=0.6,
            learning_rate=1e-5,
        )
        for name, preset in PRESETS.items()
    }


def lay_out(folder: Path) -> None:
    """Fills the folder. `DIR` and `FILE` are there under these names: an image folder and published weights; and the
    program that docs/your-method.md shows, as its reader has saved it."""
    program = next(code for _, _, code in blocks(ROOT / "docs" / "your-method.md"))
    (folder / "train_mine.py").write_text(program)
    for path in sorted(ROOT.iterdir()):
        if path.name not in ("data", "runs", "pretrained") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    sysu = SyntheticConfig(6, 4, images_per_camera=2, height=32, width=16, absence=0.0)
    write_sysu_layout(folder / "data" / "sysu", sysu, workers=1, progress=False)
    regdb = SyntheticConfig(4, 3, height=32, width=16)
    write_regdb_layout(folder / "data" / "regdb", regdb, workers=1, progress=False)
    draw_folder(folder / "data" / "mine")
    torch.manual_seed(0)
    (folder / "pretrained").mkdir()
    weights = backbone(grid=MODEL.grid, dim=MODEL.dim, depth=MODEL.depth)
    for name in ("vit_base_ics_cfs_lup.pth", "demo_large_backbone.pth"):
        torch.save(weights, folder / "pretrained" / name)
    cclnet_runs.write_clip(folder / "pretrained" / "RN50.pt")
    save_published_format(build_model(MODEL), folder / "FILE", 17, 0.5)
    save_image(folder / "DIR" / "someone.png", 1)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = scripts/check_env.py ] || (IFS="\t"; echo "$*" >> "$RECORDED")\n')
    python.chmod(0o755)


# -- running -----------------------------------------------------------------------------------------------------------


class Session:
    """Runs commands in the folder, which is the working directory. What was run already is not run again: trained is
    trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[tuple[str, ...], Outcome] = {}

    def run(self, text: str) -> Outcome:
        program, *words = [word for word in shlex.split(text) if not re.match("[A-Z_]+=", word)]
        if program == "python":
            return self._python(words)
        if program != "bash":
            return Outcome(1, "only python and bash commands are run here: list it in NOT_RUN, with the reason")
        recorded = self.folder / "recorded.txt"
        recorded.write_text("")
        environment = {k: v for k, v in os.environ.items() if k != "SDCL_VENV"}
        environment |= {"VIRTUAL_ENV": "here", "RECORDED": str(recorded)}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        shell = subprocess.run(["bash", *words], capture_output=True, text=True, env=environment, timeout=60)
        lines = recorded.read_text().splitlines()
        if shell.returncode or not lines:
            return Outcome(shell.returncode or 1, f"it asked python for nothing\n{shell.stdout}{shell.stderr}")
        outcomes = [self._python(line.split("\t")) for line in lines]
        return Outcome(max(o.status for o in outcomes), "\n".join(o.said for o in outcomes))

    def _python(self, words: list[str]) -> Outcome:
        if tuple(words) not in self.done:
            name = words[1] if words[0] == "-m" else words[0]
            further = [] if "--help" in words else shlex.split(SMALLER.get(name, ""))
            if re.fullmatch(r"(train_\w+|test_sdcl)\.py", name) and "--help" not in words and len(words) > 1:
                further += ["--device", "cpu"]
            self.done[tuple(words)] = in_this_process([*words, *further])
        return self.done[tuple(words)]


def in_this_process(words: list[str]) -> Outcome:
    """`python words…`: exit status, and what it printed."""
    is_module = words[0] == "-m"
    name, *arguments = words[1:] if is_module else words
    fork = multiprocessing.get_context("fork")

    def run() -> None:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")

    with mock.patch.object(multiprocessing, "get_context", lambda *_: fork):  # a fresh process imports for seconds
        return outcome([name, *arguments], run)


def run_pages(pages: list[Path], left_out: set[str], folder: Path) -> Iterator[tuple[Command, Outcome]]:
    """Every command of the pages in order. Python blocks that make a folder in data/ run too, where they stand: the
    commands after them use it."""
    session = Session(folder)
    for page in pages:
        steps: list[tuple[int, Command | str]] = [(command.line, command) for command in commands(page)]
        made = [(line, code) for _, line, code in blocks(page) if 'Path("data/' in code and "METHOD" not in code]
        steps += made  # blocks that make data; a whole program is a file of its own (`lay_out`)
        for _, step in sorted(steps, key=lambda pair: pair[0]):
            if isinstance(step, str):
                exec(compile(step, page.name, "exec"), {"__name__": "__main__"})
            elif step.text not in left_out:
                yield step, session.run(step.text)
