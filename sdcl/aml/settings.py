"""AML's settings: its four phases and every number of their published schedules (method page, section 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sdcl.aml.schedule import Schedule
from sdcl.errors import UserError
from sdcl.settings import Count, NonNegative, Positive, Range, RunSettings, Share

__all__ = ["PHASES", "Config", "ModelConfig", "Part", "Phase", "PhaseSettings"]

Phase = Literal["source", "source_mutual", "target_dbscan", "target_kmeans"]
PHASES: tuple[Phase, ...] = ("source", "source_mutual", "target_dbscan", "target_kmeans")
"""In the order in which they follow on each other."""
STYLES = {"sysu": "sysumm01", "sysu02": "sysumm02", "regdb": "regdb"}
"""Target to the ending of the folders of partners that were generated in its style."""

Steps = Annotated[int, Range(0, 10**7)]
Batch = Annotated[int, Range(2, 10_000)]


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """`Config` resolved for one phase, by the names of the method page's table. Losses' and pseudo-labels' settings of
    the other stage mean nothing in it."""

    stage: Literal[1, 2]
    iterations: int
    batch_size: int
    instances: int
    """Rows of a label in a batch."""
    height: int
    width: int
    optimizer: str = "Adam"
    learning_rate: float
    warmup_iterations: int
    warmup_factor: float
    delay_iterations: int
    """Step that the cosine begins at: the rate is flat from the end of the warm-up until then."""
    min_learning_rate: float
    weight_decay: float
    kl_weight: float
    similarity_weight: float
    evaluate_every: int
    """Steps between tests on the way; 0: at the end alone."""
    label_smoothing: float
    circle_scale: float
    circle_margin: float
    generated_share: float
    generated_folder: str
    memory_momentum: float
    memory_temperature: float
    eps: float
    min_samples: int
    k1: int
    k2: int
    clusters: int | None
    """Of k-means, in each modality; None: DBSCAN."""
    recluster: int | Literal["epoch"]

    @property
    def schedule(self) -> Schedule:
        """Learning rate of each step."""
        return Schedule(
            base=self.learning_rate,
            iterations=self.iterations,
            warmup=self.warmup_iterations,
            flat_until=self.delay_iterations,
            factor=self.warmup_factor,
            lowest=self.min_learning_rate,
        )

    def steps_of(self, rows: int) -> int:
        """Steps from a clustering that kept so many rows to the next one (section 6, "When")."""
        return self.recluster if isinstance(self.recluster, int) else max(1, rows // self.batch_size)


@dataclass(frozen=True)
class Part:
    """What lies between two saves: steps first … last-1 of a phase. test: whether a test follows."""

    phase: Phase
    first: int
    last: int
    test: bool


@dataclass(frozen=True)
class ModelConfig:
    """Both networks' architecture, which a test takes from the checkpoint."""

    image_height: Annotated[int, Range(16, 4096)] = 384
    """Pixels."""
    image_width: Annotated[int, Range(16, 4096)] = 128
    """Pixels."""
    blocks: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    """Blocks of the four layers; those of ResNet-50."""
    channels: Annotated[int, Range(1, 1024)] = 64
    """Channels of the first convolution; features have 32 times as many."""
    feature_norm: Literal[1, 2] = 1
    """Norm that test features are divided by. 1, the sum of absolute values, is published and plainly a slip: rows keep
    unequal lengths, so that Euclidean order is not that of cosines, V's weights are all but equal, longer rows weigh
    more in centres, and k-means stops early. 2 is what was meant."""
    pretrained: Path | None = None
    """ImageNet weights of ResNet-50 in torchvision's names, which both networks start from. None: random ones."""


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Settings of a run. Numbers without a remark are published, for all data sets unless they say otherwise."""

    model: ModelConfig = field(default_factory=ModelConfig)
    phase: Phase | None = None
    """Begin with this phase, from the weights that the one before it left in the run folder (or --start-from), and go
    on through the later ones. None: begin at the beginning."""
    until: Phase | None = None
    """The last phase. None: all."""
    start_from: Path | None = None
    """The weights that the first phase starts from: a phase's file of another run, or a published checkpoint."""

    # Source
    source_dir: Path = Path("data/market1501_gen")
    """market1501_gen: images, generated infrared partners and pseudo-labels."""
    source_labels: Path | None = None
    """Pseudo-labels of the source, pickled or text (`name label`). None: the file in `source_dir`. "names": the
    identities in the file names, which makes the source supervised."""
    generated_style: str | None = None
    """Ending of the folders of generated partners. None: the one of the target (sysumm01, sysumm02, regdb)."""
    generated_share: Share = 0.2
    """Share of the generated partner in the transformed view; the rest is the image's channel view."""
    shared_geometry: bool = False
    """Flip, shift and erase an image and its partner alike. Published: each by draws of its own, so that their pixels
    do not correspond."""

    # Schedules
    source_iterations: Count = 15_000
    """Steps of each of the two source phases."""
    target_iterations: Count = 12_000
    """Steps of each of the target's phases."""
    source_batch: Batch = 64
    """Images in a batch; KL and SIM are sums over it, so their weights hold for this number."""
    target_batch: Batch = 128
    """The same in the target's phases."""
    instances: Annotated[int, Range(2, 1000)] = 16
    """Images of a label in a batch."""
    source_learning_rate: Positive = 3.5e-4
    """Adam's rate after the warm-up."""
    target_learning_rate: Positive = 1e-4
    """The same in the target's phases."""
    warmup_iterations: Steps = 2_000
    """Steps of linear warm-up."""
    warmup_factor: Share = 0.01
    """Share of the rate that the warm-up begins with."""
    source_delay_iterations: Steps = 9_000
    """Step at which the cosine begins."""
    target_delay_iterations: Steps = 2_000
    """The same in the target's phases: right after the warm-up."""
    min_learning_rate: NonNegative = 7.7e-7
    """Rate that the cosine ends at."""
    weight_decay: NonNegative = 5e-4
    """Added to the gradient of every trained parameter, pooling exponent and neck included."""
    save_every: Count = 251
    """Save after at most so many steps (a clustering and where its batches stand are part of what is saved)."""
    evaluate_every: Steps = 1_001
    """Steps between tests of the target's phases; 0: at their ends alone. Nothing is chosen by a test."""

    # Losses
    label_smoothing: Share = 0.1
    """Weight of all other classes together in the source's cross-entropy."""
    circle_scale: Positive = 64.0
    """γ of the circle logits."""
    circle_margin: Share = 0.35
    """m of the circle logits."""
    mutual_kl_weight: NonNegative = 0.1
    """Of the KL terms in the second source phase; the first has none."""
    source_similarity_weight: NonNegative = 0.5
    """Of the SIM terms in the source phases."""
    target_kl_weight: NonNegative = 0.01
    """Of the KL term in the target's phases."""
    target_similarity_weight: NonNegative = 0.05
    """Of the SIM term in the target's phases."""

    # Target
    carry_head: bool = False
    """Keep the neck and pooling exponent of the source phases. Published: they start afresh, since the files of the
    two stages name them differently."""
    eps: Annotated[float, Range(0, 1, above=True, below=True)] = 0.4
    """DBSCAN's radius on the Jaccard distance."""
    min_samples: Count = 4
    """DBSCAN: neighbours, itself included, that make a row a core row."""
    k1: Count = 30
    """Size of the k-reciprocal neighbour lists."""
    k2: Count = 6
    """Neighbours over which the weights of the Jaccard distance are averaged."""
    clusters: Annotated[int, Range(2, 10**6)] = 400
    """Clusters of k-means in each modality; a little above the number of people."""
    recluster_every: Steps = 0
    """Steps between clusterings (RegDB: 200). 0: an epoch, as many steps as the rows of the last one fill batches."""
    memory_momentum: Share = 0.2
    """Share that a cluster centre keeps at each update."""
    memory_temperature: Positive = 0.05
    """Temperature of the target's cross-entropy."""
    truth: bool = True
    """Compare pseudo-labels with the true identities for the log, where these are known. They never train."""

    crop_padding: Annotated[int, Range(0, 1000)] = 10
    """Augmentation: pixels of black around the image from which a crop of its size is cut."""
    galleries: Literal["seeded", "official"] = "official"
    """SYSU-MM01: gallery images of a test by the data set's own exp/rand_perm_cam.mat, as published, or by Python's
    generator as in most code: other images, the same sizes and expected results. A table must say which."""
    precision: Literal["fp32", "tf32", "bf16"] = "bf16"
    """Arithmetic of the networks in training: mixed precision as in the published runs (there float16 with a scaler),
    TF32 matrix products, or float32. Losses, memories, clustering and tests are float32 always."""
    select: Literal["test-rank1", "last"] = "last"
    """The weights that are the result: the last ones, as published, or the tested ones with the best Rank-1 on the test
    set."""

    NOT_IN_RESULT: ClassVar[tuple[str, ...]] = (
        *RunSettings.NOT_IN_RESULT,
        "source_dir",
        "start_from",
        "truth",
        "until",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        phases = self.phases
        problems = [
            (
                self.phase == "target_dbscan" and self.dataset == "regdb",
                "RegDB has no DBSCAN phase: its phases are source, source_mutual and target_kmeans",
            ),
            (not phases, f"--phase {self.phase} comes after --until {self.until}: there is nothing to do"),
            (
                self.start_from is not None and self.first_phase == "source",
                "--start-from is for a later phase: name it with --phase (the source phase starts from --pretrained)",
            ),
            *(
                (
                    batch % self.instances != 0 or batch < 2 * self.instances,
                    f"a batch of {batch} images is not of two or more labels with --instances {self.instances} each",
                )
                for batch in (self.source_batch, self.target_batch)
            ),
        ]
        for wrong, message in problems:
            if wrong:
                raise UserError(message)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.model.image_height, self.model.image_width

    @property
    def rank_on(self) -> Literal["identities", "images"]:
        return "identities"  # on RegDB too, where others count images (section 10)

    @property
    def style(self) -> str:
        """Ending of the folders of generated partners."""
        return self.generated_style or STYLES[self.dataset]

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """Those of the data set: RegDB has no DBSCAN phase."""
        return tuple(p for p in PHASES if not (self.dataset == "regdb" and p == "target_dbscan"))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those of this run."""
        first = PHASES.index(self.first_phase)
        last = PHASES.index(self.until) if self.until else len(PHASES) - 1
        return tuple(p for p in self.all_phases if first <= PHASES.index(p) <= last)

    @property
    def first_phase(self) -> Phase:
        return self.phase or "source"

    def before(self, phase: Phase) -> Phase | None:
        """The phase whose weights this one starts from; None: it starts from ImageNet's."""
        place = self.all_phases.index(phase)
        return self.all_phases[place - 1] if place else None

    def at(self, phase: Phase) -> PhaseSettings:
        """A phase's settings (section 8). ValueError for one that the data set has not."""
        if phase not in self.all_phases:
            raise ValueError(f"{self.dataset} has no phase {phase!r}")
        source = phase in ("source", "source_mutual")
        source_kl_weight = self.mutual_kl_weight if phase == "source_mutual" else 0.0
        return PhaseSettings(
            stage=1 if source else 2,
            iterations=self.source_iterations if source else self.target_iterations,
            batch_size=self.source_batch if source else self.target_batch,
            instances=self.instances,
            height=self.model.image_height,
            width=self.model.image_width,
            learning_rate=self.source_learning_rate if source else self.target_learning_rate,
            warmup_iterations=self.warmup_iterations,
            warmup_factor=self.warmup_factor,
            delay_iterations=self.source_delay_iterations if source else self.target_delay_iterations,
            min_learning_rate=self.min_learning_rate,
            weight_decay=self.weight_decay,
            kl_weight=source_kl_weight if source else self.target_kl_weight,
            similarity_weight=self.source_similarity_weight if source else self.target_similarity_weight,
            evaluate_every=0 if source else self.evaluate_every,
            label_smoothing=self.label_smoothing,
            circle_scale=self.circle_scale,
            circle_margin=self.circle_margin,
            generated_share=self.generated_share,
            generated_folder=self.style,
            memory_momentum=self.memory_momentum,
            memory_temperature=self.memory_temperature,
            eps=self.eps,
            min_samples=self.min_samples,
            k1=self.k1,
            k2=self.k2,
            clusters=self.clusters if phase == "target_kmeans" else None,
            recluster=self.recluster_every or "epoch",
        )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts of the run, in order: as few as leave at most `save_every` steps between two saves."""
        parts = []
        for phase in self.phases:
            settings = self.at(phase)
            every = settings.evaluate_every or settings.iterations
            for start in range(0, settings.iterations, every):
                stop = min(start + every, settings.iterations)
                count = math.ceil((stop - start) / self.save_every)
                ends = [start + (stop - start) * k // count for k in range(count + 1)]
                parts += [Part(phase, a, b, b == stop) for a, b in zip(ends, ends[1:], strict=False)]
        return tuple(parts)

    @property
    def epochs(self) -> int:
        return len(self.parts)

    def stage_name(self, epoch: int) -> str:
        part = self.parts[epoch]
        return f"{part.phase} steps {part.first}-{part.last - 1}"

    def less_memory(self) -> list[str]:
        """Settings that need less memory in training."""
        smaller = [f"--{name}-batch {getattr(self, f'{name}_batch') // 2}" for name in ("source", "target")]
        return [f"{' '.join(smaller)} (KL and SIM are sums over a batch: double their weights)"]
