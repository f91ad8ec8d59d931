"""A dry run of PIC: a few of its steps and of its test at full size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.optim import Adam

from sdcl.data.training_set import TrainingSet
from sdcl.frame.dry_run import TIMED_STEPS, Estimate, Phase, embedding_seconds, step_seconds, test_seconds
from sdcl.frame.embedding import device_of
from sdcl.frame.retrieval import TestSet
from sdcl.pic.batches import EpochBatches, identity_batches
from sdcl.pic.method import METHOD
from sdcl.pic.network import PICNetwork
from sdcl.pic.settings import PICConfig
from sdcl.pic.step import train_epoch
from sdcl.pic.testing import first_gallery

__all__ = ["rehearse"]


def rehearse(
    config: PICConfig, trial: int, data: TrainingSet, test_set: TestSet, network: PICNetwork, optimizer: Adam
) -> Estimate:
    """What a trial's schedule takes; network and optimiser are trained a little and must not be used afterwards."""
    device, draws = device_of(network), identity_batches(data.records, config)
    _, (visible, infrared) = next(draws.epochs(0, 1))
    few = np.arange(1 + max(TIMED_STEPS, config.workers)) % draws.steps
    batches = EpochBatches(data.records, draws.known, (visible[few], infrared[few]), config, trial, epoch=0)

    def train(part: list[Any]) -> None:
        train_epoch(network, optimizer, part, config, epoch=0, steps=len(part))

    training, step = step_seconds(batches, train, draws.steps, config.workers, device)
    small = first_gallery(test_set)
    counts = [{m: len(records) for m, records in test.images.items()} for test in (small, test_set)]
    seconds = embedding_seconds(METHOD, network, data.records, counts, config)
    for at, (test, own) in enumerate(zip((small, test_set), counts, strict=True)):
        drawn = {m: {kind: torch.randn(n, config.model.dim, device=device) for kind in ("normalised", "pooled")}
                 for m, n in own.items()}  # fmt: skip
        seconds[at] += test_seconds(METHOD, test, drawn, config)
    tests = sum(config.test_follows(epoch) for epoch in range(config.epochs))
    # Selected, last and initial weights are tested at the end.
    phases = [Phase("train", training, config.epochs), Phase("test", seconds[0], tests),
              Phase("final test", seconds[1], 3)]  # fmt: skip
    return Estimate(phases, {"": step})
