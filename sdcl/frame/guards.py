"""Stops a run that cannot go well, with the reason and the numbers to decide by, before hours are spent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sdcl.clustering import jaccard_distance
from sdcl.config import Config, EpochSettings
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import batch_problem
from sdcl.errors import UserError
from sdcl.frame.embedding import clustering_features
from sdcl.models import Embeddings
from sdcl.training.labels import PseudoLabels

__all__ = ["check_enough_images", "check_finite", "check_labels", "out_of_memory_explained"]


def check_labels(
    labels: PseudoLabels, visible: Embeddings, infrared: Embeddings, settings: EpochSettings, config: Config
) -> str | None:
    """What is wrong with an epoch's pseudo-labels, or None when they can be trained on.

    Degenerate are: fewer than two clusters in a modality (nothing to contrast), in stage 2 no visible row with an
    associated label, and too few rows for a batch. The text tells the settings and the distances to choose others by.
    """
    for name, x, clusters, training, k1, k1_option in (
        (
            "visible",
            visible,
            labels.visible_clusters,
            labels.visible_training,
            settings.k1_visible,
            "--k1" if settings.stage == 1 else "--k1-visible-stage2",
        ),
        ("infrared", infrared, labels.infrared, labels.infrared, settings.k1_infrared, "--k1"),
    ):
        found, outliers = int(clusters.max()) + 1, int((clusters < 0).sum())
        problem = batch_problem(training.cpu().numpy(), config.identities, config.instances)
        if found < 2:
            problem = (
                f"clustering found {found or 'no'} cluster{'' if found == 1 else 's'} in {len(clusters)} {name} "
                f"images, {outliers} outliers. "
                + ("A larger --eps finds more" if found == 0 else "A smaller --eps splits it")
                + "; with weights that are no good start (random ones, or of another domain) no setting helps"
            )
        elif name == "visible" and settings.stage == 2 and not bool((training >= 0).any()):
            return (
                f"epoch {settings.epoch}: no visible image got an infrared label: of {len(labels.visible)} visible "
                f"images {int((labels.visible < 0).sum())} were associated with outliers and {outliers} are outliers "
                "themselves. A larger --eps leaves fewer outliers, a smaller --association-k looks at nearer images "
                "only"
            )
        elif problem is not None:
            problem = f"the {name} images: {problem}"
        if problem is not None:
            return (
                f"epoch {settings.epoch}: {problem}. The settings were --eps {config.eps} {k1_option} {k1} "
                f"--min-samples {config.min_samples}. {distances(x, k1, config)}"
            )
    return None


def distances(x: Embeddings, k1: int, config: Config) -> str:
    """How far the neighbour is that decides whether a row becomes a core row of a cluster: a histogram of all rows in
    ten bins. A good eps lies above the bulk of the rows that have such a neighbour."""
    distance = jaccard_distance(clustering_features(x, config.shallow), k1, config.k2, knn=config.knn)
    rank = config.min_samples - 1  # the row itself is counted
    reach = np.ones(distance.shape[0])
    for row, (start, end) in enumerate(zip(distance.indptr[:-1], distance.indptr[1:], strict=True)):
        if end - start > rank:
            reach[row] = np.partition(distance.data[start:end], rank)[rank]
    counts = np.histogram(reach, bins=10, range=(0, 1))[0]
    bins = ", ".join(f"{low / 10:.1f}-{low / 10 + 0.1:.1f}: {n}" for low, n in enumerate(counts) if n)
    return f"Rows by the distance within which they have {config.min_samples} neighbours: {bins}"


def check_finite(means: dict[str, float], epoch: int, step: int) -> None:
    """Raises UserError when a mean is not finite (a NaN stays in a sum, so looking now and then is enough)."""
    bad = [name for name, value in means.items() if not abs(value) < float("inf")]
    if bad:
        raise UserError(
            f"the loss is not finite in epoch {epoch} within the steps up to {step} (terms: {', '.join(bad)}). The "
            "checkpoint of the epoch before is whole: go on from it with --resume changed and a lower "
            "--learning-rate, or with --precision fp32"
        )


@contextmanager
def out_of_memory_explained(config: Config) -> Iterator[None]:
    """Turns the GPU's out-of-memory error, and the death of a process that reads images, into an error that says
    which setting to change, and to what."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        options = [
            f"--embedding-batch {max(1, config.embedding_batch // 2)} (if it happened while embedding; results stay "
            "the same)"
        ]
        if not config.gradient_checkpointing:
            options.append("--gradient-checkpointing (same result, about a third slower)")
        options.append(f"--accumulate {2 * config.accumulate} (same result, about a third slower than without)")
        if config.bn_replicas > 1:
            options.append(f"{config.bn_replicas} GPUs: torchrun --nproc-per-node {config.bn_replicas} train_sdcl.py …")
        if config.precision != "bf16":
            options.append("--precision bf16 (about half the memory; other rounding)")
        options.append(f"in the end --instances {max(2, config.instances // 2)} (half the batch: another result)")
        raise UserError(
            f"the GPU's {total:.0f} GiB are not enough ({str(error).splitlines()[0]}). In this order: "
            f"{'; '.join(options)}. Go on with --resume auto, or --resume changed where the result changes"
        ) from error
    except RuntimeError as error:
        if not re.match(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
            raise
        raise UserError(
            f"a process that reads images died ({str(error).splitlines()[0].strip()}): this machine's memory, or "
            f"/dev/shm, is used up. Lower --workers {config.workers} to {config.workers // 2} (0 needs no further "
            "process; results stay the same) and go on with --resume auto"
        ) from error


def check_enough_images(
    records: dict[str, list[ImageRecord]], identities: int, instances: int, place: Path
) -> None:
    """Raises UserError when no clustering of these training images could fill a batch.

    Args:
        records: by modality.
        identities, instances: pseudo-identities of a batch, and images of each.
        place: the data set's folder, for the message.
    """
    for modality, part in records.items():
        if instances > len(part):
            raise UserError(
                f"--instances {instances} is more than the {len(part)} {modality} training images in "
                f"{place}: lower it, or complete the data"
            )
        if identities > len(part) // 2:
            raise UserError(
                f"--identities {identities} is more than the {len(part) // 2} clusters of two images that "
                f"{len(part)} {modality} training images in {place} can form: lower it, or complete the data"
            )
