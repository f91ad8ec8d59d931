"""The network and its weight files."""

from sdcl.models.backbones import build_model, load_backbone
from sdcl.models.compiled import channels_last_stems, compile_parts
from sdcl.models.features import clustering_features, embed, retrieval_features
from sdcl.models.sdcl_model import Embeddings, SDCLModel
from sdcl.models.weights import (
    LoadReport,
    load_checkpoint,
    published_names,
    published_state_dict,
    published_unused,
    save_published_format,
)

__all__ = [
    "Embeddings",
    "LoadReport",
    "SDCLModel",
    "build_model",
    "channels_last_stems",
    "clustering_features",
    "compile_parts",
    "embed",
    "load_backbone",
    "load_checkpoint",
    "published_names",
    "published_state_dict",
    "published_unused",
    "retrieval_features",
    "save_published_format",
]
