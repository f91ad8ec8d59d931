"""CCLNet as the shared programs see it: its network, what they compare, what was published, its part of the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdcl.cclnet.model import CCLNetModel, ImageNetwork
from sdcl.cclnet.presets import PRESETS
from sdcl.cclnet.settings import Config
from sdcl.cclnet.weights import load_clip, load_published_image
from sdcl.frame.embedding import Levels
from sdcl.frame.method import Method
from sdcl.frame.published import Published
from sdcl.seeds import seed_everything

if TYPE_CHECKING:
    from sdcl.report.markup import Section
    from sdcl.report.page import ReportedRun

__all__ = ["METHOD", "embed_projections", "initial_model"]


def initial_model(config: Config, trial: int) -> CCLNetModel:
    """The model with the weights that every stage starts from (section 2), on the CPU; no sentence yet.

    Raises:
        UserError: no CLIP weights where the settings say, or others than the network's.
    """
    seed_everything(config.seed, trial, "weights")
    model = CCLNetModel(config.model)
    if config.text == "random":
        model.language.initialise()
    load_clip(model, config.clip, text=config.text == "clip")
    return model


def _build(config: Config) -> ImageNetwork:
    return ImageNetwork(config.model)


def _embed(network: ImageNetwork, images: Tensor, modality: str) -> Levels:
    return {"features": network(**{modality: images}).features}


def embed_projections(network: ImageNetwork, images: Tensor, modality: str) -> Levels:
    """Like `METHOD.embed`, for what is compared with texts."""
    projections = network(**{modality: images}, project=True).projections
    assert projections is not None
    return {"projections": projections}


def _features(levels: Levels, config: Config, final: bool) -> Levels:
    return levels


def _sections(reported: ReportedRun) -> Iterator[Section]:
    from sdcl.cclnet.report import sentences  # for reports alone

    return sentences(reported)


def _next_labels(folder: Path, data_dir: Path | None) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    from sdcl.cclnet.export import next_labels  # for exports alone

    return next_labels(folder, data_dir)


METHOD = Method(
    name="cclnet",
    title="CCLNet",
    presets=PRESETS,
    build=_build,
    embed=_embed,
    features=_features,
    load_other=load_published_image,
    terms=("contrast_", "text_", "prompt"),
    parts={"stage0": "stage 0 alone"},
    published=Published(
        results={"sysu": {"all_search": {"rank1": 0.5531, "mAP": 0.5038}}},
        source="the published program's notes on SYSU-MM01 (the paper's abstract: Rank-1 54.0)",
    ),
    sections=_sections,
    ablation={
        "contrast": ("cluster contrast (stage 0)", ["--stage", "0", "--mix-share", "1"]),
        "prompts": ("+ image-to-text (stages 1, 2)", ["--mix-share", "1"]),
        "mixing": ("+ mixed clusters", []),
    },
    next_labels=_next_labels,
)
