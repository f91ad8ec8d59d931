"""A run's folder: lock, settings, log, checkpoints, and how to go on from them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sdcl import distributed
from sdcl.config import Config
from sdcl.errors import UserError
from sdcl.checkpoints import pack, read_checkpoint, save_checkpoint, write_atomically, write_json

from sdcl.training.labels import PseudoLabels

__all__ = ["Clock", "Run"]


STATE = ("optimizer", "best_epoch", "best_rank1", "labels")
"""What last.pth holds beyond a checkpoint to test with."""


class Clock:
    """Seconds of an epoch by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - start, 2)


class Run:
    """One training run in its folder.

    Files: config.json (the resolved settings), log.jsonl (an object an epoch), last.pth (everything to go on from),
    best.pth (the selected epoch), stage1.pth (what stage 2 started from).

    Args:
        folder: made if it does not exist.
        config: settings; compared with the folder's own when the run goes on.
        trial: RegDB's 1 to 10, 0 elsewhere.
        fingerprint: of the training data, for the checkpoints.

    Raises:
        UserError: the folder is locked by another process, cannot be written, holds a run that was not asked to go on,
            or one of other settings or data.
    """

    def __init__(self, folder: Path, config: Config, trial: int, fingerprint: str) -> None:
        self.folder, self.config, self.trial, self.fingerprint = folder, config, trial, fingerprint
        self.last, self.best, self.stage1 = (folder / name for name in ("last.pth", "best.pth", "stage1.pth"))
        self.next_epoch, self.best_epoch, self.best_rank1 = 0, -1, -1.0
        self._good_labels: PseudoLabels | None = None
        if distributed.is_main():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = open(folder / "lock", "w")         # noqa: SIM115 - held until the process ends
            except OSError as error:
                raise UserError(f"cannot write to the run folder {folder}: {error.strerror or error}. Choose another with --run-dir") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is training in {folder}. Wait for it, or choose another --run-dir") from error

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Sets model, optimiser and `next_epoch` to where the folder's run stands, as `config.resume` asks; then writes config.json."""
        exists = self.last.exists()
        if exists and self.config.resume == "never":
            raise UserError(f"{self.folder} already holds a run. Go on with it: --resume auto. Or start afresh in another folder: --run-dir DIR")
        if not exists and self.config.resume == "always":
            raise UserError(f"there is nothing to resume in {self.folder}: no last.pth. --resume auto starts a run where there is none")
        if exists:
            self._load(model, optimizer)
        elif distributed.is_main():
            (self.folder / "log.jsonl").unlink(missing_ok=True)
        if distributed.is_main():
            write_json(self.folder / "config.json", self.config.to_json())

    def _load(self, model: nn.Module, optimizer: Optimizer) -> None:
        checkpoint = read_checkpoint(self.last)
        differences = self.config.differences(Config.from_json(checkpoint["config"]))
        if differences:
            raise UserError(f"the run in {self.folder} has other settings: {', '.join(differences)}. Give the same ones, or another --run-dir")
        if checkpoint["trial"] != self.trial:
            raise UserError(f"{self.last} is of trial {checkpoint['trial']}, not {self.trial}")
        if checkpoint["fingerprint"] != self.fingerprint:
            raise UserError(f"the training data are not those that the run in {self.folder} started with (fingerprint {self.fingerprint}, "
                            f"was {checkpoint['fingerprint']}). Restore them, or start afresh in another --run-dir")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        self.next_epoch, self.best_epoch, self.best_rank1 = checkpoint["epoch"] + 1, checkpoint["best_epoch"], checkpoint["best_rank1"]
        if checkpoint["labels"] is not None:
            device = next(model.parameters()).device
            self._good_labels = PseudoLabels(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in checkpoint["labels"].items()})
        if not distributed.is_main():
            return
        # A kill between the two files of an epoch leaves a best.pth that is one behind: it is this very epoch then.
        if self.best_epoch == checkpoint["epoch"] and not (self.best.exists() and read_checkpoint(self.best)["epoch"] == self.best_epoch):
            save_checkpoint(self.best, {k: v for k, v in checkpoint.items() if k not in STATE})
        kept = [line for line in self.log() if line["epoch"] < self.next_epoch]
        write_atomically(self.folder / "log.jsonl", lambda p: p.write_text("".join(json.dumps(line) + "\n" for line in kept)))

    def log(self) -> list[dict[str, Any]]:
        """The epochs written so far; a line that a kill cut short is left out."""
        lines = []
        path = self.folder / "log.jsonl"
        for text in path.read_text().splitlines() if path.exists() else ():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def enter_stage2(self, model: nn.Module) -> None:
        """Restores the selected stage-1 weights and running statistics (section 6) and keeps them as stage1.pth; the
        optimiser's state and the learning rate carry on."""
        model.load_state_dict(read_checkpoint(self.best)["model"])
        if distributed.is_main():
            write_atomically(self.stage1, lambda p: shutil.copyfile(self.best, p))
        distributed.barrier()

    def usable(self, labels: PseudoLabels, problem: str | None) -> PseudoLabels:
        """The labels to train with: these, or, where they are degenerate and `config.on_degenerate` allows it, the last good ones.

        Raises:
            UserError: with `problem`, when there is one and no good labels to keep.
        """
        if problem is None:
            self._good_labels = labels
        elif self.config.on_degenerate == "stop" or self._good_labels is None:
            raise UserError(f"{problem}. To train on with the labels of the epoch before instead: --on-degenerate keep-labels")
        elif self._good_labels.stage != labels.stage:
            raise UserError(f"{problem}. The labels of the epoch before are of stage {self._good_labels.stage} and cannot stand in")
        elif distributed.is_main():
            print(f"warning: {problem}. Training goes on with the last good labels", flush=True)
        return self._good_labels if self._good_labels is not None else labels

    def save(self, model: nn.Module, optimizer: Optimizer, line: dict[str, Any], rank1: float) -> bool:
        """Ends an epoch: log line, last.pth and, if it is the selected one so far, best.pth. Returns whether it is.

        Args:
            line: the epoch's entry of log.jsonl, with "epoch" and "stage".
            rank1: Rank-1 of the test that selects (fraction); the first of equals stays the best.
        """
        selected = self.config.select == "last" or rank1 > self.best_rank1
        if selected:
            self.best_epoch, self.best_rank1 = line["epoch"], rank1
        self.next_epoch = line["epoch"] + 1
        if distributed.is_main():
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            checkpoint = pack(model, self.config, epoch=line["epoch"], stage=line["stage"], trial=self.trial, fingerprint=self.fingerprint,
                              metrics={"rank1": rank1})
            save_checkpoint(self.last, checkpoint, optimizer, best_epoch=self.best_epoch, best_rank1=self.best_rank1,
                            labels=None if self._good_labels is None else vars(self._good_labels))
            if selected:
                save_checkpoint(self.best, checkpoint)
        distributed.barrier()
        return selected

    def close(self) -> None:
        """Gives the folder free."""
        if distributed.is_main():
            self._lock.close()
