"""What a run will cost, known before it starts: each phase once at full size, and the hours of the whole schedule.

Network, images, batches and test lists are the run's own; what a method needs beside them (embeddings, pseudo-labels)
it may draw, since the real ones would take an epoch. Nothing is written.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import torch
from torch import nn

from sdcl import distributed
from sdcl.data.records import ImageRecord
from sdcl.frame.embedding import Levels, device_of, embed_records
from sdcl.frame.method import Method
from sdcl.frame.progress import Progress
from sdcl.frame.retrieval import TestSet, evaluate
from sdcl.settings import RunSettings
from sdcl.tables import align_columns

__all__ = ["Estimate", "Phase", "TIMED_STEPS", "announce", "embedding_seconds", "now", "step_seconds", "test_seconds"]

TIMED_STEPS = 3
"""Steps that are timed, after a first one that warms up."""


@dataclass(frozen=True)
class Phase:
    """A part of the schedule: seconds each time, and how many times it comes."""

    name: str
    seconds: float
    times: int


@dataclass(frozen=True)
class Estimate:
    """What one trial's schedule takes.

    Attributes:
        phases: its parts.
        steps: what a step is of (`stage 1`, say) → seconds to read and augment its images, and to train on them.
    """

    phases: list[Phase]
    steps: dict[str, tuple[float, float]]

    @property
    def seconds(self) -> float:
        return sum(phase.seconds * phase.times for phase in self.phases)

    def table(self, trials: int) -> str:
        """A row a phase, and the sum; of several trials, that of all."""
        rows = [("phase", "seconds", "times", "hours")]
        for phase in self.phases:
            hours = phase.seconds * phase.times / 3600
            rows.append((phase.name, f"{phase.seconds:.1f}", str(phase.times), f"{hours:.2f}"))
        rows.append(("whole schedule" if trials == 1 else "a trial", "", "", f"{self.seconds / 3600:.2f}"))
        if trials > 1:
            rows.append((f"{trials} trials", "", "", f"{trials * self.seconds / 3600:.2f}"))
        return align_columns(rows, left=1)


def announce(estimate: Estimate, config: RunSettings, trials: int, device: torch.device, progress: Progress) -> None:
    """Prints step times, the peak of memory, the table of phases and when a run that started now would end."""
    progress.say(f"dry run: a little of each phase at full size; {config.run_dir} is left alone\n")
    for name, (loading, training) in estimate.steps.items():
        step = f"a step of {name}" if name else "a step"
        progress.say(f"{step}: {training:.2f} s; reading and augmenting its images: {loading:.2f} s")
    progress.say(f"{_peak_memory(device)}\n\n{estimate.table(trials)}\n")
    end = datetime.now() + timedelta(seconds=trials * estimate.seconds)
    progress.say(f"started now, it would end on {end:%A, %d %B %Y, at %H:%M} (writing of checkpoints not counted)")


def now(device: torch.device) -> float:
    """A clock in seconds that waits for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step_seconds(
    batches: Iterable[Any],
    train: Callable[[list[Any]], object],
    steps: int,
    workers: int,
    device: torch.device,
) -> tuple[float, tuple[float, float]]:
    """Seconds of an epoch's steps, and of one step: to read its images, and to train.

    Args:
        batches: 1 + max(TIMED_STEPS, workers) of them, since reading processes begin with a batch each.
        train: trains on a list of batches.
        steps: of the whole epoch.
        workers: processes that read.
    """
    kept: list[Any] = []
    times = [now(device)]
    for batch in batches:
        times.append(now(device))
        kept = [*kept, batch][: 1 + TIMED_STEPS]
    loading = (times[-1] - times[1]) / max(1, len(times) - 2)
    training = 0.0
    for part in (kept[:1], kept[1:] or kept):  # to warm up, and to be timed
        start = now(device)
        train(part)
        training = (now(device) - start) / len(part)
    # Images are read while a GPU computes. The CPU as the device shares its cores with their reading.
    together = device.type == "cuda" and workers > 0
    step = max(loading, training) if together else loading + training
    return times[1] - times[0] + training + (steps - 1) * step, (loading, training)


def embedding_seconds(
    method: Method,
    model: nn.Module,
    records: Mapping[str, Sequence[ImageRecord]],
    counts: Sequence[Mapping[str, int]],
    config: RunSettings,
) -> list[float]:
    """Seconds to embed so many images of each modality, for each of `counts`, from a few batches of `records`."""
    device = device_of(model)
    several = (1 + max(2, config.workers)) * config.embedding_batch * distributed.world()
    marks: list[list[tuple[int, float]]] = []  # a modality each: images done and when

    def bar(what: str, total: int) -> Callable[[int], object]:
        own = [(0, now(device))]
        marks.append(own)
        return lambda images: own.append((own[-1][0] + images, now(device)))

    sample = {m: rows[:several] for m, rows in records.items()}
    embed_records(method.embedding, model, sample, config, method.interpolation, bar)
    by_modality = dict(zip(sample, marks, strict=True))
    return [sum(_extrapolate(by_modality[m], n / distributed.world()) for m, n in c.items()) for c in counts]


def test_seconds(method: Method, test_set: TestSet, embeddings: dict[str, Levels], config: RunSettings) -> float:
    """Seconds to rank all queries and galleries with these embeddings of the test images, drawn ones say."""
    device = next(x.device for levels in embeddings.values() for x in levels.values())
    start = now(device)
    evaluate(method, test_set, embeddings, config, final=False)
    return now(device) - start


def _extrapolate(marks: Sequence[tuple[int, float]], images: float) -> float:
    """Seconds for so many images, from (images done, time) at the start and after each batch: the first batch waits
    for the reading processes, the later ones give the pace."""
    (_, start), (first, began), (done, end) = marks[0], marks[1], marks[-1]
    pace = (end - began) / (done - first) if done > first else (began - start) / first
    return began - start + max(0.0, images - first) * pace


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        peak, card = max((torch.cuda.max_memory_allocated(d), d) for d in range(torch.cuda.device_count()))
        total = torch.cuda.get_device_properties(card).total_memory
        return f"peak of GPU memory: {peak / 2**30:.1f} of {total / 2**30:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    return f"peak of memory: {peak / 2**20:.1f} GiB (without the processes that read images)"
