"""Optimiser and learning rate of AML (method page, section 8); the rate changes every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Adam

__all__ = ["Schedule", "make_optimizer", "take_step"]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, a flat part, then a cosine to the lowest rate. Defaults are those of stage 1.

    base: rate of the flat part. iterations: steps of the run. warmup: steps of the warm-up, from factor·base.
    flat_until: step that the cosine begins at. lowest: rate that it would reach after the last step.
    """

    base: float = 3.5e-4
    iterations: int = 15_000
    warmup: int = 2_000
    flat_until: int = 9_000
    factor: float = 0.01
    lowest: float = 7.7e-7

    def rate(self, iteration: int) -> float:
        """The learning rate of step 0, 1, …

        The cosine starts from the rate of the step before it, which is a little below base where it follows on the
        warm-up at once (stage 2: 0.999505·base), as in the published runs.
        """
        if iteration < self.warmup:
            done = iteration / self.warmup
            return self.base * (self.factor * (1 - done) + done)
        if iteration < self.flat_until:
            return self.base
        start = max(self.flat_until, self.warmup)
        top = self.rate(start - 1) if start else self.base
        done = (iteration - start) / max(1, self.iterations - start)
        return self.lowest + (top - self.lowest) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def make_optimizer(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float = 5e-4) -> Adam:
    """Adam over the parameters of both networks, weight decay added to the gradient (not decoupled) of every trained
    one, the pooling exponent and the neck's weight included. Parameters without a gradient are not decayed."""
    from torch.optim import Adam  # here: settings, and so --help, need no torch

    return Adam([p for p in parameters if p.requires_grad], lr=learning_rate, weight_decay=weight_decay)


def take_step(optimizer: Adam, loss: Tensor, rate: float) -> None:
    """Gradients of a loss, and one step at this rate for everything that the optimiser holds."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
