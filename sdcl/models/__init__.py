"""The network and its weight files."""

from sdcl.models.compiled import channels_last_stems, compile_parts
from sdcl.models.sdcl_model import Embeddings, SDCLModel
from sdcl.models.weights import (
    LoadReport,
    build_model,
    load_backbone,
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
    "compile_parts",
    "load_backbone",
    "load_checkpoint",
    "published_names",
    "published_state_dict",
    "published_unused",
    "save_published_format",
]
