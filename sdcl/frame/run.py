"""A run's folder: lock, settings, log, checkpoints, and how to go on from them.

What a resumed run needs is weights, optimiser, the epochs done, the best one so far and the last good pseudo-labels;
all of it is in last.pth. No generator's state is kept, since none outlives an epoch: labels and memories are made anew
from the weights, and everything random follows from (seed, trial, epoch) (`sdcl.seeds`). An epoch that was
interrupted is repeated from its start, and on the CPU a resumed run is equal to an uninterrupted one to the last bit.

An epoch ends with three writes in this order: its line of log.jsonl, last.pth, best.pth (if it is the best). A kill
between two of them leaves one file behind the other; `Run.restore` puts them in step again, by last.pth.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
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
from sdcl.frame.checkpoints import (
    pack,
    read_checkpoint,
    remove_leftovers,
    save_checkpoint,
    write_atomically,
    write_json,
)
from sdcl.frame.curves import Curves
from sdcl.tensor_files import fill
from sdcl.training.labels import PseudoLabels
from sdcl.version import __version__

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
    best.pth (the selected epoch), stage1.pth (what stage 2 started from), results.json (the final tables), tensorboard/
    (curves).

    Args:
        folder: made if it does not exist; locked until `close` or the end of the process.
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
        self.log_file, self.results_file = folder / "log.jsonl", folder / "results.json"
        self.next_epoch, self.best_epoch, self.best_rank1 = 0, -1, -1.0
        self._good_labels: PseudoLabels | None = None
        self._labels_kept = False
        self._curves: Curves | None = None
        if distributed.is_main():
            self._occupy()

    def _occupy(self) -> None:
        """Makes and locks the folder, and clears away what killed writes left in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 - held until the process ends
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"cannot make the run folder {self.folder}: a file of this name, or of a folder above it, is in the "
                "way. Move it, or choose another folder with --run-dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.folder}: {error.strerror}. Choose another with --run-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {self.folder}. Wait for it, or choose another --run-dir"
            ) from None
        except OSError as error:  # some network file systems
            _say(f"note: {self.folder} cannot be locked ({error.strerror}): see to it that no other run uses it")
        remove_leftovers(self.folder)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Sets model, optimiser and `next_epoch` to where the folder's run stands, as `config.resume` asks; then
        writes config.json."""
        exists, resume = self.last.exists(), self.config.resume
        if exists and resume == "never":
            raise UserError(
                f"{self.folder} already holds a run. Go on with it: --resume auto. Or start afresh in another folder: "
                "--run-dir DIR"
            )
        if not exists and self.best.exists():
            raise UserError(
                f"{self.folder} holds best.pth, but not the last.pth that a run goes on from. Start afresh in another "
                "folder: --run-dir DIR"
            )
        # A run over all trials goes on in the first one that is not finished; those after it have nothing yet.
        if resume == "always" and not exists and not any(self.config.run_dir.glob("trial-*/last.pth")):
            raise UserError(
                f"there is nothing to resume in {self.folder}: no last.pth. --resume auto starts a run where there is "
                "none"
            )
        if exists:
            self._load(model, optimizer)
        elif distributed.is_main():
            self.log_file.unlink(missing_ok=True)
        if distributed.is_main():
            write_json(self.folder / "config.json", self.config.to_json())
            self._draw_curves()

    def _draw_curves(self) -> None:
        """TensorBoard's curves of the epochs so far, if they are wanted and it is installed."""
        if self.config.tensorboard:
            try:
                self._curves = Curves(self.folder / "tensorboard", self.log())
            except ImportError as error:
                _say(f"note: no curves for TensorBoard ({error}): pip install tensorboard, or --no-tensorboard")

    def _load(self, model: nn.Module, optimizer: Optimizer) -> None:
        checkpoint = read_checkpoint(self.last, further=STATE)
        self._check_same_run(checkpoint)
        _load_weights(model, checkpoint, self.last)
        optimizer.load_state_dict(checkpoint["optimizer"])
        self.next_epoch = checkpoint["epoch"] + 1
        self.best_epoch, self.best_rank1 = checkpoint["best_epoch"], checkpoint["best_rank1"]
        if checkpoint["labels"] is not None:
            device = next(model.parameters()).device
            saved: dict[str, Any] = checkpoint["labels"]
            tensors = {k: v.to(device) for k, v in saved.items() if torch.is_tensor(v)}
            self._good_labels = PseudoLabels(**tensors, stage=saved["stage"])
        if not distributed.is_main():
            return
        # Killed between last.pth and best.pth: this very epoch is the best one.
        if self.best_epoch == checkpoint["epoch"] and not self._best_is(self.best_epoch):
            save_checkpoint(self.best, {k: v for k, v in checkpoint.items() if k not in STATE})
        # Killed between the log and last.pth: this epoch's line will be written again.
        kept = [line for line in self.log() if line["epoch"] < self.next_epoch]
        write_atomically(self.log_file, lambda p: p.write_text("".join(json.dumps(line) + "\n" for line in kept)))
        _say(f"{self.folder}: {self.next_epoch} of {self.config.epochs} epochs are done")

    def _check_same_run(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError unless a checkpoint can go on with these settings, this trial and these data."""
        differences = self.config.differences(Config.from_json(checkpoint["config"], self.last))
        if differences and self.config.resume != "changed":
            raise UserError(
                f"the run in {self.folder} has other settings: {', '.join(differences)}. Give the same ones, or "
                "another --run-dir; or go on with the new ones from the next epoch: --resume changed"
            )
        if checkpoint["trial"] != self.trial:
            raise UserError(f"{self.last} is of trial {checkpoint['trial']}, not {self.trial}. Choose another folder")
        if checkpoint["fingerprint"] != self.fingerprint:
            raise UserError(
                f"the training data are not those that the run in {self.folder} started with (fingerprint "
                f"{self.fingerprint}, was {checkpoint['fingerprint']}). Restore them, or start afresh in another "
                "--run-dir"
            )
        if differences:
            _say(f"note: from epoch {checkpoint['epoch'] + 1} on with other settings: {', '.join(differences)}")
        if checkpoint["code_version"] != __version__:
            _say(f"note: the run began with version {checkpoint['code_version']} of this code, this is {__version__}")

    def _best_is(self, epoch: int) -> bool:
        return self.best.exists() and read_checkpoint(self.best)["epoch"] == epoch

    def log(self) -> list[dict[str, Any]]:
        """The epochs written so far; a line that a kill cut short is left out."""
        lines = []
        for text in self.log_file.read_text().splitlines() if self.log_file.exists() else ():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def results(self) -> dict[str, Any] | None:
        """The final results of a run whose last epoch is done and tested, which need not be computed again."""
        if self.next_epoch < self.config.epochs or not self.results_file.exists():
            return None
        return json.loads(self.results_file.read_text())

    def enter_stage2(self, model: nn.Module) -> None:
        """Restores the selected stage-1 weights and running statistics (section 6) and keeps them as stage1.pth; the
        optimiser's state and the learning rate carry on."""
        _load_weights(model, read_checkpoint(self.best), self.best)
        if distributed.is_main():
            write_atomically(self.stage1, lambda p: shutil.copyfile(self.best, p))
        distributed.barrier()

    def usable(self, labels: PseudoLabels, problem: str | None) -> PseudoLabels:
        """The labels to train with: these, or, where they are degenerate and `config.on_degenerate` allows it, the
        last good ones; the epoch's log line then says "labels_kept".

        Raises:
            UserError: with `problem`, when there is one and no good labels to keep.
        """
        self._labels_kept = problem is not None
        if problem is None:
            self._good_labels = labels
            return labels
        if self.config.on_degenerate == "stop":
            raise UserError(
                f"{problem}. To train on with the labels of the epoch before instead: --resume auto --on-degenerate "
                "keep-labels"
            )
        if self._good_labels is None:
            raise UserError(f"{problem}. There are no labels of an epoch before to train on with")
        if self._good_labels.stage != labels.stage:
            raise UserError(
                f"{problem}. The labels of the epoch before are of stage {self._good_labels.stage} and cannot stand in"
            )
        _say(f"warning: {problem}. Training goes on with the last good labels")
        return self._good_labels

    def save(self, model: nn.Module, optimizer: Optimizer, line: dict[str, Any], rank1: float) -> bool:
        """Ends an epoch: log line, last.pth and, if it is the selected one so far, best.pth. Returns whether it is.

        Args:
            line: the epoch's entry of log.jsonl, with "epoch" and "stage".
            rank1: Rank-1 of the test that selects (fraction); the first of equals stays the best.

        Raises:
            UserError: the disk is full, say; the epochs before are safe.
        """
        selected = self.config.select == "last" or rank1 > self.best_rank1
        if selected:
            self.best_epoch, self.best_rank1 = line["epoch"], rank1
        self.next_epoch = line["epoch"] + 1
        if distributed.is_main():
            self.results_file.unlink(missing_ok=True)  # of a shorter run that goes on
            line = {**line, "labels_kept": True} if self._labels_kept else line
            self._append(line)
            checkpoint = pack(
                model,
                self.config,
                epoch=line["epoch"],
                stage=line["stage"],
                trial=self.trial,
                fingerprint=self.fingerprint,
                metrics={"rank1": rank1},
            )
            labels = None if self._good_labels is None else vars(self._good_labels)
            state = {"best_epoch": self.best_epoch, "best_rank1": self.best_rank1, "labels": labels}
            save_checkpoint(self.last, checkpoint, optimizer, **state)
            if selected:
                save_checkpoint(self.best, checkpoint)
            if self._curves is not None:
                self._curves.add(line)
        distributed.barrier()
        return selected

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with open(self.log_file, "a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.log_file}: {error.strerror}. The epochs before are safe: free space and go on "
                "with --resume auto"
            ) from error

    def close(self) -> None:
        """Gives the folder free."""
        if self._curves is not None:
            self._curves.close()
        if distributed.is_main():
            self._lock.close()


def _load_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """All tensors of a checkpoint into the model, or UserError: nothing missing, nothing of another shape."""
    names = list(model.state_dict())
    source = checkpoint["model"]
    fill(model, source, dict(zip(names, names, strict=True)), path, sorted(source.keys() - set(names)))


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)
