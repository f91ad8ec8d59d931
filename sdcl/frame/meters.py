"""The mean loss of an epoch and of its terms, without a wait for the device at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from sdcl.frame.guards import check_finite

__all__ = ["METERS_EVERY", "Meters"]

METERS_EVERY = 10
"""Steps between two looks at the losses: each one waits for the device."""


class Meters:
    """Adds up an epoch's losses on their device, and looks at the sums every few steps.

    Args:
        epoch: its number, for messages.
        steps: how many there will be.
        progress: called at each look with the number of steps done and the means so far.
    """

    def __init__(
        self, epoch: int, steps: int, progress: Callable[[int, dict[str, float]], object] | None = None
    ) -> None:
        self.epoch, self.steps, self.progress = epoch, steps, progress
        self.done = 0
        self.means: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Counts a step: its loss and the loss's named terms, scalars; a term may be absent from some steps, and its
        mean is over all of them.

        Raises:
            UserError: at a look, a mean is not finite; the message names the terms.
        """
        self.done += 1
        for name, value in {"loss": loss, **terms}.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        if self.done % METERS_EVERY == 0 or self.done == self.steps:
            self.means = {name: float(total) / self.done for name, total in self._sums.items()}
            check_finite(self.means, self.epoch, self.done)
            if self.progress is not None:
                self.progress(self.done, self.means)
