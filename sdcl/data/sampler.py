"""Training batches of a few pseudo-identities with many images each (method page, section 7, "Batches")."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from sdcl.errors import UserError


def batch_problem(labels: npt.ArrayLike, identities: int, instances: int) -> str | None:
    """Why one pass over the pseudo-identities (integers [N], −1 = none) cannot fill a batch, or None when it can."""
    labels = np.asarray(labels)
    sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
    several, single = int((sizes > 1).sum()), int((sizes == 1).sum())
    given = several * instances + single
    if given >= identities * instances:
        return None
    return (
        f"a batch needs {identities * instances} rows, but one pass over the pseudo-identities gives {given}: "
        f"{len(sizes)} pseudo-identities ({several} of at least two images, {single} of one) hold {int(sizes.sum())} "
        f"of {len(labels)} images, {instances} instances each; use smaller batches, or a clustering that finds more "
        "(a smaller eps where few large clusters swallow everything, a larger one where most rows are outliers)"
    )


class PseudoIdentityBatches(Sampler[list[int]]):
    """`steps` batches of `identities` × `instances` rows of one modality's training images.

    The rows form a stream, cut into batches. In one pass the pseudo-identities come in random order. Each gives one
    random row and `instances` − 1 rows from *other* cameras than that row's, or, where no other camera saw it, from its
    other rows: without replacement when the pool holds at least `instances` rows, else with. An identity of a
    single row gives that row alone. The incomplete last batch of a pass is dropped and a new pass begins.

    Args:
        labels: integers [N], the pseudo-label of every row, −1 = not to be trained on.
        cameras: integers [N].
        identities, instances: rows of a batch = identities × instances.
        steps: number of batches of one iteration, that is, of an epoch.
        seed: fixes the batches; iterating twice gives the same ones.

    Raises:
        ValueError: labels and cameras differ in length, or a size is not positive.
        UserError: one pass over the identities does not fill a single batch.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        cameras: npt.ArrayLike,
        identities: int,
        instances: int,
        steps: int,
        seed: int,
    ) -> None:
        labels, self.cameras = np.asarray(labels), np.asarray(cameras)
        if labels.ndim != 1 or labels.shape != self.cameras.shape:
            raise ValueError(f"labels {labels.shape} and cameras {self.cameras.shape} must be vectors of one length")
        if min(identities, instances) < 1 or steps < 0:
            raise ValueError(f"impossible batches: {identities} identities x {instances} instances, {steps} steps")
        self.instances, self.steps, self.seed = instances, steps, seed
        self.batch_size = identities * instances

        problem = batch_problem(labels, identities, instances)
        if problem:
            raise UserError(problem)
        order = np.argsort(labels, kind="stable")
        order = order[np.searchsorted(labels[order], 0) :]  # without the outliers
        starts = np.unique(labels[order], return_index=True)[1]
        self.rows = np.split(order, starts[1:]) if len(order) else []  # per identity, ascending

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(self.seed)
        given = 0
        while given < self.steps:
            batch: list[int] = []
            for identity in rng.permutation(len(self.rows)):
                batch += self._draw(self.rows[identity], rng)
                while len(batch) >= self.batch_size and given < self.steps:
                    yield batch[: self.batch_size]
                    batch = batch[self.batch_size :]
                    given += 1

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> list[int]:
        """One identity's rows of a pass: `instances` of them, or its only one."""
        first = rng.integers(len(rows))
        anchor = int(rows[first])
        if len(rows) == 1:
            return [anchor]
        pool = rows[self.cameras[rows] != self.cameras[anchor]]
        if len(pool) == 0:
            pool = np.delete(rows, first)
        others = rng.choice(pool, self.instances - 1, replace=len(pool) < self.instances)
        return [anchor, *others.tolist()]
