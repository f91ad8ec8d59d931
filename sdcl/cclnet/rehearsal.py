"""A dry run of CCLNet: its phases once at full size, with drawn features, pseudo-labels and text vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.cclnet.handover import Handover
from sdcl.cclnet.labels import PseudoLabels, build_memories, cluster_modality
from sdcl.cclnet.method import METHOD
from sdcl.cclnet.model import CCLNetModel
from sdcl.cclnet.optimizers import contrast_optimizer, prompt_optimizer
from sdcl.cclnet.settings import Config
from sdcl.cclnet.steps import Batch, EpochBatches, learn_epoch, prompt_steps, train_epoch
from sdcl.data.records import MODALITIES
from sdcl.data.training_set import TrainingSet
from sdcl.frame.dry_run import TIMED_STEPS, Estimate, Phase, embedding_seconds, now, step_seconds, test_seconds
from sdcl.frame.embedding import device_of
from sdcl.frame.meters import Meters
from sdcl.frame.retrieval import TestSet

__all__ = ["Rehearsal"]

IMAGES = 20
"""Of a drawn cluster."""
HIDDEN = 48
"""Dimensions in which drawn people differ, far fewer than a feature has."""


class Rehearsal:
    """The phases of a run, each for a little while, with a clock beside it."""

    def __init__(self, config: Config, trial: int, data: TrainingSet, test_set: TestSet, model: CCLNetModel) -> None:
        self.config, self.data, self.test_set, self.model = config, data, test_set, model
        self.device = device_of(model.image)
        self.generator = torch.Generator().manual_seed(config.seed)
        sizes = {m: len(data.records[m]) for m in MODALITIES}
        clusters = max(config.identities, min(sizes.values()) // IMAGES)
        self.labels = {m: torch.randperm(n, generator=self.generator) % clusters for m, n in sizes.items()}
        width = config.model.projection
        texts = {m: torch.randn(clusters, width, generator=self.generator) / width**0.5 for m in MODALITIES}
        self.handover = Handover(self.labels, {}, texts)
        self.steps: dict[str, tuple[float, float]] = {}

    def estimate(self) -> Estimate:
        """What a trial's schedule takes."""
        config = self.config
        both = (self.data.records, self.test_set.images)
        counts = [{m: len(rows) for m, rows in records.items()} for records in both]
        embed, test = embedding_seconds(METHOD, self.model.image, self.data.records, counts, config)
        drawn = {m: {"features": self._draw(torch.arange(n) % 2)} for m, n in counts[1].items()}
        test += test_seconds(METHOD, self.test_set, drawn, config)

        stages = [s for s in config.stage if s != 1]
        contrast = len(stages) * config.contrast_epochs
        phases = [Phase("embed", embed, contrast + (1 in config.stage))]
        if stages:
            phases.append(Phase("label", self._label(), contrast))
        for stage in config.stage:
            if stage == 1:
                phases.append(Phase("learn sentences, stage 1", self._learn(), config.prompt_epochs))
            else:
                phases.append(Phase(f"train, stage {stage}", self._train(stage), config.contrast_epochs))
        epochs = [config.at(epoch) for stage in config.stage for epoch in config.epochs_of(stage)]
        # Selected, last and initial weights are tested at the end, and stage 0's where others follow.
        final = 3 + (config.stage[0] == 0 and len(config.stage) > 1)
        phases += [Phase("test", test, sum(e.test for e in epochs)), Phase("final test", test, final)]
        return Estimate(phases, self.steps)

    def _label(self) -> float:
        """Clusters drawn features, as many as there are images."""
        features = {m: self._draw(y) for m, y in self.labels.items()}
        seconds = 0.0
        for again in range(2):  # the first time compiles the clustering, where that was never done
            start = now(self.device)
            for x in features.values():
                cluster_modality(x, self.config.eps, self.config.min_samples, self.config.k1, self.config.k2)
            seconds = now(self.device) - start
            if again == 0 and seconds > 60:
                break
        return seconds

    def _train(self, stage: int) -> float:
        """Seconds of an epoch's steps; the drawn labels stand in for what clustering would find."""
        config, network = self.config, self.model.image
        settings = config.at(config.epochs_of(stage)[-1])  # with mixing, where the stage comes to it
        centers = {m: self._draw(torch.arange(int(y.max()) + 1)) for m, y in self.labels.items()}
        found = PseudoLabels(self.labels, centers)
        memories, optimizer = build_memories(found, settings, config), contrast_optimizer(network, config)
        steps = EpochBatches(self.data.records, self.labels, config, config.seed).steps
        few = 1 + max(TIMED_STEPS, config.workers)
        batches = EpochBatches(self.data.records, self.labels, config, config.seed, few)
        texts = self.handover if stage == 2 else None

        def train(part: list[Batch]) -> None:
            meters = Meters(0, len(part))
            train_epoch(network, optimizer, part, self.labels, memories, texts, settings, config, meters)

        seconds, self.steps[f"stage {stage}"] = step_seconds(batches, train, steps, config.workers, self.device)
        return seconds

    def _learn(self) -> float:
        """Seconds of an epoch of stage 1, from one of a few batches."""
        config, language = self.config, self.model.language
        language.restart(*(int(y.max()) + 1 for y in self.labels.values()))
        language.to(self.device)
        optimizer = prompt_optimizer(language, config)
        few = (1 + TIMED_STEPS) * config.prompt_batch
        labels = {m: y[:few].to(self.device) for m, y in self.labels.items()}
        projections = {
            m: torch.randn(len(y), config.model.projection, generator=self.generator).to(self.device)
            for m, y in labels.items()
        }
        steps = prompt_steps(labels, config)
        start = now(self.device)
        learn_epoch(language, optimizer, projections, labels, 1e-4, config, 0, Meters(0, steps))
        seconds = (now(self.device) - start) / steps
        self.steps["stage 1"] = (0.0, seconds)
        return seconds * prompt_steps(self.labels, config)

    def _draw(self, who: Tensor) -> Tensor:
        """Features [N, d] of unit length; rows of one number in `who` lie around one point."""
        people, dim = int(who.max()) + 1, self.config.model.dim
        centers = torch.randn(people, HIDDEN, generator=self.generator)
        spread = torch.randn(HIDDEN, dim, generator=self.generator)
        inside = centers[who] + 0.7 * torch.randn(len(who), HIDDEN, generator=self.generator)
        features = inside @ spread + torch.randn(len(who), dim, generator=self.generator)
        return F.normalize(features, dim=1).to(self.device)
