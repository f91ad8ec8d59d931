"""Stops a run that cannot go well, with the reason and the numbers to decide by, before hours are spent."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sdcl import distributed
from sdcl.clustering import jaccard_distance
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import batch_problem
from sdcl.errors import UserError
from sdcl.settings import RunSettings

__all__ = [
    "check_clusters",
    "check_enough_images",
    "check_finite",
    "distance_histogram",
    "out_of_memory_explained",
    "usable_labels",
]

T = TypeVar("T")


def check_clusters(
    modality: str, labels: np.ndarray, training: np.ndarray, identities: int, instances: int
) -> str | None:
    """What is wrong with a modality's clusters, or None when batches can be drawn from them.

    Args:
        labels: [N] clusters of all rows, -1 = outlier.
        training: [N] the labels that batches draw from, -1 = row is left out.
        identities, instances: pseudo-identities of a batch, and images of each.
    """
    found, outliers = int(labels.max(initial=-1)) + 1, int((labels < 0).sum())
    if found < 2:
        return (
            f"clustering found {found or 'no'} cluster{'' if found == 1 else 's'} in {len(labels)} {modality} "
            f"images, {outliers} outliers. "
            + ("A larger --eps finds more" if found == 0 else "A smaller --eps splits it")
            + "; with weights that are no good start (random ones, or of another domain) no setting helps"
        )
    problem = batch_problem(training, identities, instances)
    return problem and f"the {modality} images: {problem}"


def distance_histogram(features: Tensor, k1: int, k2: int, min_samples: int, knn: str = "exact") -> str:
    """How far the neighbour is that decides whether a row becomes a core row of a cluster: a histogram of all rows in
    ten bins. A good eps lies above the bulk of the rows that have such a neighbour.

    Args:
        features: [N, d], what was clustered.
        k1, k2, min_samples, knn: as it was clustered with.
    """
    distance = jaccard_distance(features, k1, k2, knn=knn)
    rank = min_samples - 1  # the row itself is counted
    reach = np.ones(distance.shape[0])
    for row, (start, end) in enumerate(zip(distance.indptr[:-1], distance.indptr[1:], strict=True)):
        if end - start > rank:
            reach[row] = np.partition(distance.data[start:end], rank)[rank]
    counts = np.histogram(reach, bins=10, range=(0, 1))[0]
    bins = ", ".join(f"{low / 10:.1f}-{low / 10 + 0.1:.1f}: {n}" for low, n in enumerate(counts) if n)
    return f"Rows by the distance within which they have {min_samples} neighbours: {bins}"


def usable_labels(labels: T, problem: str | None, last_good: T | None, on_degenerate: str) -> T:
    """The labels to train with: these, or, where they are degenerate and `on_degenerate` is "keep-labels", the last
    good ones.

    Args:
        problem: what is wrong with `labels`, None where nothing is.
        last_good: those of an epoch before, None where there are none that could stand in.

    Raises:
        UserError: with `problem`, when there is one and nothing to train on instead.
    """
    if problem is None:
        return labels
    if last_good is None:
        raise UserError(f"{problem}. There are no labels of an epoch before that could stand in for these")
    if on_degenerate == "stop":
        raise UserError(
            f"{problem}. To train on with the labels of the epoch before instead: --resume auto --on-degenerate "
            "keep-labels"
        )
    if distributed.is_main():
        print(f"warning: {problem}. Training goes on with the last good labels", file=sys.stderr, flush=True)
    return last_good


def check_finite(means: dict[str, float], epoch: int, step: int) -> None:
    """Raises UserError when a mean is not finite (a NaN stays in a sum, so looking now and then is enough)."""
    bad = [name for name, value in means.items() if not abs(value) < float("inf")]
    if bad:
        terms = [name for name in bad if name != "loss"] or bad
        before = (
            "The checkpoint of the epoch before is whole: go on from it with --resume changed and"
            if epoch > 0
            else "It is the first epoch, so start afresh in an empty --run-dir with"
        )
        raise UserError(
            f"the loss is not finite in epoch {epoch} within the steps up to {step} (terms that are not: "
            f"{', '.join(terms)}). {before} a lower --learning-rate, or --precision fp32 where that was another"
        )


@contextmanager
def out_of_memory_explained(config: RunSettings, less_memory: Sequence[str] = ()) -> Iterator[None]:
    """Turns the GPU's out-of-memory error, and the death of a process that reads images, into an error that says
    which setting to change, and to what.

    less_memory: the method's own settings that need less memory in training, the first to try first; the last one as
        the last resort of all (a smaller batch, say, whose result is another).
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        options = [
            f"--embedding-batch {max(1, config.embedding_batch // 2)} (if it happened while embedding; results stay "
            "the same)",
            *less_memory[:-1],
            *["--precision bf16 (about half the memory; other rounding)"] * (config.precision != "bf16"),
            *less_memory[-1:],
        ]
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
