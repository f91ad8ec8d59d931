"""A run folder as its files tell it: settings, log and results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcl.errors import UserError
from sdcl.frame.method import Method, read_settings
from sdcl.frame.published import Curve
from sdcl.frame.run_log import read_log, read_provenance, read_results
from sdcl.settings import RunSettings

__all__ = ["RunFiles", "read_run", "run_folders"]


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says without its weights.

    Attributes:
        log: an entry an epoch, in order.
        results: the final table, None while the run has not ended.
        provenance: what made it (`sdcl.frame.provenance`); empty where an older version trained.
    """

    folder: Path
    method: Method
    config: RunSettings
    log: list[dict[str, Any]]
    results: dict[str, Any] | None
    provenance: Sequence[dict[str, Any]] = ()

    @property
    def published(self) -> str | None:
        """The data set whose published results this run compares with; None where there are none, or on data that are
        not the published ones."""
        dataset, published = self.config.dataset, self.method.published
        real = self.config.synthetic_seed is None
        return dataset if real and published is not None and dataset in published.results else None

    @property
    def curve(self) -> Curve | None:
        """The published runs, epoch by epoch, that this run compares with."""
        published = self.method.published
        return published.curves.get(self.published) if published is not None and self.published else None

    @property
    def stages(self) -> list[tuple[int, str]]:
        """First epoch and name of each stage of the log beyond the first one."""
        names = [(line["epoch"], self.config.stage_name(line["epoch"])) for line in self.log]
        return [after for before, after in itertools.pairwise(names) if before[1] != after[1]]


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
    lines = read_log(log)
    if not lines:
        raise UserError(f"{log} holds no epoch yet: wait for the first one to end")
    method, settings = read_settings(config)
    table = read_results(results) if results.exists() else None
    return RunFiles(folder, method, settings, lines, table, read_provenance(folder))
