"""A dry run of SDCL: its phases once at full size, with drawn embeddings and pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from sdcl.config import Config, EpochSettings
from sdcl.data.training_set import TrainingSet
from sdcl.frame.dry_run import TIMED_STEPS, Estimate, Phase, embedding_seconds, now, step_seconds, test_seconds
from sdcl.frame.retrieval import TestSet
from sdcl.models import Embeddings
from sdcl.training.checks import diagnose_epoch
from sdcl.training.labels import PseudoLabels, make_labels
from sdcl.training.losses import Memories, build_memories
from sdcl.training.method import METHOD
from sdcl.training.replicas import ReplicaForward
from sdcl.training.step import Batches, train_epoch

__all__ = ["Rehearsal", "draw_embeddings"]

HIDDEN = 48
"""Dimensions in which drawn people differ."""


class Rehearsal:
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
        """What a trial's schedule takes."""
        epochs = [self.config.at(epoch) for epoch in range(self.config.first_epoch, self.config.epochs)]
        by_stage = {stage: [s for s in epochs if s.stage == stage] for stage in sorted({s.stage for s in epochs})}
        self._label(epochs[0])  # compiles the clustering, where that was never done
        labels, trains = [], []
        steps: dict[str, tuple[float, float]] = {}
        for stage, own in by_stage.items():
            settings = _with_all_terms(own)
            start = now(self.device)
            self._label(settings)
            labels.append(Phase(f"label, stage {stage}", now(self.device) - start, len(own)))
            seconds, steps[f"stage {stage}"] = self._train(settings)
            trains.append(Phase(f"train, stage {stage}", seconds, len(own)))
        both = (self.data.records, self.test_set.images)
        counts = [{m: len(rows) for m, rows in records.items()} for records in both]
        embed, test = embedding_seconds(METHOD, self.forward.model, self.data.records, counts, self.config)
        who = [torch.arange(n) % 2 for n in counts[1].values()]
        drawn = draw_embeddings(who, self.forward.model.dim, self.generator, self.device)
        test_embeddings = {m: x._asdict() for m, x in zip(counts[1], drawn, strict=True)}
        test += test_seconds(METHOD, self.test_set, test_embeddings, self.config)
        # Selected, last and initial weights are tested at the end, and where there are two stages the first one's.
        final = Phase("final test", test, 2 + len(by_stage) + (self.config.stage1 is not None))
        phases = [Phase("embed", embed, len(epochs)), *labels, *trains, Phase("test", test, len(epochs)), final]
        return Estimate(phases, steps)

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
        records, config = self.data.records, self.config
        read = replace(settings, steps=1 + max(TIMED_STEPS, config.workers))
        batches = Batches(records["visible"], records["infrared"], labels, read, config, self.trial)

        def train(part: list[Any]) -> None:
            few = replace(settings, steps=len(part))
            train_epoch(self.forward, self.optimizer, part, labels, memories, few, config)  # type: ignore[arg-type]

        return step_seconds(batches, train, settings.steps, config.workers, self.device)


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
