"""A run's folder: lock, settings, log, checkpoints, and how to go on from them.

What a resumed run needs is the weights of its network, its optimisers, the epochs done, the best one so far, and the
plain values that its method's loop hands over (the last good pseudo-labels, say); all of it is in last.pth. No
generator's state is kept: everything random follows from (seed, trial, epoch) (`sdcl.seeds`). An epoch that was
interrupted is repeated from its start, and on the CPU a resumed run is equal to an uninterrupted one to the last bit.
What an epoch is, is the method's business: the part of a run between two checkpoints.

An epoch ends with three writes in this order: its line of log.jsonl, last.pth, best.pth (if it is the best). A kill
between two of them leaves one file behind the other; `Run.restore` puts them in step again, by last.pth.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sdcl import distributed
from sdcl.errors import UserError
from sdcl.files import remove_leftovers, write_atomically, write_json
from sdcl.frame.checkpoints import CONTENTS, load_weights, pack, read_checkpoint, save_checkpoint
from sdcl.frame.curves import Curves
from sdcl.frame.method import Method
from sdcl.frame.provenance import provenance, weights_hash
from sdcl.frame.run_log import read_log, read_provenance, read_results
from sdcl.settings import RunSettings
from sdcl.version import __version__

__all__ = ["Clock", "Run"]

PROGRESS = {"best_epoch": int, "best_rank1": float}
"""What last.pth holds of the run itself, beside a checkpoint to test with and what the method's loop hands over, and
its type."""


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

    Files: config.json (method and resolved settings), provenance.json (what made the run), log.jsonl (an object an
    epoch), last.pth (everything to go on from), best.pth (the selected epoch), results.json (the final tables),
    tensorboard/ (curves), and copies of best.pth that the method asks for (`go_on_from_best`).

    Args:
        folder: made if it does not exist; locked until `close` or the end of the process.
        method: whose run it is.
        config: settings; compared with the folder's own when the run goes on.
        trial: RegDB's 1 to 10, 0 elsewhere.
        fingerprint: of the training data, for the checkpoints.

    Raises:
        UserError: the folder is locked by another process, cannot be written, holds a run that was not asked to go on,
            or one of another method, other settings or data.
    """

    def __init__(self, folder: Path, method: Method, config: RunSettings, trial: int, fingerprint: str) -> None:
        self.folder, self.method, self.config = folder, method, config
        self.trial, self.fingerprint = trial, fingerprint
        self.last, self.best = folder / "last.pth", folder / "best.pth"
        self.log_file, self.results_file = folder / "log.jsonl", folder / "results.json"
        self.provenance_file = folder / "provenance.json"
        self.next_epoch, self.best_epoch, self.best_rank1 = 0, -1, -1.0
        self._curves: Curves | None = None
        distributed.from_main(self._occupy)
        distributed.check_shared(folder)

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
        for path in (self.log_file, self.last, self.best, self.results_file, self.folder / "tensorboard"):
            if path.exists() and path.is_dir() != (path.name == "tensorboard"):
                found, wanted = ("folder", "file") if path.is_dir() else ("file", "folder")
                raise UserError(f"{path} is a {found} where a run has a {wanted}: move it away")
        remove_leftovers(self.folder)

    def restore(self, **parts: nn.Module | Optimizer) -> dict[str, Any]:
        """Sets networks, optimisers and `next_epoch` to where the folder's run stands, as `config.resume` asks; then
        writes config.json.

        Args:
            parts: by the names that `save` gives them; "model" is the network that tests use.

        Returns:
            The plain values that the last `save` was given, by name, tensors on the CPU; empty for a fresh run.
        """
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
        values: dict[str, Any] = {}
        if exists:
            values = self._load(parts)
        elif distributed.is_main():
            self.log_file.unlink(missing_ok=True)
        if distributed.is_main():
            write_json(self.folder / "config.json", {"method": self.method.name, **self.config.to_json()})
            self._record_provenance(parts["model"])  # type: ignore[arg-type]
            self._draw_curves()
        return values

    def _record_provenance(self, model: nn.Module) -> None:
        """provenance.json: an entry for what the run began with, and a further one wherever it goes on otherwise."""
        fresh = self.next_epoch == 0 or not self.provenance_file.is_file()
        known = [] if fresh else self.provenance()
        begun = known[0]["starting_weights"] if known else None
        if begun is None and self.next_epoch == 0:
            begun = weights_hash(model.state_dict())
        entry = provenance(self.config, self.fingerprint, begun or "unknown")
        if not known or {**known[-1], "from_epoch": 0} != {**entry, "from_epoch": 0}:
            known.append({"from_epoch": self.next_epoch, **entry})
        write_json(self.provenance_file, {"runs": known})

    def provenance(self) -> list[dict[str, Any]]:
        """What made this run (`sdcl.frame.provenance`): an entry, and one more for each change on the way."""
        return read_provenance(self.folder)

    def _draw_curves(self) -> None:
        """TensorBoard's curves of the epochs so far, if they are wanted and it is installed."""
        if self.config.tensorboard:
            try:
                self._curves = Curves(self.folder / "tensorboard", self.log(), self.method.terms)
            except ImportError as error:
                _say(f"note: no curves for TensorBoard ({error}): pip install tensorboard, or --no-tensorboard")

    def _load(self, parts: Mapping[str, nn.Module | Optimizer]) -> dict[str, Any]:
        others = tuple(name for name in parts if name != "model")
        checkpoint = read_checkpoint(self.last, further=PROGRESS | dict.fromkeys(others, dict))
        self._check_same_run(checkpoint)
        for name, part in parts.items():
            if name == "model":
                load_weights(part, checkpoint, self.last)  # type: ignore[arg-type]
                continue
            try:
                part.load_state_dict(checkpoint[name])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self.last} is damaged: its {name} does not fit ({type(error).__name__}). Restore it, or "
                    "start afresh in another folder: --run-dir DIR"
                ) from error
        self.next_epoch = checkpoint["epoch"] + 1
        self.best_epoch, self.best_rank1 = checkpoint["best_epoch"], checkpoint["best_rank1"]
        best = {name: checkpoint[name] for name in ("format", "method", *CONTENTS)}
        values = {k: v for k, v in checkpoint.items() if k not in (*best, *PROGRESS, *others)}
        if distributed.is_main():
            # Killed between last.pth and best.pth: this very epoch is the best one.
            if self.best_epoch == checkpoint["epoch"] and not self._best_is(self.best_epoch):
                save_checkpoint(self.best, best)
            # Killed between the log and last.pth: this epoch's line will be written again.
            kept = [line for line in self.log() if line["epoch"] < self.next_epoch]
            write_atomically(self.log_file, lambda p: p.write_text("".join(json.dumps(line) + "\n" for line in kept)))
            _say(f"{self.folder}: {self.next_epoch} of {self.config.epochs} epochs are done")
        return values

    def _check_same_run(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError unless a checkpoint can go on with this method, these settings, this trial and these
        data."""
        if checkpoint["method"] != self.method.name:
            raise UserError(
                f"the run in {self.folder} is of another method ({checkpoint['method']}, not {self.method.name}). "
                "Choose another --run-dir"
            )
        differences = self.config.differences(self.method.settings.from_json(checkpoint["config"], self.last))
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
        return read_log(self.log_file) if self.log_file.exists() else []

    def results(self) -> dict[str, Any] | None:
        """The final results, where there are some: an epoch's end takes those of a shorter run away."""
        return read_results(self.results_file) if self.results_file.exists() else None

    def go_on_from_best(self, model: nn.Module, keep_as: str, **parts: nn.Module | Optimizer) -> None:
        """Restores the selected weights and running statistics, and keeps best.pth as `<keep_as>.pth` too, with the
        state of `parts` as they stand: what another run can begin from. The parts stay as they are."""
        checkpoint = read_checkpoint(self.best)
        load_weights(model, checkpoint, self.best)
        if distributed.is_main():
            state = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(self.folder / f"{keep_as}.pth", {**checkpoint, **state})
        distributed.barrier()

    def begin_at(self, epoch: int, rank1: float | None, model: nn.Module, **parts: Any) -> None:
        """Makes a fresh run begin at a later epoch, with these weights as its selected ones; arguments as in `save`.

        Args:
            epoch: the first one that is trained; the weights count as those of the epoch before it.
            rank1: what the epochs from here on must exceed to be selected; None: the first one is, whatever it gives.
        """
        self.best_epoch, self.best_rank1 = epoch - 1, -1.0 if rank1 is None else rank1
        self._write(epoch - 1, {} if rank1 is None else {"rank1": rank1}, model, parts, selected=True)

    def save(self, line: dict[str, Any], rank1: float | None, model: nn.Module, **parts: Any) -> bool:
        """Ends an epoch: log line, last.pth and, if it is the selected one so far, best.pth. Returns whether it is.

        Args:
            line: the epoch's entry of log.jsonl, with "epoch".
            rank1: Rank-1 of the test that selects (fraction), the first of equals stays the best; None: this epoch was
                not tested, and can be the best one under `--select last` alone.
            model: the network that tests use.
            parts: what else the run goes on from, by name: networks, optimisers, tensors and plain values.

        Raises:
            UserError: the disk is full, say; the epochs before are safe.
        """
        selected = self.config.select == "last" or (rank1 is not None and rank1 > self.best_rank1)
        if selected:
            self.best_epoch, self.best_rank1 = line["epoch"], self.best_rank1 if rank1 is None else rank1
        if distributed.is_main():
            self.results_file.unlink(missing_ok=True)  # of a shorter run that goes on
            self._append(line)
        self._write(line["epoch"], {} if rank1 is None else {"rank1": rank1}, model, parts, selected)
        if self._curves is not None:
            self._curves.add(line)
        return selected

    def _write(
        self, epoch: int, metrics: dict[str, float], model: nn.Module, parts: dict[str, Any], selected: bool
    ) -> None:
        """last.pth and, for the selected epoch, best.pth."""
        self.next_epoch = epoch + 1
        if distributed.is_main():
            checkpoint = pack(
                model,
                self.config,
                method=self.method.name,
                epoch=epoch,
                trial=self.trial,
                fingerprint=self.fingerprint,
                metrics=metrics,
            )
            state = {k: v.state_dict() if isinstance(v, (nn.Module, Optimizer)) else v for k, v in parts.items()}
            state |= {"best_epoch": self.best_epoch, "best_rank1": self.best_rank1}
            save_checkpoint(self.last, {**state, **checkpoint})
            if selected:
                save_checkpoint(self.best, checkpoint)
        distributed.barrier()

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
        """Unlocks the folder."""
        if self._curves is not None:
            self._curves.close()
        if distributed.is_main():
            self._lock.close()


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)
