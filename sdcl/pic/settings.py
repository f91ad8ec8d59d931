"""The settings of a PIC run (docs/pic.md, "Settings"), typed and frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdcl.errors import UserError

__all__ = ["PICConfig", "PICModelConfig"]


@dataclass(frozen=True)
class PICModelConfig:
    """The network. The defaults are the published ResNet-50 at 288 x 144."""

    image_height: int = 288
    """Height of the images that the network sees, in pixels."""
    image_width: int = 144
    """Width of the images that the network sees, in pixels."""
    width: int = 64
    """Channels of the first convolution; each of the four stages has twice the channels of the one before, and an
    embedding has 32 times as many numbers (2048)."""
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Residual blocks of each of the four stages."""
    mean_branches: bool = True
    """Mutual teaching by slow copies of the shallow branches, which are also what is tested. Without it (our reading of
    the ablation): identity and triplet loss alone, with weight 1, and the trained branches are tested."""
    pretrained: str | None = None
    """File of ImageNet weights of a ResNet-50 in torchvision's names to start from; None: random weights."""

    def __post_init__(self) -> None:
        for name in ("image_height", "image_width"):
            if getattr(self, name) < 16:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}: at least 16 pixels")
        if self.width < 1 or len(self.blocks) != 4 or min(self.blocks) < 1:
            raise UserError(
                f"width {self.width} and blocks {' '.join(map(str, self.blocks))} make no ResNet: a width of at least "
                "1 and at least one block in each of four stages are needed"
            )

    @property
    def dim(self) -> int:
        """D, numbers of an embedding: 2048 with width 64."""
        return 32 * self.width


@dataclass(frozen=True)
class PICConfig:
    """Everything that changes a result. Defaults are the published ones, equal for SYSU-MM01 and RegDB."""

    model: PICModelConfig = field(default_factory=PICModelConfig)

    # Batches and views
    identities: int = 8
    """Identities in a batch."""
    instances: int = 4
    """Images of each, in each modality: identities x instances visible and as many infrared images make a step."""
    crop_padding: int = 10
    """Augmentation: black pixels around the resized image from which a crop of its size is cut."""

    # Losses
    margin: float = 0.3
    """Of the triplet loss, on distances of un-normalised embeddings."""
    conventional_weight: float = 0.5
    """Weight of identity + triplet loss."""
    soft_identity_weight: float = 0.5
    """Weight of the soft identity loss, taught by the other modality's mean branch."""
    soft_triplet_weight: float = 0.8
    """Weight of the soft triplet loss, taught by the other modality's mean branch."""
    mean_momentum: float = 0.999
    """Share that a mean branch keeps of itself at each forward pass of its modality."""
    move_after_test: bool = True
    """After each test, move the mean branches as often as the published program's test moves them: once for each
    `test_batch` images. Reading embeddings itself moves nothing (our reading)."""
    test_batch: int = 64
    """Images of a test batch of the published program; it matters for `move_after_test` only."""

    # Schedule
    epochs: int = 81
    """Epochs."""
    learning_rate: float = 3.5e-4
    """Adam's learning rate, the same in all epochs and for all parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the mean and of the square of the gradients."""
    eps: float = 1e-8
    """Adam's term beside the root."""
    weight_decay: float = 5e-4
    """L2 term in the gradient of every trained parameter, normalisations included."""
    test_every: int = 2
    """A test follows epoch 0 and every so many epochs, and the last one."""
    seed: int = 0
    """Fixes everything random."""

    def __post_init__(self) -> None:
        problems = [
            (self.identities < 2, f"identities is {self.identities}: a triplet needs at least 2 in a batch"),
            (self.instances < 1, f"instances is {self.instances}: at least 1"),
            (not 0 <= self.mean_momentum <= 1, f"mean-momentum is {self.mean_momentum}: between 0 and 1"),
            (self.test_batch < 1, f"test-batch is {self.test_batch}: at least 1"),
            (self.crop_padding < 0, f"crop-padding is {self.crop_padding}: 0 or more"),
            (self.epochs < 1, f"epochs is {self.epochs}: at least 1"),
            (self.test_every < 1, f"test-every is {self.test_every}: at least 1"),
        ]
        for wrong, message in problems:
            if wrong:
                raise UserError(message)

    @property
    def batch_size(self) -> int:
        """Images of one modality in a step (32)."""
        return self.identities * self.instances

    def test_follows(self, epoch: int) -> bool:
        """Whether epoch 0, 1, … ends with a test."""
        return epoch % self.test_every == 0 or epoch == self.epochs - 1
