"""A phase of stage 1: both networks learn the source's pseudo-labels and teach each other (method page, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdcl import distributed
from sdcl.aml.batches import source_batches
from sdcl.aml.losses import StepLosses, stage1_losses
from sdcl.aml.network import Classifiers, Pair
from sdcl.aml.schedule import make_optimizer, take_step
from sdcl.aml.settings import Config, Part, PhaseSettings
from sdcl.aml.views import draw_channels, views
from sdcl.data.readers.market_gen import Source
from sdcl.frame.embedding import device_of
from sdcl.frame.meters import Meters
from sdcl.frame.run import Clock
from sdcl.seeds import derive_seed

__all__ = ["SourcePhase", "source_losses"]


def source_losses(
    pair: Pair, classifiers: Classifiers, pixels: Tensor, channels: Tensor, targets: Tensor, settings: PhaseSettings,
    precision: str = "fp32",
) -> StepLosses:  # fmt: skip
    """Forwards and losses of a step. Network 1 sees the visible and the transformed view, network 2 only the latter;
    three forwards in this order, each with its own batch statistics.

    Args:
        pixels: augmented images and their partners, [B, 6, H, W] in 0 … 255, on the networks' device.
        channels: int64 [B], of the channel views.
        targets: int64 [B].
    """
    visible, transformed = views(pixels[:, :3], pixels[:, 3:], channels, settings.generated_share)
    with distributed.autocast(pixels.device, precision):
        a, b, c = pair.first(visible), pair.first(transformed), pair.second(transformed)
    return stage1_losses(
        a,
        b,
        c,
        *classifiers.weights,
        targets,
        settings.kl_weight,
        settings.similarity_weight,
        smoothing=settings.label_smoothing,
        scale=settings.circle_scale,
        margin=settings.circle_margin,
    )


class SourcePhase:
    """The first pass ("source") or the second one, with KL terms ("source_mutual").

    Args:
        pair, classifiers: trained; on their device.
        key: what the phase's random draws follow from, beside the step: seed, trial and phase.
    """

    def __init__(
        self, pair: Pair, classifiers: Classifiers, source: Source, settings: PhaseSettings, config: Config,
        key: tuple[int | str, ...],
    ) -> None:  # fmt: skip
        self.pair, self.classifiers, self.source = pair, classifiers, source
        self.settings, self.config, self.key = settings, config, key
        self.optimizer = make_optimizer(
            [*pair.parameters(), *classifiers.parameters()], settings.learning_rate, settings.weight_decay
        )
        self.labels = torch.tensor([record.identity for record in source.records])

    def state(self) -> dict[str, Any]:
        """What the phase goes on from, beside the pair's weights."""
        weights = [weight.detach() for weight in self.classifiers.weights]
        return {"classifiers": weights, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """The classifiers came with the weights that they were given."""
        self.optimizer.load_state_dict(state["optimizer"])

    def train(self, part: Part, number: int, clock: Clock, progress: Callable[..., Any]) -> dict[str, Any]:
        """The steps of a part, the run's `number`-th; returns the means of the loss and its terms."""
        with clock("train"):
            device, steps = device_of(self.pair), part.last - part.first
            self.pair.train()
            meters = Meters(number, steps, progress(number, steps))
            seed = derive_seed(*self.key, "batches")
            batches = source_batches(self.source, self.settings, self.config, part.first, steps, seed)
            for step, (pixels, rows) in enumerate(batches, part.first):
                draws = torch.Generator().manual_seed(derive_seed(*self.key, "channels", step))
                losses = source_losses(
                    self.pair,
                    self.classifiers,
                    pixels.to(device, non_blocking=True),
                    draw_channels(len(rows), draws),
                    self.labels[rows].to(device, non_blocking=True),
                    self.settings,
                    self.config.precision,
                )
                take_step(self.optimizer, losses.total, self.settings.schedule.rate(step))
                meters.add(losses.total, losses.terms)
        return meters.means
