"""Which rows a step sees: batches of clusters (stages 0 and 2) and of prompt learning (CCLNet page, 6 and 8)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from sdcl.errors import UserError

__all__ = ["ClusterBatches", "prompt_batches", "steps_of_epoch"]


class ClusterBatches(Sampler[list[int]]):
    """`steps` batches of one modality, each drawn anew: some clusters, and rows of each *with replacement*.

    Cameras play no part and there are no passes over the clusters, as in the published run (section 11, point 6).

    Args:
        labels: integers [N], the cluster of every row, -1 = not to be trained on.
        clusters: of a batch, drawn without replacement. instances: rows of each, side by side in the batch.
        steps: number of batches of one iteration, that is, of an epoch.
        seed: fixes the batches; iterating twice gives the same ones.

    Raises:
        UserError: there are fewer clusters than a batch needs.
    """

    def __init__(self, labels: npt.ArrayLike, clusters: int, instances: int, steps: int, seed: int) -> None:
        labels = np.asarray(labels)
        found = np.unique(labels[labels >= 0])
        if len(found) < clusters:
            raise UserError(
                f"a batch needs {clusters} clusters, but clustering found {len(found)} in {len(labels)} images; use a "
                "smaller --identities, or a clustering that finds more (a smaller eps where few large clusters "
                "swallow everything, a larger one where most images are outliers)"
            )
        self.rows = [np.flatnonzero(labels == label) for label in found]
        self.clusters, self.instances, self.steps, self.seed = clusters, instances, steps, seed
        self.batch_size = clusters * instances

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            drawn = rng.choice(len(self.rows), self.clusters, replace=False)
            yield np.concatenate([rng.choice(self.rows[k], self.instances) for k in drawn]).tolist()


def steps_of_epoch(visible: npt.ArrayLike, infrared: npt.ArrayLike, batch_size: int) -> int:
    """floor(N/batch_size) + 1, where N is the larger number of labelled rows (labels [N] and [M], -1 = none)."""
    labelled = max(int((np.asarray(y) >= 0).sum()) for y in (visible, infrared))
    return labelled // batch_size + 1


def prompt_batches(visible: int, infrared: int, batch: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """One epoch of prompt learning: (visible rows, infrared rows) of each step, int64.

    Both modalities' rows in random order; the fewer ones are followed by rows drawn with replacement until both lists
    are equally long. They are cut side by side; the last batch has what remains, and there is none when nothing does.

    Args:
        visible, infrared: numbers of labelled rows. batch: rows of each modality in a step.

    Raises:
        UserError: a modality has no labelled row.
    """
    for name, count in (("visible", visible), ("infrared", infrared)):
        if count < 1:
            raise UserError(f"no {name} image has a stored label, so there is no sentence to learn; repeat stage 0")
    rng, n = np.random.default_rng(seed), max(visible, infrared)
    rows = [np.concatenate([rng.permutation(k), rng.integers(k, size=n - k)]) for k in (visible, infrared)]
    return [(rows[0][i : i + batch], rows[1][i : i + batch]) for i in range(0, n, batch)]
