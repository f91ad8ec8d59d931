"""CCLNet's numbers, with the published SYSU-MM01 run as defaults (CCLNet page, section 9). Epochs count from 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdcl.errors import UserError

__all__ = ["ClipConfig", "ContrastConfig", "EpochSettings", "PromptConfig"]


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the network (section 1). The defaults are CLIP's RN50 for images of 288 x 144."""

    image_height: int = 288
    """Height of the images that the network sees, in pixels; a multiple of 16."""
    image_width: int = 144
    """Width of the images that the network sees, in pixels; a multiple of 16."""
    width: int = 64
    """Channels of the stems and inner channels of the first layer; a feature has 32 times as many."""
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks of the four layers."""
    projection: int = 1024
    """Width of the space that images and texts share."""
    text_width: int = 512
    """Width of the text transformer."""
    text_depth: int = 12
    """Blocks of the text transformer."""
    text_heads: int = 8
    """Attention heads of the text transformer; they divide `text_width`."""

    def __post_init__(self) -> None:
        for name in ("image_height", "image_width"):
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise UserError(
                    f"{name.replace('_', '-')} is {value}: it must be a multiple of 16, such as "
                    f"{max(1, round(value / 16)) * 16}"
                )
        if self.width < 2 or self.width % 2:
            raise UserError(f"width is {self.width}: it must be even, so that attention heads of 64 divide 32 x width")
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise UserError(f"depths is {self.depths}: four layers of at least one block each")
        if self.text_heads < 1 or self.text_width % self.text_heads:
            raise UserError(f"text-heads is {self.text_heads}: it must divide text-width ({self.text_width})")
        if min(self.projection, self.text_depth) < 1:
            raise UserError(f"projection ({self.projection}) and text-depth ({self.text_depth}) are at least 1")

    @property
    def dim(self) -> int:
        """Width of a feature: 2048 for CLIP's RN50."""
        return 32 * self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Places down and across in the last layer, (18, 9) at 288 x 144."""
        return self.image_height // 16, self.image_width // 16


@dataclass(frozen=True)
class EpochSettings:
    """What changes from epoch to epoch of stages 0 and 2."""

    learning_rate: float
    """Of weights; biases have `bias_factor` times as much."""
    mix_share: float
    """Share of its own centre that a matched cluster keeps at each step; 1 = nothing is mixed."""
    test: bool
    """Whether the epoch ends with a test."""


@dataclass(frozen=True)
class ContrastConfig:
    """Stages 0 and 2, which train the image network on clusters of each modality."""

    epochs: int = 120
    """Epochs of the stage."""
    learning_rate: float = 3.5e-4
    """Adam's learning rate after the warm-up."""
    bias_factor: float = 2.0
    """Biases learn so many times faster (section 11, point 7)."""
    weight_decay: float = 5e-4
    """Added to the gradient of everything trained, biases too."""
    warmup_epochs: int = 10
    """The learning rate rises linearly up to this epoch."""
    warmup_factor: float = 0.01
    """Where the rise begins, as a share of the learning rate."""
    lr_steps: tuple[int, ...] = (30, 50)
    """From each of these epochs on the learning rate is a tenth of what it was."""
    eps: float = 0.6
    """DBSCAN radius on the Jaccard distance, both modalities."""
    min_samples: int = 4
    """DBSCAN's number of neighbours, itself included, that make a row a core row."""
    k1: int = 30
    """Size of the k-reciprocal neighbour lists."""
    k2: int = 6
    """Neighbours over which the weights of the Jaccard distance are averaged."""
    identities: int = 4
    """Clusters of each modality in a batch."""
    instances: int = 16
    """Images of each, drawn with replacement."""
    temperature: float = 0.05
    """Temperature of the cluster contrast."""
    cluster_momentum: float = 0.1
    """Share that a cluster centre keeps at each move."""
    mix_from: int = 61
    """First epoch in which matched clusters of both modalities are mixed; the learning rate is a hundredth by then."""
    mix_share: float = 0.1
    """Share of its own centre that a matched cluster keeps at each step from then on (section 11, point 1)."""
    smoothing: float = 0.1
    """Label smoothing of the image-to-text classification, stage 2 alone."""
    test_every: int = 5
    """Epochs from test to test."""

    def __post_init__(self) -> None:
        problems = [
            (self.epochs < 1, f"epochs is {self.epochs}: at least 1"),
            (self.test_every < 1, f"test-every is {self.test_every}: at least 1"),
            (self.warmup_epochs < 1, f"warmup-epochs is {self.warmup_epochs}: at least 1"),
            (not 0 < self.eps < 1, f"eps is {self.eps}: Jaccard distances lie between 0 and 1"),
            (min(self.min_samples, self.k1, self.k2) < 1, "min-samples, k1 and k2 are at least 1"),
            (
                min(self.identities, self.instances) < 1 or self.identities * self.instances < 2,
                f"a batch of {self.identities} identities x {self.instances} instances is too small",
            ),
            (self.temperature <= 0, f"temperature is {self.temperature}: above 0"),
            (not 0 <= self.mix_share <= 1, f"mix-share is {self.mix_share}: between 0 and 1"),
            (not 0 <= self.smoothing < 1, f"smoothing is {self.smoothing}: from 0 to below 1"),
        ]
        for wrong, message in problems:
            if wrong:
                raise UserError(message)

    @property
    def batch_size(self) -> int:
        """Images of one modality in a step (64)."""
        return self.identities * self.instances

    def at(self, epoch: int) -> EpochSettings:
        """The settings of epoch 1, 2, …"""
        risen = min(1.0, epoch / self.warmup_epochs)
        rate = self.learning_rate * (self.warmup_factor * (1 - risen) + risen)
        rate *= 0.1 ** sum(epoch >= step for step in self.lr_steps)
        mixing = epoch >= self.mix_from
        return EpochSettings(rate, self.mix_share if mixing else 1.0, epoch % self.test_every == 0)


@dataclass(frozen=True)
class PromptConfig:
    """Stage 1, which learns a sentence for each cluster (section 6)."""

    epochs: int = 60
    """Epochs of the stage."""
    learning_rate: float = 3.5e-4
    """Adam's learning rate, from which a cosine falls."""
    final_learning_rate: float = 1e-6
    """Where the cosine ends, in the last epoch."""
    warmup_epochs: int = 5
    """Before this epoch the learning rate rises linearly."""
    warmup_learning_rate: float = 1e-5
    """Where the rise begins."""
    weight_decay: float = 1e-4
    """Added to the gradient of the learned vectors."""
    batch: int = 128
    """Images of each modality in a step."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1:
            raise UserError(f"prompt learning of {self.epochs} epochs with batches of {self.batch}: at least 1 each")

    def rate(self, epoch: int) -> float:
        """The learning rate of epoch 1, 2, …; the cosine counts from epoch 0, not from the end of the warm-up."""
        if epoch < self.warmup_epochs:
            rise = (self.learning_rate - self.warmup_learning_rate) / self.warmup_epochs
            return self.warmup_learning_rate + epoch * rise
        fall = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * fall
