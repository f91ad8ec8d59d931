"""AML's four phases and their published settings (method page, section 8)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sdcl.aml.schedule import Schedule

__all__ = ["PHASES", "PhaseSettings", "phases_of", "published"]

PHASES = ("source", "source_mutual", "target_dbscan", "target_kmeans")
"""In the order in which they follow on each other."""
GENERATED_FOLDERS = {"sysu": "sysumm01", "sysu02": "sysumm02", "regdb": "regdb"}
"""Target to the ending of the folders of generated partners in its style (`market1501_train_<ending>`)."""


@dataclass(frozen=True)
class PhaseSettings:
    """Everything that one phase needs to know; None where a setting means nothing in it."""

    stage: Literal[1, 2]
    iterations: int
    batch_size: int
    instances: int
    """Rows of a label in a batch."""
    kl_weight: float
    similarity_weight: float
    learning_rate: float
    delay_iterations: int
    """Step that the cosine begins at: flat from the end of the warm-up until then."""
    evaluate_every: int
    """Steps between tests on the way; 0: at the end alone."""
    label_smoothing: float | None = None
    circle_scale: float | None = None
    circle_margin: float | None = None
    generated_share: float | None = None
    generated_folder: str | None = None
    memory_momentum: float | None = None
    memory_temperature: float | None = None
    eps: float | None = None
    min_samples: int | None = None
    k1: int | None = None
    k2: int | None = None
    clusters: int | None = None
    """Of k-means, in each modality."""
    recluster: int | Literal["epoch"] | None = None
    """Steps between clusterings; "epoch": when as many images have been seen as the last one kept."""
    height: int = 384
    width: int = 128
    warmup_iterations: int = 2_000
    warmup_factor: float = 0.01
    min_learning_rate: float = 7.7e-7
    weight_decay: float = 5e-4
    optimizer: str = "Adam"

    @property
    def schedule(self) -> Schedule:
        """Learning rate of each step."""
        return Schedule(self.learning_rate, self.iterations, self.warmup_iterations, self.delay_iterations,
                        self.warmup_factor, self.min_learning_rate)  # fmt: skip

    def epoch_steps(self, rows: int) -> int | None:
        """Steps from a clustering that kept so many rows to the next; None: there is none (stage 1)."""
        if self.recluster == "epoch":
            return max(1, rows // self.batch_size)
        return self.recluster


SOURCE = PhaseSettings(
    stage=1, iterations=15_000, batch_size=64, instances=16, kl_weight=0.0, similarity_weight=0.5,
    learning_rate=3.5e-4, delay_iterations=9_000, evaluate_every=0,
    label_smoothing=0.1, circle_scale=64.0, circle_margin=0.35, generated_share=0.2,
)  # fmt: skip
TARGET = PhaseSettings(
    stage=2, iterations=12_000, batch_size=128, instances=16, kl_weight=0.01, similarity_weight=0.05,
    learning_rate=1e-4, delay_iterations=2_000, evaluate_every=1_001, recluster="epoch",
    memory_momentum=0.2, memory_temperature=0.05,
)  # fmt: skip


def phases_of(dataset: str) -> tuple[str, ...]:
    """The phases of a target, in order: RegDB has no DBSCAN phase."""
    return tuple(p for p in PHASES if not (dataset == "regdb" and p == "target_dbscan"))


def published(dataset: str, phase: str) -> PhaseSettings:
    """Settings of a phase as published. dataset: sysu, sysu02 or regdb. ValueError for a phase that it has not."""
    if dataset not in GENERATED_FOLDERS or phase not in phases_of(dataset):
        raise ValueError(f"{dataset} has no phase {phase!r}")
    if phase in ("source", "source_mutual"):
        weight = 0.1 if phase == "source_mutual" else 0.0
        return dataclasses.replace(SOURCE, kl_weight=weight, generated_folder=GENERATED_FOLDERS[dataset])
    if phase == "target_dbscan":
        return dataclasses.replace(TARGET, eps=0.4, min_samples=4, k1=30, k2=6)
    return dataclasses.replace(TARGET, clusters=400, recluster=200 if dataset == "regdb" else "epoch")
