"""Training batches of a few pseudo-identities with many images each (method page, section 7, "Batches")."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from sdcl.errors import UserError


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

        order = np.argsort(labels, kind="stable")
        order = order[np.searchsorted(labels[order], 0) :]  # without the outliers
        starts = np.unique(labels[order], return_index=True)[1]
        self.rows = np.split(order, starts[1:]) if len(order) else []  # per identity, ascending
        self._check_pass(len(labels))

    def _check_pass(self, total: int) -> None:
        sizes = np.array([len(rows) for rows in self.rows])
        several, single = int((sizes > 1).sum()), int((sizes == 1).sum())
        given = several * self.instances + single
        if given < self.batch_size:
            raise UserError(
                f"a batch needs {self.batch_size} rows, but one pass over the pseudo-identities gives {given}: "
                f"{len(sizes)} pseudo-identities ({several} of at least two images, {single} of one) hold "
                f"{int(sizes.sum())} of {total} images, {self.instances} instances each; use smaller batches, or a "
                "clustering that finds more (a smaller eps where few large clusters swallow everything, a larger one "
                "where most rows are outliers)"
            )

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
