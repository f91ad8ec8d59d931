"""A dry run of AML: its phases once at full size, with drawn features of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdcl.aml.batches import source_batches, target_batches
from sdcl.aml.images import Images
from sdcl.aml.labels import centers
from sdcl.aml.method import METHOD
from sdcl.aml.network import Pair
from sdcl.aml.schedule import make_optimizer, take_step
from sdcl.aml.settings import Config, PhaseSettings
from sdcl.aml.source import source_losses
from sdcl.aml.start import build_pair, make_classifiers
from sdcl.aml.target import label_target, target_losses
from sdcl.aml.views import draw_channels
from sdcl.data.records import MODALITIES
from sdcl.frame.dry_run import TIMED_STEPS, Estimate, embedding_seconds, now, step_seconds, test_seconds
from sdcl.frame.dry_run import Phase as Part
from sdcl.frame.retrieval import TestSet
from sdcl.memory import ClusterLogits

__all__ = ["rehearse"]

SPREAD = 0.3
"""Deviation of a drawn person's features around their centre."""


def rehearse(config: Config, trial: int, images: Images, test_set: TestSet, device: torch.device) -> Estimate:
    """What a trial's schedule takes; random weights and drawn features do for the clock."""
    pair = build_pair(config, trial).to(device)
    read = 1 + max(TIMED_STEPS, config.workers)
    parts: list[Part] = []
    steps: dict[str, tuple[float, float]] = {}
    records = images.target.records
    counts = [{m: len(rows) for m, rows in part.items()} for part in (records, test_set.images)]
    embed, test = embedding_seconds(METHOD, pair.first, records, counts, config)
    features = _drawn(counts[0], 2 * pair.first.dim, _people(config, counts[0]), device)
    for phase in config.phases:
        settings = config.at(phase)
        if settings.stage == 1:
            seconds, steps[phase] = _source(pair, images, settings, config, trial, read, device)
        else:
            start = now(device)
            label_target(features, settings, seed=0)
            label = now(device) - start
            seconds, steps[phase] = _target(pair, images, features, settings, config, read, device)
            times = -(-settings.iterations // settings.steps_of(sum(counts[0].values())))
            # Network 1 and network 2 see every image and its mirror image.
            parts += [Part(f"embed, {phase}", 2 * embed, times), Part(f"label, {phase}", label, times)]
        parts.append(Part(f"train, {phase}", seconds, 1))
    tests = _drawn(counts[1], pair.first.dim, 2, device)
    test += test_seconds(METHOD, test_set, {m: {"p1": x} for m, x in tests.items()}, config)
    tested = sum(part.test for part in config.parts)
    # The last weights, those of each phase before and the initial ones are tested at the end.
    parts += [Part("test", test, tested), Part("final test", test, 2 + len(config.phases))]
    return Estimate(parts, steps)


def _source(
    pair: Pair, images: Images, settings: PhaseSettings, config: Config, trial: int, read: int, device: torch.device
) -> tuple[float, tuple[float, float]]:
    """Seconds of a source phase's steps, and of one step: to read its images, and to train."""
    assert images.source is not None  # a run with a source phase has one
    classifiers = make_classifiers(pair, images.source.classes, [], config, trial)
    optimizer = make_optimizer([*pair.parameters(), *classifiers.parameters()], settings.learning_rate)
    labels = torch.tensor([record.identity for record in images.source.records])

    def train(batches: list[Any]) -> None:
        pair.train()
        for pixels, rows in batches:
            losses = source_losses(
                pair, classifiers, pixels.to(device), draw_channels(len(rows)), labels[rows].to(device), settings,
                config.precision,
            )  # fmt: skip
            take_step(optimizer, losses.total, settings.learning_rate)

    batches = source_batches(images.source, settings, config, 0, read, seed=0)
    return step_seconds(batches, train, settings.iterations, config.workers, device)


def _target(
    pair: Pair, images: Images, features: Mapping[str, Tensor], settings: PhaseSettings, config: Config, read: int,
    device: torch.device,
) -> tuple[float, tuple[float, float]]:  # fmt: skip
    """The same of a target phase, on labels of as many people as a batch needs."""
    people = _people(config, {m: len(x) for m, x in features.items()})
    labels = torch.cat([torch.arange(len(features[m])) % people for m in MODALITIES])
    both = centers(torch.cat([features[m] for m in MODALITIES]), labels.to(device))
    memories = [ClusterLogits(half, settings.memory_momentum, settings.memory_temperature).to(device) for half in both]
    optimizer = make_optimizer(pair.parameters(), settings.learning_rate)

    def train(batches: list[Any]) -> None:
        pair.train()
        for pixels, rows in batches:
            losses = target_losses(
                pair, memories, pixels.to(device), draw_channels(len(rows)), labels[rows], settings, config.precision
            )
            take_step(optimizer, losses.total, settings.learning_rate)

    batches = target_batches(images.target.records, labels.numpy(), settings, config, 0, read, seed=0)
    return step_seconds(batches, train, settings.iterations, config.workers, device)


def _people(config: Config, counts: Mapping[str, int]) -> int:
    """Of about twenty images in the smaller modality, and as many as a batch needs."""
    return max(min(counts.values()) // 20, config.target_batch // config.instances, 2)


def _drawn(counts: Mapping[str, int], dim: int, people: int, device: torch.device) -> dict[str, Tensor]:
    """Features of so many images of each modality, which show people in turn, of absolute sum 1 as test features."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(people, dim, generator=generator)
    rows = {}
    for modality, count in counts.items():
        x = centre[torch.arange(count) % people] + SPREAD * torch.randn(count, dim, generator=generator)
        rows[modality] = (x / x.abs().sum(1, keepdim=True)).to(device)
    return rows
