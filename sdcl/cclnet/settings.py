"""CCLNet's numbers, with the published SYSU-MM01 run as defaults (CCLNet page, section 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sdcl.errors import UserError
from sdcl.settings import Count, NonNegative, Positive, Range, RunSettings, Share, check_ranges

__all__ = ["ClipConfig", "Config", "EpochSettings"]


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the network (section 1). The defaults are CLIP's RN50 for images of 288 x 144."""

    image_height: Annotated[int, Range(1, 4096)] = 288
    """Height of the images that the network sees, in pixels; a multiple of 16."""
    image_width: Annotated[int, Range(1, 4096)] = 144
    """Width of the images that the network sees, in pixels; a multiple of 16."""
    width: Count = 64
    """Channels of the stems and inner channels of the first layer; a feature has 32 times as many."""
    depths: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    """Blocks of the four layers."""
    projection: Count = 1024
    """Width of the space that images and texts share."""
    text_width: Count = 512
    """Width of the text transformer."""
    text_depth: Count = 12
    """Blocks of the text transformer."""
    text_heads: Count = 8
    """Attention heads of the text transformer; they divide `text_width`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("image_height", "image_width"):
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise UserError(
                    f"{name.replace('_', '-')} is {value}: it must be a multiple of 16, such as "
                    f"{max(1, round(value / 16)) * 16}"
                )
        if self.width % 2:
            raise UserError(f"width is {self.width}: it must be even, so that attention heads of 64 divide 32 x width")
        if len(self.depths) != 4:
            raise UserError(f"depths is {self.depths}: the network has four layers")
        if self.text_width % self.text_heads:
            raise UserError(f"text-heads is {self.text_heads}: it must divide text-width ({self.text_width})")

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
    """What changes from epoch to epoch."""

    stage: int
    """0, 1 or 2."""
    number: int
    """Epoch of the stage, counted from 1 as in the published schedule."""
    learning_rate: float
    """Of weights; biases have `bias_factor` times as much in stages 0 and 2."""
    mix_share: float
    """Share of its own centre that a matched cluster keeps at each step; 1 = nothing is mixed."""
    test: bool
    """Whether the epoch ends with a test."""


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Settings of a run. Numbers without a remark are those of the published SYSU-MM01 run.

    Stages 0 and 2 train the image network on clusters, stage 1 learns a sentence for each cluster in between. Epochs
    are numbered through all three stages, from 0; within a stage the schedule counts from 1.
    """

    model: ClipConfig = field(default_factory=ClipConfig)

    # Start and stages
    clip: Path = Path("pretrained/RN50.pt")
    """CLIP's weights: OpenAI's RN50.pt, or a dict of the same names. Every stage starts from them."""
    text: Literal["clip", "random"] = "clip"
    """The text encoder: CLIP's, or one of random weights, for a file that holds the image network alone."""
    stage: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    """Stages to run, in order. A stage starts from what this folder's run has handed on (--resume auto), or stage 1
    from --labels and stage 2 from --prompts."""
    labels: Path | None = None
    """A run that begins with stage 1: folder of stage 0's two label files, another run's or those that the authors
    share."""
    prompts: Path | None = None
    """A run that begins with stage 2: what stage 1 handed on, the prompts.pth of another run."""
    truth: bool = True
    """Compare pseudo-labels with the true identities for the log (purity, matching accuracy). They never train."""

    # Pseudo-labels (section 4), in every epoch of stages 0 and 2 and for both modalities
    eps: Annotated[float, Range(0, 1, above=True, below=True)] = 0.6
    """DBSCAN radius on the Jaccard distance; smaller where the set is small and its images are alike."""
    min_samples: Count = 4
    """DBSCAN's number of neighbours, itself included, that make a row a core row."""
    k1: Count = 30
    """Size of the k-reciprocal neighbour lists."""
    k2: Count = 6
    """Neighbours over which the weights of the Jaccard distance are averaged (local query expansion)."""

    # Batches of stages 0 and 2 (section 8)
    identities: Count = 4
    """Clusters of each modality in a batch."""
    instances: Count = 16
    """Images of each, drawn with replacement."""
    crop_padding: Annotated[int, Range(0, 1000)] = 10
    """Augmentation: pixels of black around the image from which a crop of its size is cut."""

    # Memories and losses (sections 5 and 7)
    temperature: Positive = 0.05
    """Temperature of the cluster contrast; between images and texts there is none."""
    cluster_momentum: Share = 0.1
    """Share that a cluster centre keeps at each move: small, so that the hardest recent images lead it."""
    mix_from: Count = 61
    """First epoch of stages 0 and 2 in which matched clusters of the modalities are mixed; by then the learning rate is
    a hundredth."""
    mix_share: Share = 0.1
    """Share of its own centre that a matched cluster keeps at each step from then on: nine tenths come from the other
    modality (section 11, point 1)."""
    smoothing: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Label smoothing of stage 2's image-to-text classification."""

    # Schedule of stages 0 and 2 (section 9)
    contrast_epochs: Count = 120
    """Epochs of stage 0, and of stage 2."""
    learning_rate: Positive = 3.5e-4
    """Adam's learning rate after the warm-up."""
    bias_factor: Positive = 2.0
    """Biases learn so many times faster (section 11, point 7)."""
    weight_decay: NonNegative = 5e-4
    """Added to the gradient of everything trained, biases too."""
    warmup_epochs: Count = 10
    """The learning rate rises linearly up to this epoch."""
    warmup_factor: Share = 0.01
    """Where the rise begins, as a share of the learning rate."""
    lr_steps: tuple[Count, ...] = (30, 50)
    """From each of these epochs on the learning rate is a tenth of what it was."""
    test_every: Count = 5
    """Epochs from test to test; the last one is always tested."""

    # Schedule of stage 1 (sections 6 and 9)
    prompt_epochs: Count = 60
    """Epochs of stage 1, which learns sentences from embeddings of all images and never runs the image network."""
    prompt_batch: Count = 128
    """Images of each modality in a step of stage 1."""
    prompt_learning_rate: Positive = 3.5e-4
    """Adam's learning rate, from which a cosine falls."""
    prompt_final_rate: NonNegative = 1e-6
    """Where the cosine ends, in the last epoch."""
    prompt_warmup_epochs: Count = 5
    """Before this epoch the learning rate rises linearly."""
    prompt_warmup_rate: NonNegative = 1e-5
    """Where the rise begins."""
    prompt_weight_decay: NonNegative = 1e-4
    """Added to the gradient of the learned vectors."""

    # What the stages before handed on is in the run's own checkpoint when it goes on.
    NOT_IN_RESULT: ClassVar[tuple[str, ...]] = (*RunSettings.NOT_IN_RESULT, "stage", "labels", "prompts", "truth")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stage or self.stage != tuple(range(self.stage[0], self.stage[-1] + 1)):
            raise UserError(f"--stage {' '.join(map(str, self.stage))}: give one of 0, 1, 2, or several in a row")
        if self.identities * self.instances < 2:
            raise UserError("a batch of one image has no batch statistics: raise --identities or --instances")

    @property
    def image_size(self) -> tuple[int, int]:
        return self.model.image_height, self.model.image_width

    @property
    def epochs(self) -> int:
        return 2 * self.contrast_epochs + self.prompt_epochs

    def stage_name(self, epoch: int) -> str:
        return f"stage {self.at(epoch).stage}"

    @property
    def batch_size(self) -> int:
        """Images of one modality in a step of stages 0 and 2 (64)."""
        return self.identities * self.instances

    def epochs_of(self, stage: int) -> range:
        """A stage's epochs, as they are numbered through all stages."""
        ends = (0, self.contrast_epochs, self.contrast_epochs + self.prompt_epochs, self.epochs)
        return range(ends[stage], ends[stage + 1])

    def at(self, epoch: int) -> EpochSettings:
        """The settings of epoch 0, 1, … of the run."""
        stage = next((s for s in (0, 1) if epoch < self.epochs_of(s).stop), 2)
        own = self.epochs_of(stage)
        number = epoch - own.start + 1
        last = number == len(own)
        if stage == 1:
            return EpochSettings(stage, number, self._prompt_rate(number), 1.0, last)
        mix_share = self.mix_share if number >= self.mix_from else 1.0
        test = last or number % self.test_every == 0
        return EpochSettings(stage, number, self._contrast_rate(number), mix_share, test)

    def _contrast_rate(self, number: int) -> float:
        risen = min(1.0, number / self.warmup_epochs)
        rate = self.learning_rate * (self.warmup_factor * (1 - risen) + risen)
        return rate * 0.1 ** sum(number >= step for step in self.lr_steps)

    def _prompt_rate(self, number: int) -> float:
        """The cosine counts from epoch 0, not from the end of the warm-up, as in the published run."""
        if number < self.prompt_warmup_epochs:
            rise = (self.prompt_learning_rate - self.prompt_warmup_rate) / self.prompt_warmup_epochs
            return self.prompt_warmup_rate + number * rise
        fall = (1 + math.cos(math.pi * number / self.prompt_epochs)) / 2
        return self.prompt_final_rate + (self.prompt_learning_rate - self.prompt_final_rate) * fall
