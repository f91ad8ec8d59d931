"""Reading a weight file safely, and copying its tensors into a model all at once or not at all."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from sdcl.errors import UserError

__all__ = ["fill", "first_names", "read_plain", "read_weights", "tensors_in"]

HARMLESS_TYPES: list[Any] = [
    # What real files hold besides tensors: DINO keeps its command line, others metrics as NumPy scalars and arrays.
    argparse.Namespace, np.dtype, np.ndarray, *(type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8")),
    *((make.__reduce__()[0], f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
      for make, name in ((np.float64(0), "scalar"), (np.zeros(1), "_reconstruct"))),
]


def read_weights(path: str | Path) -> dict[str, Any]:
    """The top level of a weight file (torch.save or safetensors), on the CPU; no pickled code is run.

    Raises:
        UserError: no such file, damaged, with other objects than tensors and plain values, or not a dict.
    """
    data = read_plain(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a dict of weights")
    return data


def read_plain(path: str | Path) -> Any:
    """Tensors and plain values of a file (torch.save or safetensors), on the CPU; no pickled code is run.

    Raises:
        UserError: no such file, damaged, or with other objects than those.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weight file at {path}{' (it is a folder)' if path.is_dir() else ''}; check the path")
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"                  # 8 bytes of length, then a JSON header
        if is_safetensors:
            return load_safetensors(path)
        with torch.serialization.safe_globals(HARMLESS_TYPES):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                                         # damaged files make torch raise almost anything
        foreign = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)).*?(\w+(?:\.\w+)+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise UserError(f"{path} holds objects other than tensors and plain values ({foreign[1]}), which could run "
                            "code when opened; save the state_dict alone and use that file") from error
        reason = (str(error).splitlines() or [""])[0][:120]
        raise UserError(f"{path} cannot be read as a weight file: it is truncated, damaged or of another kind "
                        f"({type(error).__name__}: {reason})") from error
    return data


def tensors_in(entries: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors among a dict's entries, their names without `prefix`; none when `entries` is no dict."""
    if not isinstance(entries, dict):
        return {}
    return {str(k).removeprefix(prefix): v for k, v in entries.items() if isinstance(v, Tensor)}


@torch.no_grad()
def fill(model: nn.Module, source: Mapping[str, Tensor], names: Mapping[str, str], path: str | Path,
         unexpected: list[str]) -> None:
    """Copies source[theirs] into the model's tensor `ours` for all `names` (ours → theirs).

    Args:
        path: of the file, for messages.
        unexpected: entries of the file that must not be there.

    Raises:
        UserError: one is missing, unexpected, of another shape or not finite; the model stays as it was.
    """
    state = model.state_dict()
    found = [(state[ours], source[theirs], theirs) for ours, theirs in sorted(names.items()) if theirs in source]
    pairs = [(own, t, theirs) for own, t, theirs in found if _is_plain(t)]
    problems = {
        "missing": sorted(set(names.values()) - source.keys()),
        "unexpected": unexpected,
        "no plain tensors": [theirs for _, t, theirs in found if not _is_plain(t)],
        "of another shape": [f"{theirs} {tuple(t.shape)} instead of {tuple(own.shape)}"
                             for own, t, theirs in pairs if own.shape != t.shape],
        "not finite": [theirs for _, t, theirs in pairs if not torch.isfinite(t).all()],
    }
    if any(problems.values()):
        what = "; ".join(f"{len(listed)} {kind}: {first_names(listed)}" for kind, listed in problems.items() if listed)
        raise UserError(f"{path} does not fit the model, which needs {len(names)} tensors: {what}")
    for own, t, _ in pairs:
        own.copy_(t)


def _is_plain(value: object) -> bool:
    """Whether this is a tensor of real numbers, none left out as in sparse ones."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_complex() or value.is_quantized or value.is_meta)


def first_names(names: list[str], limit: int = 4) -> str:
    """The first names of a list as text, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
