"""A run folder as its files tell it: settings, log and results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcl.config import Config
from sdcl.errors import UserError
from sdcl.report.published import RESULTS

__all__ = ["RunFiles", "read_run", "run_folders", "series"]


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says without its weights.

    Attributes:
        log: an entry an epoch, in order.
        results: the final table, None while the run has not ended.
    """

    folder: Path
    config: Config
    log: list[dict[str, Any]]
    results: dict[str, Any] | None

    @property
    def published(self) -> str | None:
        """The data set whose published curve this run compares with; None on data that are not the published ones."""
        dataset = self.config.dataset
        return dataset if dataset in RESULTS and self.config.synthetic_seed is None else None

    @property
    def stage2_epoch(self) -> int | None:
        """The first epoch of stage 2, None where the log has none."""
        return next((line["epoch"] for line in self.log if line["stage"] == 2), None)


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, or its trial-<n> folders where it is that of a RegDB run over several trials."""
    trials = [folder / f"trial-{t}" for t in range(1, 11) if (folder / f"trial-{t}" / "log.jsonl").is_file()]
    return trials if trials and not (folder / "log.jsonl").is_file() else [folder]


def read_run(folder: Path) -> RunFiles:
    """Reads config.json, log.jsonl and, if it is there, results.json.

    Raises:
        UserError: the folder holds no run, or no epoch of it has ended yet.
    """
    config, log, results = (folder / name for name in ("config.json", "log.jsonl", "results.json"))
    if not config.is_file() or not log.is_file():
        missing = config.name if not config.is_file() else log.name
        raise UserError(f"{folder} is not a run folder: it holds no {missing}. Name the --run-dir of a training run")
    lines = []
    for text in log.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # a kill cut the last line short
            break
    if not lines:
        raise UserError(f"{log} holds no epoch yet: wait for the first one to end")
    table = json.loads(results.read_text()) if results.is_file() else None
    return RunFiles(folder, Config.from_json(json.loads(config.read_text())), lines, table)


def series(log: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of a quantity, where it was logged; `mode.metric` reads a test's metric."""
    first, _, second = name.partition(".")
    found = [(line["epoch"], line[first][second] if second else line[first]) for line in log if first in line]
    return [epoch for epoch, _ in found], [value for _, value in found]
