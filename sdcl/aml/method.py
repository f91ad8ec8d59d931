"""AML as the shared programs see it: network 1 alone, compared by Euclidean distance (method page, section 10)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sdcl.aml.network import Network
from sdcl.aml.presets import PRESETS
from sdcl.aml.settings import Config
from sdcl.aml.weights import load_published
from sdcl.frame.method import Method

__all__ = ["METHOD", "build"]


def build(config: Config) -> Network:
    """One of the two networks, with random weights."""
    return Network(config.model.blocks, config.model.channels, config.model.feature_norm)


def _embed(network: Network, images: Tensor, modality: str) -> dict[str, Tensor]:
    """Test features; in float32 whatever the precision of training (section 13.7)."""
    with torch.autocast(images.device.type, enabled=False):
        return {"p1": network.test_features(images)}


def _features(levels: dict[str, Tensor], config: Config, final: bool) -> dict[str, Tensor]:
    return levels


def _closeness(query: Tensor, gallery: Tensor) -> Tensor:
    """Euclidean distance with a minus: on rows of unequal length this is not the order of cosines."""
    return -torch.cdist(query.double(), gallery.double(), compute_mode="use_mm_for_euclid_dist")


def _load_published(network: Network, path: Path) -> None:
    load_published(path, network)


METHOD = Method(
    name="aml",
    title="AML",
    presets=PRESETS,
    build=build,
    embed=_embed,
    mirror=True,
    features=_features,
    similarity=_closeness,
    interpolation="bicubic",
    load_other=_load_published,
    terms=("cross_entropy_", "triplet_", "kl", "sim"),
    parts={
        "source": "after the source",
        "source_mutual": "after mutual learning",
        "target_dbscan": "after the DBSCAN phase",
    },
)
