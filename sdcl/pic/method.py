"""PIC as the shared programs see it."""

from __future__ import annotations

from torch import Tensor

from sdcl.frame.method import Method
from sdcl.frame.published import Published
from sdcl.pic.network import PICNetwork
from sdcl.pic.presets import PRESETS
from sdcl.pic.settings import PICConfig
from sdcl.pic.views import INTERPOLATION
from sdcl.pic.weights import load_published

__all__ = ["METHOD"]


def _build(config: PICConfig) -> PICNetwork:
    # A published file says itself how many identities it was trained on.
    return PICNetwork(config, config.model.classes or 1)


def _features(levels: dict[str, Tensor], config: PICConfig, final: bool) -> dict[str, Tensor]:
    """Both kinds; the one behind the bottleneck chooses the best epoch."""
    return {"normalised": levels["normalised"], "pooled": levels["pooled"]}


METHOD = Method(
    name="pic",
    title="PIC",
    presets=PRESETS,
    build=_build,
    embed=PICNetwork.embed,
    features=_features,
    interpolation=INTERPOLATION,
    load_other=load_published,
    supervised=True,
    terms=("identity", "triplet", "soft_"),
    published=Published(
        results={"sysu": {"all_search": {"rank1": 0.575}}, "regdb": {"visible_to_thermal": {"rank1": 0.836}}},
        source="the authors' README; all-search and visible to infrared are our reading",
    ),
    ablation={
        "baseline": ("baseline (identity + triplet)", ["--no-mean-branches"]),
        "mean-branches": ("+ crossed mean teaching", []),
    },
)
