"""Other ways to run the same network: compiled (`--compile`), stems in channels-last order (`--channels-last`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sdcl.frame.compiling import compile_modules
from sdcl.models.sdcl_model import SDCLModel

__all__ = ["channels_last_stems", "compile_parts"]


def compile_parts(model: SDCLModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles stems, blocks and heads, each by itself and in place (`sdcl.frame.compiling`).

    The blocks share one piece of compiled code. Not for use under DataParallel, whose copies of a compiled layer would
    compute with the first GPU's weights.

    Raises:
        UserError: there is no compiler.
    """
    parts = (model.stem_visible, model.stem_infrared, *model.blocks, model.deep_head, model.shallow_head)
    compile_modules(parts, model.cls_token.device, backend)


def channels_last_stems(model: SDCLModel) -> None:
    """Puts the stems' weights into channels-last order in place; shapes, names and checkpoints stay.

    Convolutions then work in that order; instance normalisation brings half of the maps back.
    """
    for stem in (model.stem_visible, model.stem_infrared):
        stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
