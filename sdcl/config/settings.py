"""The settings of a run, typed, frozen and in one place (method page, section 7).

`Config` is what a user can change (each field is an option of the command line, its docstring is the option's help);
`Config.at(epoch)` resolves it for one epoch, so that no other file knows when a stage starts or a weight changes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from sdcl.config.model import ModelConfig
from sdcl.errors import UserError

__all__ = ["Config", "EpochSettings"]


@dataclass(frozen=True)
class EpochSettings:
    """`Config` resolved for one epoch."""

    epoch: int
    stage: Literal[1, 2]
    steps: int
    learning_rate: float
    cluster_momentum: float
    k1_visible: int
    k1_infrared: int
    homogeneous_weight: float
    """Weight of the neighbour losses within a modality; 0: not formed."""
    visible_to_infrared_weight: float
    """Weight of the neighbour loss of visible anchors and infrared targets; 0: not formed."""
    infrared_to_visible_weight: float
    """The same for infrared anchors and visible targets."""


@dataclass(frozen=True)
class Config:
    """Settings of a run. Numbers without a remark are those of the published SYSU-MM01 run (method page, section 7)."""

    dataset: Literal["sysu", "regdb", "folder"]
    """Layout and test protocol of the data."""
    data_dir: Path
    """The data set's own folder."""
    run_dir: Path
    """Where config.json, log.jsonl, checkpoints and results go (RegDB: a folder trial-<n> below it for each trial)."""
    model: ModelConfig = field(default_factory=ModelConfig)

    # Data
    published_counts: bool = True
    """Compare the data's identities and images with the published counts and say so when they differ."""
    synthetic_seed: int | None = None
    """Draw the embedded synthetic people from this seed into `data_dir` where they are not there yet. None: real
    data."""
    synthetic_identities: tuple[int, int] = (40, 30)
    """Training and test identities of the synthetic set."""
    skip_unreadable: bool = False
    """Leave images that cannot be read out of training and tests, and name them. Without it the programs stop before
    they start; results of fewer images do not compare with published ones."""
    trial: int | None = None
    """RegDB: train or test this one of the ten splits only (1 to 10). Without it, all ten one after another."""
    workers: int = 8
    """Processes that read and augment images; results do not depend on it."""
    embedding_batch: int = 256
    """Images at once when embedding for clustering and tests; results do not depend on it."""
    image_cache: Path | None = None
    """Folder for decoded and resized images, built once and read by every epoch and later run (docs/performance.md
    says how large it gets); results do not depend on it. None: read the image files each time."""
    augment: Literal["workers", "device"] = "workers"
    """Where training images are augmented: one by one in the processes that read them, as published, or whole batches
    on the model's device, which frees the processor. The device draws other random numbers from the same
    distributions, and its colour jitter comes after the resize, without rounding to bytes in between."""

    # Pseudo-labels (sections 3 and 6)
    eps: float = 0.6
    """DBSCAN radius on the Jaccard distance, both modalities; smaller where the set is small and its images are alike
    (RegDB: 0.3)."""
    min_samples: int = 4
    """DBSCAN's number of neighbours, itself included, that make a row a core row."""
    k1: int = 30
    """Size of the k-reciprocal neighbour lists."""
    k1_visible_stage2: int = 15
    """The same for visible images from stage 2 on, whose clusters are purer by then (RegDB: 30, unchanged)."""
    k2: int = 6
    """Neighbours over which the weights of the Jaccard distance are averaged (local query expansion)."""
    knn: Literal["exact", "ivf"] = "exact"
    """Search for the k1 nearest: exact, or approximate by inverted lists (faiss, always on the CPU), for millions of
    images without a GPU. With fewer it is slower than exact; either way it changes the result."""
    association_k: int = 20
    """CRA: nearest infrared rows that vote on a visible row's label (about the size of a cluster; RegDB: 10 images an
    identity)."""
    smooth_k: int = 5
    """CRA: nearest visible rows over which the votes are smoothed."""

    # Batches (section 7)
    identities: int = 8
    """Pseudo-identities in a batch."""
    instances: int = 16
    """Images of each; identities x instances visible and as many infrared images make a step."""

    crop_padding: int = 10
    """Augmentation: pixels around the resized image from which a crop of its size is cut (section 2)."""

    # Memories and losses (sections 4 and 5)
    temperature: float = 0.05
    """Temperature of all contrastive losses."""
    cluster_momentum: float = 0.1
    """Share that a cluster centre keeps at each update: small, so that the hardest recent images lead it."""
    cluster_momentum_first_epoch: float = 0.1
    """The same in epoch 0 (RegDB: 0.99; try 0.9 or 0.99 when the loss does not come down in the first epoch)."""
    instance_momentum: float = 0.9
    """Share that an instance-memory row keeps at each update (the new embedding enters un-normalised and dominates)."""
    neighbor_threshold: float = 0.9
    """CNL: a target is a neighbour when its similarity exceeds this share of the row's largest, at both levels."""
    shallow_weight: float = 0.5
    """CNL: weight of the shallow level's loss beside the deep one's."""
    homogeneous_from: int = 0
    """CNL: first epoch with neighbour losses within a modality (RegDB: 1, its first clusters are too coarse)."""
    heterogeneous_from: int = 10
    """CNL: first epoch with neighbour losses across modalities, when these have come closer."""
    homogeneous_weight: tuple[float, float] = (1.0, 0.1)
    """CNL: weight of the losses within a modality, stage 1 and stage 2."""
    heterogeneous_weight: tuple[float, float] = (0.5, 0.1)
    """CNL: weight of the losses across modalities, stage 1 and stage 2."""
    visible_to_infrared_weight: float = 0.1
    """CNL: further weight of visible anchors with infrared targets (even epochs)."""
    infrared_to_visible_weight: float = 1.0
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
    epochs: int = 50
    """Epochs of both stages together."""
    stage2_from: int = 30
    """First epoch of stage 2; it starts from the selected stage-1 weights."""
    steps_stage1: int = 200
    """Steps an epoch in stage 1."""
    steps_stage2: int = 100
    """Steps an epoch in stage 2."""
    learning_rate: float = 3.5e-4
    """SGD's learning rate in the first epochs."""
    sgd_momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 5e-4
    """On every trained parameter, normalisations included."""
    lr_step: int = 20
    """The learning rate falls to a tenth every so many epochs."""
    seed: int = 1
    """Everything random in an epoch follows from this, the trial and the epoch."""
    bn_replicas: int = 2
    """Groups of a batch that are batch-normalised apart, as on the published runs' GPUs (section 9.6); independent of
    the number of GPUs here."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the network: float32 as published, TF32 matrix products, or bfloat16 autocast; embeddings, losses
    and memories are float32 always."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: much less GPU memory, a third more
    time, the same result."""
    accumulate: int = 1
    """Take each step's rows through the transformer in so many parts, each computed again in the backward pass: about
    so many times less GPU memory for activations, a third more time. Losses, memories and batch statistics see the
    whole batch all the same; stochastic depth draws in another order."""
    compile: bool = False
    """Run the network as fused kernels (torch.compile; it needs a compiler and takes its time at the start). The same
    computation, rounded differently, as on another GPU. Not together with --parallel dp."""
    channels_last: bool = False
    """Keep the convolutional stems' weights in channels-last order, which some GPUs prefer, above all with --precision
    bf16; scripts/bench_step.py tells whether yours does. The same result up to rounding."""
    parallel: Literal["auto", "dp", "none"] = "auto"
    """A single process and several GPUs: dp spreads the batch-normalisation replicas over them (DataParallel), none
    keeps to one GPU, auto is dp where there are GPUs enough (with --compile: none)."""
    deterministic: bool = False
    """Use deterministic device kernels only, so that two runs on one machine have equal logs and weights. On the CPU
    they have anyway; on a GPU it costs some speed."""
    on_degenerate: Literal["stop", "keep-labels"] = "stop"
    """When clustering finds too little to learn from (fewer than two clusters, less than a batch, no association):
    stop and say why, or train on with the labels of the last epoch that had good ones."""
    resume: Literal["never", "auto", "always", "changed"] = "never"
    """Go on from the run folder's last checkpoint: auto, if there is one; always (also `--resume` alone), or fail.
    These refuse other settings than the run began with; changed takes them from the next epoch on. Never: refuse a
    folder that holds a run."""
    truth: bool = True
    """Compare pseudo-labels with the true identities for the log (purity, association accuracy). They never train."""
    tensorboard: bool = True
    """Write the log's numbers as curves for TensorBoard too, into the run folder's tensorboard/."""
    select: Literal["test-rank1", "last"] = "test-rank1"
    """The epoch that is kept as best and that stage 2 starts from: by Rank-1 on the test set, as published, or simply
    the last one."""

    def __post_init__(self) -> None:
        problems = [
            (self.epochs < 1, f"epochs is {self.epochs}: at least 1"),
            (
                self.identities < 1 or self.instances < 1,
                f"a batch of {self.identities} identities x {self.instances} instances is empty",
            ),
            (not 0 < self.eps < 1, f"eps is {self.eps}: Jaccard distances lie between 0 and 1"),
            (
                min(self.k1, self.k1_visible_stage2, self.k2, self.association_k, self.smooth_k) < 1,
                "k1, k2, association-k and smooth-k are at least 1",
            ),
            (self.min_samples < 1, f"min-samples is {self.min_samples}: at least 1"),
            (
                min(self.steps_stage1, self.steps_stage2) < 1,
                f"steps-stage1 and steps-stage2 are {self.steps_stage1} and {self.steps_stage2}: at least 1 each",
            ),
            (self.temperature <= 0, f"temperature is {self.temperature}: above 0"),
            (self.workers < 0, f"workers is {self.workers}: 0 (read images in this process) or more"),
            (self.embedding_batch < 1, f"embedding-batch is {self.embedding_batch}: at least 1"),
            (self.bn_replicas < 1, f"bn-replicas is {self.bn_replicas}: at least 1"),
            (
                self.identities * self.instances < 2 * self.bn_replicas,
                f"a batch of {self.identities} x {self.instances} images is too small for {self.bn_replicas} "
                "batch-normalisation replicas",
            ),
            (
                self.identities * self.instances % max(1, self.bn_replicas) != 0,
                f"a batch of {self.identities} identities x {self.instances} instances = {self.batch_size} images does "
                f"not divide into {self.bn_replicas} equal batch-normalisation replicas: change --instances or "
                "--bn-replicas",
            ),
            (self.trial is not None and not 1 <= self.trial <= 10, f"trial is {self.trial}: RegDB has trials 1 to 10"),
            (
                self.trial is not None and self.dataset != "regdb",
                "trial belongs to RegDB alone; other data sets have one training set",
            ),
            (self.accumulate < 1, f"accumulate is {self.accumulate}: 1 (the whole batch at once) or more parts"),
            (
                self.compile and self.parallel == "dp",
                "--compile does not go with --parallel dp: start a process for each GPU, torchrun --nproc-per-node "
                f"{self.bn_replicas}",
            ),
            (self.lr_step < 1, f"lr-step is {self.lr_step}: at least 1"),
        ]
        for wrong, message in problems:
            if wrong:
                raise UserError(message)

    @property
    def batch_size(self) -> int:
        """Images of one modality in a step (128); the step sees two views of each visible one."""
        return self.identities * self.instances

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
        "data_dir",
        "run_dir",
        "workers",
        "embedding_batch",
        "image_cache",
        "resume",
        "published_counts",
        "gradient_checkpointing",
        "accumulate",
        "compile",
        "channels_last",
        "parallel",
        "trial",  # the checkpoint's own trial is compared with the one that is trained
        "skip_unreadable",  # the fingerprint tells whether files changed
        "deterministic",
        "on_degenerate",
        "truth",
        "tensorboard",
    )

    def differences(self, other: Config) -> list[str]:
        """Options whose values differ and that change what is computed, as `--eps 0.6 (was 0.5)`; empty: one run can
        go on as the other."""
        mine, theirs = self.to_json(), other.to_json()
        mine, theirs = ({**d.pop("model"), **d} for d in (mine, theirs))
        return [
            f"--{k.replace('_', '-')} {mine[k]} (was {theirs[k]})"
            for k in mine
            if k not in self.NOT_IN_RESULT and mine[k] != theirs[k]
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, strings and lists, for config.json and checkpoints."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value

        return plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str | Path = "the saved settings") -> Config:
        """The inverse of `to_json`. Raises UserError for names that are missing or that this version does not know;
        where: the file that they come from, for the message."""
        unknown = sorted([
            *(data.keys() - {f.name for f in dataclasses.fields(cls)}),
            *(data.get("model", {}).keys() - {f.name for f in dataclasses.fields(ModelConfig)}),
        ])
        if unknown:
            raise UserError(
                f"{where}: it has settings that this version does not know ({', '.join(unknown)}); use the version "
                "that wrote it"
            )
        absent = sorted({"dataset", "data_dir", "run_dir", "model"} - data.keys())
        if absent:
            raise UserError(f"{where}: its settings lack {', '.join(absent)}; it is not of a run of this project")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values |= {
            "model": ModelConfig(**data["model"]),
            "data_dir": Path(data["data_dir"]),
            "run_dir": Path(data["run_dir"]),
            "image_cache": Path(data["image_cache"]) if data.get("image_cache") else None,
        }
        return cls(**values)
