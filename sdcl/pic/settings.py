"""The settings of a PIC run (docs/pic.md, "Settings"), typed and frozen: those of every run, and PIC's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from sdcl.settings import Count, NonNegative, Positive, Range, RunSettings, Share, check_ranges

__all__ = ["PICConfig", "PICModelConfig"]

Pixels = Annotated[int, Range(16, 10_000)]


@dataclass(frozen=True)
class PICModelConfig:
    """The network. The defaults are the published ResNet-50 at 288 x 144."""

    image_height: Pixels = 288
    """Height of the images that the network sees, in pixels."""
    image_width: Pixels = 144
    """Width of the images that the network sees, in pixels."""
    width: Annotated[int, Range(1, 1024)] = 64
    """Channels of the first convolution; each of the four stages has twice the channels of the one before, and an
    embedding has 32 times as many numbers (2048)."""
    blocks: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    """Residual blocks of each of the four stages."""
    classes: Count | None = None
    """Outputs of the classifier: the number of training identities, which a run finds in its data; None: not known
    yet."""
    pretrained: str | None = None
    """File of ImageNet weights of a ResNet-50 in torchvision's names to start from; None: random weights."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def dim(self) -> int:
        """D, numbers of an embedding: 2048 with width 64."""
        return 32 * self.width


@dataclass(frozen=True, kw_only=True)
class PICConfig(RunSettings):
    """Settings of a run. The numbers are the published ones, equal for SYSU-MM01 and RegDB."""

    model: PICModelConfig = field(default_factory=PICModelConfig)

    # Batches and views
    identities: Annotated[int, Range(2, 10**7)] = 8
    """Identities in a batch."""
    instances: Count = 4
    """Images of each, in each modality: identities x instances visible and as many infrared images make a step."""
    crop_padding: Annotated[int, Range(0, 10_000)] = 10
    """Augmentation: black pixels around the resized image from which a crop of its size is cut."""

    # Losses and mean branches
    mean_branches: bool = True
    """Mutual teaching by slow copies of the shallow branches, which are also what is tested. Without it (our reading of
    the ablation): identity and triplet loss alone, with weight 1, and the trained branches are tested."""
    margin: NonNegative = 0.3
    """Of the triplet loss, on distances of un-normalised embeddings."""
    conventional_weight: NonNegative = 0.5
    """Weight of identity + triplet loss."""
    soft_identity_weight: NonNegative = 0.5
    """Weight of the soft identity loss, taught by the other modality's mean branch."""
    soft_triplet_weight: NonNegative = 0.8
    """Weight of the soft triplet loss, taught by the other modality's mean branch."""
    mean_momentum: Share = 0.999
    """Share that a mean branch keeps of itself at each forward pass of its modality."""
    move_after_test: bool = True
    """After each test, move the mean branches as often as the published program's test does: once for each `test_batch`
    images. Reading embeddings itself moves nothing (our reading)."""
    test_batch: Count = 64
    """Images of a test batch of the published program; it matters for `move_after_test` only."""

    # Schedule
    epochs: Count = 81
    """Epochs of (images of the larger modality) / (identities x instances) steps, rounded down, and one more step."""
    learning_rate: Positive = 3.5e-4
    """Adam's learning rate, the same in all epochs and for all parameters."""
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's decay rates of the mean and of the square of the gradients."""
    adam_eps: Positive = 1e-8
    """Adam's term beside the root."""
    weight_decay: NonNegative = 5e-4
    """L2 term in the gradient of every trained parameter, normalisations included."""
    test_every: Count = 2
    """A test follows epoch 0, every so many epochs, and the last one."""
    seed: Annotated[int, Range(0, 2**32, below=True)] = 0
    """Fixes everything random; the batches of all epochs come from one generator of this seed."""
    channels_last: bool = False
    """Keep the convolutions' weights in channels-last order, which most GPUs prefer, above all with --precision bf16.
    The same result up to rounding."""

    NOT_IN_RESULT: ClassVar[tuple[str, ...]] = (*RunSettings.NOT_IN_RESULT, "channels_last")
    OF_NETWORK: ClassVar[tuple[str, ...]] = ("model", "mean_branches")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network's images, in pixels."""
        return self.model.image_height, self.model.image_width

    @property
    def batch_size(self) -> int:
        """Images of one modality in a step (32)."""
        return self.identities * self.instances

    def test_follows(self, epoch: int) -> bool:
        """Whether epoch 0, 1, … ends with a test."""
        return epoch % self.test_every == 0 or epoch == self.epochs - 1
