"""Running parts of a network as fused kernels (`--compile`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from sdcl.errors import UserError

__all__ = ["compile_modules"]


def compile_modules(
    modules: Iterable[nn.Module], device: torch.device, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compiles each module by itself and in place: names of the weights and checkpoints stay.

    Code is made when a module is first run, for training and for evaluation, and again when the number of rows changes.
    Random numbers are drawn as without it.

    Raises:
        UserError: there is no compiler.
    """
    options = None
    if backend == "inductor":
        _check_compiler(device.type)
        options = {"fallback_random": True}
    for module in modules:
        module.compile(backend=backend, options=options)


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
