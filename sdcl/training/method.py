"""SDCL as the shared programs see it: its network, what they compare, what was published, its part of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdcl.config import PRESETS, Config
from sdcl.frame.method import Method
from sdcl.models import Embeddings, SDCLModel, load_checkpoint, retrieval_features
from sdcl.models.features import embed_levels
from sdcl.training.published import PUBLISHED

if TYPE_CHECKING:
    from sdcl.report.markup import Section
    from sdcl.report.page import ReportedRun

__all__ = ["METHOD"]


def _build(config: Config) -> SDCLModel:
    model = SDCLModel(dataclasses.replace(config.model, pretrained=None))
    model.initialise()
    return model


def _features(levels: dict[str, Tensor], config: Config, final: bool) -> dict[str, Tensor]:
    """The concatenated embedding; SYSU-MM01's final test adds the two levels' cosines (section 8)."""
    each_level = final and config.dataset == "sysu"
    return {"concatenated": retrieval_features(Embeddings(**levels), each_level, config.shallow)}


def _sections(reported: ReportedRun) -> Iterator[Section]:
    from sdcl.training import report  # for reports alone

    yield report.attention(reported)
    yield report.augmentation(reported)


def _next_labels(folder: Path, data_dir: Path | None) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    from sdcl.training.export import next_labels  # for exports alone

    return next_labels(folder, data_dir)


METHOD = Method(
    name="sdcl",
    title="SDCL",
    presets=PRESETS,
    build=_build,
    embed=embed_levels,
    mirror=True,
    features=_features,
    load_other=load_checkpoint,
    terms=("cluster_", "neighbor_"),
    parts={"stage1": "stage 1 alone"},
    published=PUBLISHED,
    sections=_sections,
    # Without CRA there is no second stage: the first one trains for as many epochs instead.
    ablation={
        "baseline": ("baseline", ["--no-shallow", "--no-cnl", "--no-cra"]),
        "shallow-deep": ("+ shallow-deep", ["--no-cnl", "--no-cra"]),
        "cnl": ("+ CNL", ["--no-cra"]),
        "cra": ("+ CRA", []),
    },
    next_labels=_next_labels,
)
