"""What a run will cost, known before it starts: each phase once at full size, and the hours of the whole schedule.

Network, images, batches and test lists are the run's own. Embeddings and pseudo-labels are drawn: the real ones would
take an epoch. Nothing is written.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from sdcl import distributed
from sdcl.config import Config, EpochSettings
from sdcl.data.training_set import TrainingSet
from sdcl.frame.diagnostics import diagnose_epoch
from sdcl.frame.embedding import embed_records
from sdcl.frame.progress import Progress
from sdcl.frame.retrieval import TestSet, evaluate
from sdcl.models import Embeddings
from sdcl.tables import align_columns
from sdcl.training.labels import PseudoLabels, make_labels
from sdcl.training.losses import Memories, build_memories
from sdcl.training.replicas import ReplicaForward
from sdcl.training.step import Batches, train_epoch

__all__ = ["Estimate", "Phase", "draw_embeddings", "dry_run"]

TIMED_STEPS = 3
"""Steps of a stage that are timed, after a first one that warms up."""

HIDDEN = 48
"""Dimensions in which drawn people differ."""


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
        steps: stage → seconds to read and augment a step's images, and to train on them.
    """

    phases: list[Phase]
    steps: dict[int, tuple[float, float]]

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


def dry_run(
    config: Config, sets: Sequence[tuple[int, TrainingSet, TestSet]], forward: ReplicaForward, optimizer: SGD
) -> Estimate:
    """Measures the first trial and prints step times, the peak of memory, the table of phases and when it would end.

    Args:
        sets: number, training and test images of each trial (SYSU-MM01: trial 0 alone).
        forward, optimizer: as a run starts with them; of no use afterwards.
    """
    trial, data, test_set = sets[0]
    progress = Progress(config, trial)
    progress.start(data, test_set, forward.device)
    progress.say(f"dry run: a little of each phase at full size; {config.run_dir} is left alone")
    estimate = _Rehearsal(config, trial, data, test_set, forward, optimizer).estimate()
    progress.say("")
    for stage, (loading, training) in estimate.steps.items():
        progress.say(f"a step of stage {stage}: {training:.2f} s; reading and augmenting its images: {loading:.2f} s")
    progress.say(f"{_peak_memory(forward.device)}\n\n{estimate.table(len(sets))}\n")
    end = datetime.now() + timedelta(seconds=len(sets) * estimate.seconds)
    progress.say(f"started now, it would end on {end:%A, %d %B %Y, at %H:%M} (writing of checkpoints not counted)")
    return estimate


class _Rehearsal:
    """The phases of a run, each for a little while, with a clock beside it."""

    def __init__(
        self, config: Config, trial: int, data: TrainingSet, test_set: TestSet, forward: ReplicaForward, optimizer: SGD
    ) -> None:
        self.config, self.trial, self.data, self.test_set = config, trial, data, test_set
        self.forward, self.optimizer, self.device = forward, optimizer, forward.device
        sizes = [len(data.records[m]) for m in ("visible", "infrared")]
        # People of about a cluster's images each, and as many as a batch needs.
        people = min(max(min(sizes) // config.association_k, config.identities, 2), min(sizes) // 2)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.who = [torch.randperm(n, generator=self.generator) % people for n in sizes]
        self.visible, self.infrared = draw_embeddings(self.who, forward.model.dim, self.generator, self.device)

    def estimate(self) -> Estimate:
        epochs = [self.config.at(epoch) for epoch in range(self.config.epochs)]
        by_stage = {stage: [s for s in epochs if s.stage == stage] for stage in sorted({s.stage for s in epochs})}
        self._label(epochs[0])  # compiles the clustering, where that was never done
        labels, trains = [], []
        steps: dict[int, tuple[float, float]] = {}
        for stage, own in by_stage.items():
            settings = _with_all_terms(own)
            start = self._now()
            self._label(settings)
            labels.append(Phase(f"label, stage {stage}", self._now() - start, len(own)))
            seconds, steps[stage] = self._train(settings)
            trains.append(Phase(f"train, stage {stage}", seconds, len(own)))
        embed, test = self._embed()
        test += self._test()
        # Selected, last and initial weights are tested at the end, and where there are two stages the first one's.
        final = Phase("final test", test, 2 + len(by_stage))
        phases = [Phase("embed", embed, len(epochs)), *labels, *trains, Phase("test", test, len(epochs)), final]
        return Estimate(phases, steps)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _label(self, settings: EpochSettings) -> None:
        """Clusters the drawn embeddings, as many as there are images, and whatever else comes before the steps."""
        labels = make_labels(self.visible, self.infrared, settings, self.config)
        if self.config.truth:
            diagnose_epoch(labels, self.visible, self.infrared, self.data.records, self.config)
        self._memories(settings)

    def _memories(self, settings: EpochSettings) -> tuple[PseudoLabels, Memories]:
        """Of the drawn labels: what the clustering makes of drawn embeddings need not be fit to train on."""
        visible, infrared = (y.to(self.device) for y in self.who)
        labels = PseudoLabels(visible, infrared, visible, settings.stage)
        return labels, build_memories(self.visible, self.infrared, labels, settings, self.config)

    def _train(self, settings: EpochSettings) -> tuple[float, tuple[float, float]]:
        """Seconds of an epoch's steps, and of one step: to read its images, and to train."""
        labels, memories = self._memories(settings)
        count = 1 + max(TIMED_STEPS, self.config.workers)  # reading processes begin with a batch each
        records, read = self.data.records, replace(settings, steps=count)
        kept: list[Any] = []
        times = [self._now()]
        for batch in Batches(records["visible"], records["infrared"], labels, read, self.config, self.trial):
            times.append(self._now())
            kept = [*kept, batch][: 1 + TIMED_STEPS]
        loading = (times[-1] - times[1]) / (count - 1)

        for batches in (kept[:1], kept[1:]):  # to warm up, and to be timed
            start = self._now()
            few = replace(settings, steps=len(batches))
            train_epoch(self.forward, self.optimizer, batches, labels, memories, few, self.config)  # type: ignore[arg-type]
            training = (self._now() - start) / len(batches)
        # Images are read while a GPU computes. The CPU as the device shares its cores with their reading.
        together = self.device.type == "cuda" and self.config.workers > 0
        step = max(loading, training) if together else loading + training
        return times[1] - times[0] + training + (settings.steps - 1) * step, (loading, training)

    def _embed(self) -> tuple[float, float]:
        """Seconds to embed all training images, and all test images, from the first batches of the training images."""
        several = (1 + max(2, self.config.workers)) * self.config.embedding_batch * distributed.world()
        marks: list[list[tuple[int, float]]] = []  # a modality each: images done and when

        def bar(what: str, total: int) -> Callable[[int], object]:
            own = [(0, self._now())]
            marks.append(own)
            return lambda images: own.append((own[-1][0] + images, self._now()))

        sample = {m: rows[:several] for m, rows in self.data.records.items()}
        embed_records(self.forward.model, sample, self.config, "bicubic", bar)
        embed = test = 0.0
        for modality, own in zip(sample, marks, strict=True):
            embed += _extrapolate(own, len(self.data.records[modality]) / distributed.world())
            test += _extrapolate(own, len(self.test_set.images[modality]) / distributed.world())
        return embed, test

    def _test(self) -> float:
        """Seconds to rank all queries and galleries."""
        who = [torch.arange(len(records)) % 2 for records in self.test_set.images.values()]
        drawn = draw_embeddings(who, self.forward.model.dim, self.generator, self.device)
        embeddings = dict(zip(self.test_set.images, drawn, strict=True))
        start = self._now()
        evaluate(self.test_set, embeddings, self.config, final=False)
        return self._now() - start


def draw_embeddings(
    who: Sequence[Tensor], dim: int, generator: torch.Generator, device: torch.device
) -> list[Embeddings]:
    """Embeddings [N, dim] of a modality's images, which show the people `who` [N] int64, for each modality.

    A person's images lie around one point a level. As with real ones, people differ in far fewer dimensions than an
    embedding has.
    """
    people = 1 + max(int(y.max()) for y in who)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    levels = []
    for _ in Embeddings._fields:
        spread, centers = normal(HIDDEN, dim), normal(people, HIDDEN)
        x = [(centers[y] + 0.7 * normal(len(y), HIDDEN)) @ spread + 2 * normal(len(y), dim) for y in who]
        levels.append([part.to(device) for part in x])
    return [Embeddings(*x) for x in zip(*levels, strict=True)]


def _with_all_terms(epochs: Sequence[EpochSettings]) -> EpochSettings:
    """A stage's settings with each loss term that any of its epochs forms."""
    names = ("homogeneous_weight", "visible_to_infrared_weight", "infrared_to_visible_weight")
    return replace(epochs[0], **{name: max(getattr(s, name) for s in epochs) for name in names})


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
