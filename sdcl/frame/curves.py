"""The log's numbers as TensorBoard curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Curves"]


class Curves:
    """Scalars and histograms of a run, the epoch as step, in a folder of event files.

    log.jsonl is the truth. The folder is made anew from it each time that a run starts or goes on, so that whatever a
    kill left behind, it holds each finished epoch once.

    Args:
        folder: made if it does not exist; its event files are deleted.
        log: the epochs so far, as in log.jsonl.
        terms: how the names of loss terms begin.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, log: list[dict[str, Any]], terms: tuple[str, ...]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # for runs that want it alone

        for old in sorted(folder.glob("events.out.tfevents.*")):
            old.unlink()
        self._terms = ("loss", *terms)
        self._writer = SummaryWriter(str(folder))
        for line in log:
            self.add(line)

    def add(self, line: dict[str, Any]) -> None:
        """Writes an epoch's entry of log.jsonl: every number in it, under "loss/", "labels/", "seconds/" or the test's
        mode, and the histogram of cluster sizes."""
        epoch = line["epoch"]
        for name, value in line.items():
            if isinstance(value, dict):
                for part, number in value.items():
                    self._writer.add_scalar(f"{name}/{part}", number, epoch)
            elif isinstance(value, list):
                self._histogram(f"{name}_log2", value, epoch)
            elif name != "epoch" and not isinstance(value, str):
                place = "loss" if name.startswith(self._terms) else "labels"
                self._writer.add_scalar(f"{place}/{name}", value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _histogram(self, name: str, counts: list[int], epoch: int) -> None:
        """Of sizes that were counted in bins of 1, 2-3, 4-7, …: bin b holds the logarithms b to b + 1."""
        middles = [b + 0.5 for b in range(len(counts))]
        self._writer.add_histogram_raw(
            f"labels/{name}",
            min=0,
            max=len(counts),
            num=sum(counts),
            sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
            sum_squares=sum(n * x * x for n, x in zip(counts, middles, strict=True)),
            bucket_limits=[b + 1 for b in range(len(counts))],
            bucket_counts=counts,
            global_step=epoch,
        )
