"""SDCL: shallow-deep collaborative learning for unsupervised visible-infrared person re-identification (CVPR 2024).

The names below are the library; `train_sdcl.py` shows how they make the method. Each is imported when it is first asked
for, so that a tool that needs one of them does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdcl.version import __version__

if TYPE_CHECKING:
    from sdcl.clustering import cluster, jaccard_distance
    from sdcl.cnl import neighbor_loss, neighbor_mask
    from sdcl.config import PRESETS, Config, ModelConfig
    from sdcl.cra import associate
    from sdcl.evaluation import Metrics, regdb_metrics, sysu_gallery, sysu_metrics, sysu_query
    from sdcl.memory import ClusterMemory, InstanceMemory, cluster_centers
    from sdcl.models import (
        Embeddings,
        LoadReport,
        SDCLModel,
        build_model,
        embed,
        load_backbone,
        load_checkpoint,
        save_published_format,
    )

_ROOMS = {
    "clustering": ("cluster", "jaccard_distance"),
    "cnl": ("neighbor_loss", "neighbor_mask"),
    "config": ("PRESETS", "Config", "ModelConfig"),
    "cra": ("associate",),
    "evaluation": ("Metrics", "regdb_metrics", "sysu_gallery", "sysu_metrics", "sysu_query"),
    "memory": ("ClusterMemory", "InstanceMemory", "cluster_centers"),
    "models": (
        "Embeddings", "LoadReport", "SDCLModel", "build_model", "embed", "load_backbone", "load_checkpoint",
        "save_published_format",
    ),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "PRESETS", "ClusterMemory", "Config", "Embeddings", "InstanceMemory", "LoadReport", "Metrics", "ModelConfig",
    "SDCLModel", "__version__", "associate", "build_model", "cluster", "cluster_centers", "embed",
    "jaccard_distance", "load_backbone", "load_checkpoint", "neighbor_loss", "neighbor_mask", "regdb_metrics",
    "save_published_format", "sysu_gallery", "sysu_metrics", "sysu_query",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'sdcl' has no attribute '{name}'")
    return getattr(import_module(f"sdcl.{_ROOM_OF[name]}"), name)
