"""Runs that make one table: trained where they are not finished, and set out as mean and deviation over seeds.

Each run has a folder of its own, `<run folder>/<row>/seed-<n>` (with drawn data sets `seed-<n>-data-<m>`). The same
command goes on where an interrupted one stopped, and leaves finished runs alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdcl import distributed
from sdcl.errors import UserError
from sdcl.frame.cli import parse_training
from sdcl.frame.method import Method, read_settings
from sdcl.frame.run_log import read_results
from sdcl.settings import RunSettings

__all__ = ["Row", "mean_and_deviation", "parser", "results_table", "train_all"]

COLUMNS = {"rank1": "R1", "rank10": "R10", "mAP": "mAP", "mINP": "mINP"}
VARIED = ("seed", "synthetic_seed", "run_dir", "data_dir")
"""What the runs of one table may differ in, beside the options of the rows."""


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the table: runs that differ in seeds alone.

    Attributes:
        folder: below the table's run folder; "." puts the runs into it directly.
        title: as the table shows it.
        options: of the training program, which make the row what it is.
    """

    folder: str
    title: str
    method: Method
    options: tuple[str, ...] = ()


def parser(description: str) -> argparse.ArgumentParser:
    """Options that the programs for many runs have in common; further ones go to the training programs."""
    summary = description.split("\n")[0]
    made = argparse.ArgumentParser(
        description=summary, epilog="Further options go to train_<method>.py.", allow_abbrev=False
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of training (default 1 2 3)")
    drawn = "seeds of drawn data sets, for synthetic presets (default: the preset's)"
    made.add_argument("--data-seeds", type=int, nargs="+", help=drawn)
    made.add_argument("--run-dir", type=Path, help="for the runs and the data drawn for them")
    made.add_argument("--table-only", action="store_true", help="print the table of finished runs and train nothing")
    return made


def train_all(rows: Sequence[Row], preset: str, options: argparse.Namespace, further: Sequence[str]) -> None:
    """Trains every row with every seed (and drawn data set) that is not finished yet, seed after seed.

    Args:
        options: as `parser` makes them, run_dir set.
        further: options of the training programs.

    Raises:
        UserError: a row's method has no such preset, or data seeds are given where people are not drawn.
    """
    for row in rows:
        if preset not in row.method.presets:
            known = ", ".join(row.method.presets)
            raise UserError(f"'{preset}' is no preset of {row.method.title}: choose {known}")
        if options.data_seeds and row.method.presets[preset].synthetic_seed is None:
            raise UserError(f"--data-seeds draws synthetic data sets; {preset} trains on the data in its folder")
    if options.table_only:
        return
    for data_seed, seed, row in itertools.product(options.data_seeds or [None], options.seeds, rows):
        name, data = f"seed-{seed}", list[str]()
        if data_seed is not None:
            name += f"-data-{data_seed}"
            data = ["--synthetic-seed", str(data_seed), "--data-dir", str(options.run_dir / f"data-{data_seed}")]
        folder = options.run_dir / row.folder / name
        own = ["--seed", str(seed), "--run-dir", str(folder), "--resume", "auto"]
        arguments = [preset, *further, *data, *row.options, *own]
        if not _finished(folder, parse_training(arguments, "", row.method.presets).config):
            if distributed.is_main():
                print(f"\n== {folder}", flush=True)
            importlib.import_module(f"train_{row.method.name}").main(arguments)


def results_table(rows: Sequence[Row], run_dir: Path) -> str:
    """Markdown: mean ± sample deviation over each row's finished runs, in percent, for the selected and the last epoch;
    before training, method by method; chance.

    Raises:
        UserError: no run is finished, or runs differ in more than seeds and the rows' options.
    """
    runs = _finished_runs(rows, run_dir)
    everything = [results for found in runs.values() for results in found]
    modes = list(everything[0]["chance"])
    head = ["", "epoch", "runs", *(f"{mode.replace('_', ' ')} {name}" for mode in modes for name in COLUMNS.values())]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    several = len({row.method.name for row in runs}) > 1
    for _, group in itertools.groupby(runs, key=lambda row: row.method.name):
        own = list(group)
        for row in own:
            for epoch, parts in (("selected", runs[row]), ("last", [r["last"] for r in runs[row]])):
                lines.append([row.title, epoch, str(len(parts)), *_cells(parts, modes)])
        starts = [r["start"] for row in own for r in runs[row] if "start" in r]
        if starts:
            title = f"{own[0].method.title} before training" if several else "before training"
            lines.append([title, "", str(len(starts)), *_cells(starts, modes)])
    lines.append(["chance", "", str(len(everything)), *_cells([r["chance"] for r in everything], modes)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\nMean ± deviation over runs, in percent; epochs selected by {_selected_by(runs)}."


def mean_and_deviation(values: Sequence[float]) -> str:
    """Fractions as `61.2 ± 1.3`, mean and sample deviation in percent; of a single one the mean alone."""
    percent = 100 * np.asarray(values, dtype=float)
    return f"{percent.mean():.1f}" + (f" ± {percent.std(ddof=1):.1f}" if len(percent) > 1 else "")


def _selected_by(runs: Mapping[Row, Sequence[dict[str, Any]]]) -> str:
    """How epochs were selected; method by method where that differs."""
    words = {"test-rank1": "Rank-1 on the test set", "last": "taking the last"}
    ways: dict[str, dict[str, None]] = {}  # way → titles of methods, in order
    for row, own in runs.items():
        ways.setdefault(words[own[0]["selected_by"]], {})[row.method.title] = None
    if len(ways) == 1:
        return next(iter(ways))
    return "; ".join(f"{way} ({', '.join(titles)})" for way, titles in ways.items())


def _cells(parts: Sequence[dict[str, Any]], modes: Sequence[str]) -> list[str]:
    return [mean_and_deviation([part[mode][metric] for part in parts]) for mode in modes for metric in COLUMNS]


def _finished(folder: Path, config: RunSettings) -> bool:
    """Whether the folder holds the results of a run of these settings. (Training refuses one of other settings.)"""
    saved = _settings_of(folder)
    return _results_of(folder) is not None and saved is not None and not config.differences(saved)


def _results_of(folder: Path) -> dict[str, Any] | None:
    """A run's results.json: its own (RegDB: the mean of all trials), or that of its only trial."""
    found = sorted(folder.glob("results.json")) or sorted(folder.glob("trial-*/results.json"))
    return read_results(found[0]) if len(found) == 1 else None


def _settings_of(folder: Path) -> RunSettings | None:
    found = sorted([*folder.glob("config.json"), *folder.glob("trial-*/config.json")])
    return read_settings(found[0])[1] if found else None


def _finished_runs(rows: Sequence[Row], run_dir: Path) -> dict[Row, list[dict[str, Any]]]:
    """The results of each row's finished runs; rows without one are left out."""
    runs: dict[Row, list[dict[str, Any]]] = {}
    first: dict[str, tuple[Path, RunSettings]] = {}
    by_rows = {word.lstrip("-").removeprefix("no-").replace("-", "_") for row in rows for word in row.options}
    for row in rows:
        for folder in sorted((run_dir / row.folder).glob("seed-*")):
            results, config = _results_of(folder), _settings_of(folder)
            if results is None or config is None:
                continue
            other, compared = first.setdefault(row.method.name, (folder, config))
            varied = {n: getattr(compared, n) for n in (*VARIED, *by_rows) if hasattr(config, n)}
            differences = dataclasses.replace(config, **varied).differences(compared)
            people = {
                (c.dataset, c.synthetic_identities, c.synthetic_images, c.drawn_size)
                for c in (config, *(c for _, c in first.values()))
            }
            if differences or len(people) > 1:
                what = ", ".join(differences) or "other data"
                raise UserError(f"{folder} and {other} cannot stand in one table: {what}. Move one of them away")
            runs.setdefault(row, []).append(results)
    if not runs:
        raise UserError(
            f"{run_dir} holds no finished run: start without --table-only, or give the --run-dir of the runs"
        )
    return runs
