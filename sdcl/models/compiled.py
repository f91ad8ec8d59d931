"""Other ways to run the same network: compiled (`--compile`), stems in channels-last order (`--channels-last`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from sdcl.errors import UserError
from sdcl.models.sdcl_model import SDCLModel

__all__ = ["channels_last_stems", "compile_parts"]


def compile_parts(model: SDCLModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles stems, blocks and heads, each by itself and in place: names of the weights and checkpoints stay.

    The blocks share one piece of compiled code. It is made when it is first run, for training and for evaluation, and
    again when the number of rows changes. Random numbers (stochastic depth) are drawn as without it. Not for use under
    DataParallel, whose copies of a compiled layer would compute with the first GPU's weights.

    Raises:
        UserError: there is no compiler.
    """
    options = None
    if backend == "inductor":
        _check_compiler(model.cls_token.device.type)
        options = {"fallback_random": True}
    for part in (model.stem_visible, model.stem_infrared, *model.blocks, model.deep_head, model.shallow_head):
        part.compile(backend=backend, options=options)


def channels_last_stems(model: SDCLModel) -> None:
    """Puts the stems' weights into channels-last order in place; shapes, names and checkpoints stay.

    Convolutions then work in that order; instance normalisation brings half of the maps back.
    """
    for stem in (model.stem_visible, model.stem_infrared):
        stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_compiler(device: str) -> None:
    if device == "cuda" and find_spec("triton") is None:
        raise UserError("--compile needs Triton on a GPU: pip install triton, or leave --compile out")
    variable, usual = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++",))
    names = tuple(os.environ.get(variable, "").split()[:1]) or usual
    if not any(map(shutil.which, names)):
        raise UserError(
            f"--compile needs a compiler, and {' or '.join(names)} was not found. Install it, name one in "
            f"${variable}, or leave --compile out"
        )
