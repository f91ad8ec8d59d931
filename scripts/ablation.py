"""What each part of a method contributes: trains without and with it over seeds, and prints the table.

    python scripts/ablation.py demo --seeds 1 2 3 --data-seeds 0 1 2    drawn people, other people for each data seed
    python scripts/ablation.py sysu --seeds 1 2 --precision bf16        further options go to train_sdcl.py
    python scripts/ablation.py demo --table-only                        the table of what has been run so far
    python scripts/ablation.py demo --method pic                        another method that has such parts

The rows build on one another: the method's baseline first, then one more of its parts in each row. Each run has a
folder of its own, <run-dir>/<row>/seed-<n>; the same command goes on where an interrupted one stopped, and leaves
finished runs alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np

from sdcl import distributed  # noqa: E402
from sdcl.errors import UserError, run_program  # noqa: E402
from sdcl.frame.cli import parse_training  # noqa: E402
from sdcl.frame.method import Method, method_named, read_settings  # noqa: E402
from sdcl.frame.run_log import read_results  # noqa: E402
from sdcl.settings import RunSettings  # noqa: E402

COLUMNS = {"rank1": "R1", "rank10": "R10", "mAP": "mAP", "mINP": "mINP"}
VARIED = ("seed", "synthetic_seed", "run_dir", "data_dir")
"""What the runs of one table may differ in, beside the options of the rows."""


def train_all(
    method: Method, preset: str, seeds: list[int], data_seeds: list[int] | None, run_dir: Path, options: list[str]
) -> None:
    """Trains every row with every seed (and drawn data set) that is not finished yet, seed after seed."""
    program = importlib.import_module(f"train_{method.name}")
    worlds: list[int | None] = [*data_seeds] if data_seeds else [None]
    for data_seed, seed, row in itertools.product(worlds, seeds, method.ablation):
        name, data = f"seed-{seed}", []
        if data_seed is not None:
            name += f"-data-{data_seed}"
            data = ["--synthetic-seed", str(data_seed), "--data-dir", str(run_dir / f"data-{data_seed}")]
        folder = run_dir / row / name
        own = ["--seed", str(seed), "--run-dir", str(folder), "--resume", "auto"]
        arguments = [preset, *options, *data, *method.ablation[row][1], *own]
        if not finished(folder, parse_training(arguments, "", method.presets).config):
            if distributed.is_main():
                print(f"\n== {folder}", flush=True)
            program.main(arguments)


def finished(folder: Path, config: RunSettings) -> bool:
    """Whether the folder holds the results of a run of these settings. (Training refuses one of other settings.)"""
    saved = settings_of(folder)
    return results_of(folder) is not None and saved is not None and not config.differences(saved)


def results_of(folder: Path) -> dict[str, Any] | None:
    """A run's results.json: its own (RegDB: the mean of all trials), or that of its only trial."""
    found = sorted(folder.glob("results.json")) or sorted(folder.glob("trial-*/results.json"))
    return read_results(found[0]) if len(found) == 1 else None


def settings_of(folder: Path) -> RunSettings | None:
    found = sorted([*folder.glob("config.json"), *folder.glob("trial-*/config.json")])
    return read_settings(found[0])[1] if found else None


def finished_runs(method: Method, run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Row → results of its finished runs.

    Raises:
        UserError: no run is finished, or runs differ in more than seeds and the parts of the method.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    first: tuple[Path, RunSettings] | None = None
    for row in method.ablation:
        for folder in sorted((run_dir / row).glob("seed-*")):
            results, config = results_of(folder), settings_of(folder)
            if results is None or config is None:
                continue
            first = first or (folder, config)
            rows = {w.lstrip("-").removeprefix("no-") for _, o in method.ablation.values() for w in o}
            varied = [*VARIED, *(name.replace("-", "_") for name in rows)]
            alike = dataclasses.replace(config, **{n: getattr(first[1], n) for n in varied if hasattr(config, n)})
            differences = ", ".join(alike.differences(first[1]))
            if differences:
                raise UserError(
                    f"{folder} and {first[0]} cannot stand in one table: {differences}. Move one of them away"
                )
            runs.setdefault(row, []).append(results)
    if not runs:
        raise UserError(
            f"{run_dir} holds no finished run: start without --table-only, or give the --run-dir of the runs"
        )
    return runs


def table(method: Method, run_dir: Path) -> str:
    """Markdown: mean ± sample deviation over each row's finished runs, in percent; selected and last epoch, chance."""
    runs = finished_runs(method, run_dir)
    everything = [r for results in runs.values() for r in results]
    modes = list(everything[0]["chance"])
    head = ["", "epoch", "runs", *(f"{mode.replace('_', ' ')} {name}" for mode in modes for name in COLUMNS.values())]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row, results in runs.items():
        for epoch, parts in (("selected", results), ("last", [r["last"] for r in results])):
            lines.append([method.ablation[row][0], epoch, str(len(parts)), *cells(parts, modes)])
    for name, part in (("before training", "start"), ("chance", "chance")):
        lines.append([name, "", str(len(everything)), *cells([r[part] for r in everything], modes)])
    by = {"test-rank1": "Rank-1 on the test set", "last": "taking the last"}[everything[0]["selected_by"]]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{rows}\n\nMean ± deviation over runs, in percent; epochs selected by {by}."


def cells(parts: list[dict[str, Any]], modes: list[str]) -> list[str]:
    out = []
    for mode in modes:
        for metric in COLUMNS:
            values = 100 * np.array([part[mode][metric] for part in parts])
            out.append(f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""))
    return out


def main(arguments: list[str]) -> None:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(
        description=summary, epilog="Further options go to train_<method>.py.", allow_abbrev=False
    )
    add = parser.add_argument
    add("preset", help="of the method, such as demo")
    add("--method", default="sdcl", help="the method (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of training (default 1 2 3)")
    add(
        "--data-seeds",
        type=int,
        nargs="+",
        help="seeds of drawn data sets, for synthetic presets (default: the preset's)",
    )
    add("--run-dir", type=Path, help="for the runs and the data drawn for them (default runs/ablation-<preset>)")
    add("--table-only", action="store_true", help="print the table of the finished runs and train nothing")
    options, further = parser.parse_known_args(arguments)
    method = method_named(options.method)
    if options.preset not in method.presets:
        raise UserError(f"'{options.preset}' is no preset of {method.title}: choose {', '.join(method.presets)}")
    if not method.ablation:
        raise UserError(f"{method.title} names no parts that can be left out")
    preset, run_dir = method.presets[options.preset], options.run_dir or Path(f"runs/ablation-{options.preset}")
    if options.data_seeds and preset.synthetic_seed is None:
        raise UserError(f"--data-seeds draws synthetic data sets; {options.preset} trains on the data in its folder")
    if not options.table_only:
        train_all(method, options.preset, options.seeds, options.data_seeds, run_dir, further)
    if distributed.is_main():
        print(f"\n{table(method, run_dir)}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
