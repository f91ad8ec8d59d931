"""The settings of an SDCL run, typed, frozen and in one place (method page, section 7).

`Config` is what a user can change (with the fields of `sdcl.settings.RunSettings`, which every method has); each field
is an option of the command line, its docstring is the option's help. `Config.at(epoch)` resolves it for one epoch, so
that no other file knows when a stage starts or a weight changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sdcl.config.model import ModelConfig
from sdcl.errors import UserError
from sdcl.settings import Count, NonNegative, Positive, Range, RunSettings, Share

__all__ = ["Config", "EpochSettings"]

Epoch = Annotated[int, Range(0, 10**7)]


@dataclass(frozen=True)
class EpochSettings:
    """`Config` resolved for one epoch."""

    epoch: int
    stage: Literal[1, 2]
    steps: int
    learning_rate: float
    cluster_momentum: Share
    k1_visible: int
    k1_infrared: int
    homogeneous_weight: float
    """Weight of the neighbour losses within a modality; 0: not formed."""
    visible_to_infrared_weight: float
    """Weight of the neighbour loss of visible anchors and infrared targets; 0: not formed."""
    infrared_to_visible_weight: float
    """The same for infrared anchors and visible targets."""


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Settings of a run. Numbers without a remark are those of the published SYSU-MM01 run (method page, section 7)."""

    model: ModelConfig = field(default_factory=ModelConfig)

    # Data
    augment: Literal["workers", "device"] = "workers"
    """Where training images are augmented: one by one in the processes that read them, as published, or whole batches
    on the model's device, which frees the processor. The device draws other random numbers from the same
    distributions, and its colour jitter comes after the resize, without rounding to bytes in between."""

    # Pseudo-labels (sections 3 and 6)
    eps: Annotated[float, Range(0, 1, above=True, below=True)] = 0.6
    """DBSCAN radius on the Jaccard distance, both modalities; smaller where the set is small and its images are alike
    (RegDB: 0.3)."""
    min_samples: Count = 4
    """DBSCAN's number of neighbours, itself included, that make a row a core row."""
    k1: Count = 30
    """Size of the k-reciprocal neighbour lists."""
    k1_visible_stage2: Count = 15
    """The same for visible images from stage 2 on, whose clusters are purer by then (RegDB: 30, unchanged)."""
    k2: Count = 6
    """Neighbours over which the weights of the Jaccard distance are averaged (local query expansion)."""
    knn: Literal["exact", "ivf"] = "exact"
    """Search for the k1 nearest: exact, or approximate by inverted lists (faiss, always on the CPU), for millions of
    images without a GPU. With fewer it is slower than exact; either way it changes the result."""
    association_k: Count = 20
    """CRA: nearest infrared rows that vote on a visible row's label (about the size of a cluster; RegDB: 10 images an
    identity)."""
    smooth_k: Count = 5
    """CRA: nearest visible rows over which the votes are smoothed."""

    # Batches (section 7)
    identities: Count = 8
    """Pseudo-identities in a batch."""
    instances: Count = 16
    """Images of each; identities x instances visible and as many infrared images make a step."""

    crop_padding: Annotated[int, Range(0, 512)] = 10
    """Augmentation: pixels around the resized image from which a crop of its size is cut (section 2)."""

    # Memories and losses (sections 4 and 5)
    temperature: Positive = 0.05
    """Temperature of all contrastive losses."""
    cluster_momentum: Share = 0.1
    """Share that a cluster centre keeps at each update: small, so that the hardest recent images lead it."""
    cluster_momentum_first_epoch: Share = 0.1
    """The same in epoch 0 (RegDB: 0.99; try 0.9 or 0.99 when the loss does not come down in the first epoch)."""
    instance_momentum: Share = 0.9
    """Share that an instance-memory row keeps at each update (the new embedding enters un-normalised and dominates)."""
    neighbor_threshold: Share = 0.9
    """CNL: a target is a neighbour when its similarity exceeds this share of the row's largest, at both levels."""
    shallow_weight: NonNegative = 0.5
    """CNL: weight of the shallow level's loss beside the deep one's."""
    homogeneous_from: Epoch = 0
    """CNL: first epoch with neighbour losses within a modality (RegDB: 1, its first clusters are too coarse)."""
    heterogeneous_from: Epoch = 10
    """CNL: first epoch with neighbour losses across modalities, when these have come closer."""
    homogeneous_weight: tuple[NonNegative, NonNegative] = (1.0, 0.1)
    """CNL: weight of the losses within a modality, stage 1 and stage 2."""
    heterogeneous_weight: tuple[NonNegative, NonNegative] = (0.5, 0.1)
    """CNL: weight of the losses across modalities, stage 1 and stage 2."""
    visible_to_infrared_weight: NonNegative = 0.1
    """CNL: further weight of visible anchors with infrared targets (even epochs)."""
    infrared_to_visible_weight: NonNegative = 1.0
    """CNL: further weight of infrared anchors with visible targets (odd epochs)."""

    # Parts of the method, for ablations
    shallow: bool = True
    """Shallow-deep learning: use the shallow embedding beside the deep one."""
    cnl: bool = True
    """Collaborative Neighbor Learning."""
    cra: bool = True
    """Collaborative Ranking Association: visible labels come from infrared clusters in stage 2. Without it stage 1
    goes on."""

    # Schedule (section 7)
    epochs: Count = 50
    """Epochs of both stages together."""
    stage2_from: Epoch = 30
    """First epoch of stage 2; it starts from the selected stage-1 weights."""
    stage1: Path | None = None
    """Leave stage 1 out and begin stage 2 with these weights: a run's stage1.pth (its optimiser goes on too), or a
    checkpoint of the published implementation. RegDB: also a run folder with trial-<n>/stage1.pth in it."""
    steps_stage1: Count = 200
    """Steps an epoch in stage 1."""
    steps_stage2: Count = 100
    """Steps an epoch in stage 2."""
    learning_rate: Positive = 3.5e-4
    """SGD's learning rate in the first epochs."""
    sgd_momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """SGD's momentum."""
    weight_decay: NonNegative = 5e-4
    """On every trained parameter, normalisations included."""
    lr_step: Count = 20
    """The learning rate falls to a tenth every so many epochs."""
    bn_replicas: Count = 2
    """Groups of a batch that are batch-normalised apart, as on the published runs' GPUs (section 9.6); independent of
    the number of GPUs here."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: much less GPU memory, a third more
    time, the same result."""
    accumulate: Count | Literal["auto"] = "auto"
    """Take each step's rows through the transformer in so many parts, each computed again in the backward pass: about
    so many times less GPU memory for activations, a third more time. auto: the fewest parts that fit into the GPU's
    free memory, by a count of the step's tensors (on the CPU: 1). Losses, memories and batch statistics see the
    whole batch all the same."""
    channels_last: bool = False
    """Keep the convolutional stems' weights in channels-last order, which some GPUs prefer, above all with --precision
    bf16; scripts/bench_step.py tells whether yours does. The same result up to rounding."""
    parallel: Literal["auto", "dp", "none"] = "auto"
    """A single process and several GPUs: dp spreads the batch-normalisation replicas over them (DataParallel), none
    keeps to one GPU, auto is dp where there are GPUs enough (with --compile: none)."""
    on_degenerate: Literal["stop", "keep-labels"] = "stop"
    """When clustering finds too little to learn from (fewer than two clusters, less than a batch, no association):
    stop and say why, or train on with the labels of the last epoch that had good ones."""
    truth: bool = True
    """Compare pseudo-labels with the true identities for the log (purity, association accuracy). They never train."""
    select: Literal["test-rank1", "last"] = "test-rank1"
    """The epoch that is kept as best and that stage 2 starts from: by Rank-1 on the test set, as published, or simply
    the last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2 * self.bn_replicas:
            raise UserError(
                f"a batch of {self.identities} x {self.instances} images is too small for {self.bn_replicas} "
                "batch-normalisation replicas"
            )
        if self.batch_size % self.bn_replicas:
            raise UserError(
                f"a batch of {self.identities} identities x {self.instances} instances = {self.batch_size} images does "
                f"not divide into {self.bn_replicas} equal batch-normalisation replicas: change --instances or "
                "--bn-replicas"
            )
        if self.stage1 is not None and not (self.cra and 0 < self.stage2_from < self.epochs):
            raise UserError(
                f"--stage1 begins at stage 2, but these settings have none after a first stage (--stage2-from "
                f"{self.stage2_from} --epochs {self.epochs}{'' if self.cra else ' --no-cra'})"
            )
        if self.compile and self.parallel == "dp":
            raise UserError(
                "--compile does not go with --parallel dp: start a process for each GPU, torchrun --nproc-per-node "
                f"{self.bn_replicas}"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network's images, in pixels."""
        return self.model.image_height, self.model.image_width

    @property
    def first_epoch(self) -> int:
        """The first epoch that a run trains: 0, or that of stage 2 when it begins with stage-1 weights."""
        return 0 if self.stage1 is None else self.stage2_from

    def stage_name(self, epoch: int) -> str:
        """`stage 1` or `stage 2`."""
        return f"stage {self.at(epoch).stage}"

    @property
    def batch_size(self) -> int:
        """Images of one modality in a step (128); the step sees two views of each visible one."""
        return self.identities * self.instances

    def less_memory(self) -> list[str]:
        """Options with which a step needs less GPU memory, the first to try first."""
        more = 8 if self.accumulate == "auto" else 2 * self.accumulate
        options = [f"--accumulate {more} (more parts than it had; same result)"]
        if not self.gradient_checkpointing:
            options.insert(0, "--gradient-checkpointing (same result, about a third slower)")
        if self.bn_replicas > 1:
            options.append(f"{self.bn_replicas} GPUs: torchrun --nproc-per-node {self.bn_replicas} train_sdcl.py …")
        options.append(f"in the end --instances {max(2, self.instances // 2)} (half the batch: another result)")
        return options

    def at(self, epoch: int) -> EpochSettings:
        """The settings of epoch 0, 1, …: stage, steps, learning rate and weights (method page, sections 5 to 7)."""
        stage: Literal[1, 2] = 2 if self.cra and epoch >= self.stage2_from else 1
        homogeneous = self.cnl and epoch >= self.homogeneous_from
        heterogeneous = self.heterogeneous_weight[stage - 1] if self.cnl and epoch >= self.heterogeneous_from else 0.0
        even = epoch % 2 == 0
        return EpochSettings(
            epoch=epoch,
            stage=stage,
            steps=self.steps_stage1 if stage == 1 else self.steps_stage2,
            learning_rate=self.learning_rate * 0.1 ** (epoch // self.lr_step),
            cluster_momentum=self.cluster_momentum_first_epoch if epoch == 0 else self.cluster_momentum,
            k1_visible=self.k1 if stage == 1 else self.k1_visible_stage2,
            k1_infrared=self.k1,
            homogeneous_weight=self.homogeneous_weight[stage - 1] if homogeneous else 0.0,
            visible_to_infrared_weight=heterogeneous * self.visible_to_infrared_weight if even else 0.0,
            infrared_to_visible_weight=heterogeneous * self.infrared_to_visible_weight if not even else 0.0,
        )

    NOT_IN_RESULT: ClassVar[tuple[str, ...]] = (
        *RunSettings.NOT_IN_RESULT,
        "gradient_checkpointing",
        "accumulate",
        "channels_last",
        "parallel",
        "on_degenerate",
        "truth",
    )
    OF_NETWORK: ClassVar[tuple[str, ...]] = ("model", "shallow")
