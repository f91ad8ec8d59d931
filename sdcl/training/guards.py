"""Stops a run that cannot go well, with the reason and the numbers to decide by, before hours are spent."""

from __future__ import annotations

from contextlib import contextmanager
from collections.abc import Iterator

import numpy as np
import torch

from sdcl.clustering import jaccard_distance
from sdcl.config import Config, EpochSettings
from sdcl.embedding import clustering_features
from sdcl.errors import UserError
from sdcl.models import Embeddings
from sdcl.training.labels import PseudoLabels

__all__ = ["check_finite", "check_labels", "out_of_memory_explained"]


def check_labels(labels: PseudoLabels, visible: Embeddings, infrared: Embeddings, settings: EpochSettings, config: Config) -> str | None:
    """What is wrong with an epoch's pseudo-labels, or None when they can be trained on.

    Degenerate are: fewer than two clusters in a modality (nothing to contrast), and in stage 2 no visible row with an
    associated label. The text tells the distances that eps and k1 should be chosen by.
    """
    for name, y, x, k1 in (("visible", labels.visible_clusters, visible, settings.k1_visible), ("infrared", labels.infrared, infrared, settings.k1_infrared)):
        clusters, outliers = int(y.max()) + 1, int((y < 0).sum())
        if clusters < 2:
            return (f"epoch {settings.epoch}: clustering found {clusters or 'no'} cluster{'' if clusters == 1 else 's'} in {len(y)} {name} images, {outliers} outliers, "
                    f"with --eps {config.eps} --k1 {k1} --min-samples {config.min_samples}. {_distances(x, k1, config)} "
                    + ("A larger --eps finds more" if clusters == 0 else "A smaller --eps splits it")
                    + "; with weights that are no good start (random ones, or of another domain) no setting helps")
    if settings.stage == 2 and not bool((labels.visible_training >= 0).any()):
        return (f"epoch {settings.epoch}: no visible image got an infrared label: of {len(labels.visible)} visible images "
                f"{int((labels.visible < 0).sum())} were associated with outliers and {int((labels.visible_clusters < 0).sum())} are outliers themselves. "
                f"A larger --eps leaves fewer outliers, a smaller --association-k looks at nearer images only")
    return None


def _distances(x: Embeddings, k1: int, config: Config) -> str:
    """How far the neighbour is that decides whether a row becomes a core row: quantiles over all rows."""
    distance = jaccard_distance(clustering_features(x, config.shallow), k1, config.k2)
    rank = config.min_samples - 1                                   # the row itself is counted
    reach = np.ones(distance.shape[0])
    for row, (start, end) in enumerate(zip(distance.indptr[:-1], distance.indptr[1:], strict=True)):
        if end - start > rank:
            reach[row] = np.partition(distance.data[start:end], rank)[rank]
    low, middle, high = np.quantile(reach, (0.1, 0.5, 0.9))
    return f"The distance at which a row reaches {config.min_samples} neighbours: {low:.2f} at the lowest tenth, {middle:.2f} in the middle, {high:.2f} at the highest tenth."


def check_finite(means: dict[str, float], epoch: int, step: int) -> None:
    """Raises UserError when a mean is not finite (a NaN stays in a sum, so looking now and then is enough)."""
    bad = [name for name, value in means.items() if not abs(value) < float("inf")]
    if bad:
        raise UserError(f"the loss is not finite in epoch {epoch} within the steps up to {step} (terms: {', '.join(bad)}). The checkpoint of the "
                        "epoch before is whole: go on from it with --resume auto and a lower --learning-rate, or with --precision fp32")


@contextmanager
def out_of_memory_explained(config: Config) -> Iterator[None]:
    """Turns the GPU's out-of-memory error into one that says which setting to change."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        options = [f"--embedding-batch {max(1, config.embedding_batch // 2)} (if it happened while embedding; results stay the same)"]
        if not config.gradient_checkpointing:
            options.append("--gradient-checkpointing (same result, about a third slower)")
        if config.precision != "bf16":
            options.append("--precision bf16 (about half the memory)")
        options.append(f"two GPUs: torchrun --nproc-per-node {config.bn_replicas} train_sdcl.py …")
        options.append(f"as the last resort --instances {max(2, config.instances // 2)} (half the batch: another result)")
        raise UserError(f"the GPU's {total:.0f} GiB are not enough ({str(error).splitlines()[0]}). In this order: {'; '.join(options)}") from error
