"""Training batches of true identities, paired across the modalities (docs/pic.md, "Batches")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sdcl.errors import UserError

__all__ = ["IdentityBatches", "check_identities", "epoch_steps"]


class IdentityBatches:
    """The batches of all epochs of a run.

    A step takes `identities` different identities and of each `instances` rows of either modality, uniformly *with*
    replacement. Places match: row r of the visible and of the infrared part are of the same identity. One generator
    serves all epochs, so that an epoch's batches follow from the seed and its number, and steps and draws are the
    published ones where the rows are in the published order.

    Args:
        visible, infrared: integers [N], [M]: identities of the training images.
        identities, instances: rows of a batch and modality = identities × instances.
        seed: fixes the batches, 0 … 2³² − 1.

    Raises:
        UserError: see `check_identities`.
    """

    def __init__(
        self, visible: npt.ArrayLike, infrared: npt.ArrayLike, identities: int, instances: int, seed: int
    ) -> None:
        labels = [np.asarray(visible), np.asarray(infrared)]
        check_identities(labels[0], labels[1], identities)
        self.identities, self.instances, self.seed = identities, instances, seed
        self.known = np.unique(labels[0])
        """Identities in their order: number c of the classifier's outputs is known[c]."""
        self.rows = [{i: np.flatnonzero(y == i) for i in self.known} for y in labels]
        self.steps = epoch_steps(list(map(len, labels)), identities * instances)
        """Steps of an epoch."""

    def epochs(self, first: int, last: int) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Epochs first … last − 1, each with its visible and infrared rows, int64 [steps, identities · instances].

        All epochs come from one generator, so those before the first one are drawn as well.
        """
        draw = np.random.RandomState(self.seed)
        for epoch in range(last if first < last else 0):
            rows = np.empty((2, self.steps, self.identities, self.instances), dtype=np.int64)
            for step in range(self.steps):
                for place, identity in enumerate(draw.choice(self.known, self.identities, replace=False)):
                    for modality in (0, 1):
                        rows[modality, step, place] = draw.choice(self.rows[modality][identity], self.instances)
            if epoch >= first:
                visible, infrared = rows.reshape(2, self.steps, -1)
                yield epoch, (visible, infrared)


def epoch_steps(images: Sequence[int], batch_size: int) -> int:
    """Steps of an epoch, by the number of training images of each modality: one more than the larger one's whole
    batches, also where it divides without remainder."""
    return max(images) // batch_size + 1


def check_identities(visible: npt.ArrayLike, infrared: npt.ArrayLike, identities: int) -> None:
    """Raises UserError when these identities (integers [N], [M]) cannot fill a batch of so many of them, when some have
    images in one modality only, or when each has a single image in a modality."""
    known = [np.unique(labels) for labels in (visible, infrared)]
    for here, there, own, other in ((0, 1, "visible", "infrared"), (1, 0, "infrared", "visible")):
        alone = np.setdiff1d(known[here], known[there])
        if len(alone):
            raise UserError(
                f"{len(alone)} of {len(known[here])} training identities have {own} images but no {other} ones "
                f"({', '.join(map(str, alone[:5]))}{', …' if len(alone) > 5 else ''}): PIC pairs the modalities by "
                "identity; add their images, or leave these identities out"
            )
    for modality, labels in (("visible", visible), ("infrared", infrared)):
        if len(np.asarray(labels)) == len(known[0]):
            raise UserError(
                f"each of the {len(known[0])} training identities has a single {modality} image: PIC compares a "
                "person's images within a modality; add images, or correct the identities in the file names"
            )
    if len(known[0]) < identities:
        raise UserError(
            f"a batch is of --identities {identities}, but there are {len(known[0])} training identities: lower it, or "
            "complete the data"
        )
