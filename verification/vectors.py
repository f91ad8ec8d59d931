"""Vector files, and how what this project computes is laid beside them.

A file `<case>_<what>.npz` holds variants of one case, each with settings of its own (the JSON text `meta`, variant →
settings), its inputs (arrays `<variant>/given/<name>`) and what the published implementation computed from them (arrays
`<variant>/<name>`). Weights and images of whole networks are not kept: `sdcl.py` draws them again from their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Case", "Variant", "leaf", "read_case"]

ROUNDING = 1e-5
"""What two orders of summation in float32 may differ by, as a share of an array's largest value."""


@dataclass
class Case:
    """A vector file and the outcome of its comparison.

    Attributes:
        device: where the project computes.
        worst: the largest deviation found so far, as a share of the largest absolute value of its array.
        compared: number of comparisons so far.
        failures: what deviates beyond its bound, in words.
    """

    name: str
    path: Path
    arrays: dict[str, np.ndarray]
    settings: dict[str, dict[str, Any]]
    device: torch.device
    worst: float = 0.0
    compared: int = 0
    failures: list[str] = field(default_factory=list)

    def variants(self) -> Iterator[Variant]:
        """The variants in the file's order."""
        for name, settings in self.settings.items():
            yield Variant(self, name, settings)

    def check(self, condition: bool, otherwise: str) -> None:
        """A comparison that holds or not; `otherwise` says what is wrong when it does not."""
        self.compared += 1
        if not condition:
            self.failures.append(otherwise)

    def line(self) -> str:
        """The outcome in one line."""
        if self.failures:
            more = f"; {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
            return f"{self.name:<28} FAILED  {'; '.join(self.failures[:3])}{more}"
        found = f"largest deviation {self.worst:.1e}" if self.worst else "all equal"
        return f"{self.name:<28} ok      {found} ({self.compared} comparisons)"


@dataclass(frozen=True)
class Variant:
    """One variant of a case: its settings, inputs and comparisons."""

    case: Case
    name: str
    settings: dict[str, Any]

    def given(self, names: str | None = None) -> Any:
        """The inputs as tensors on the case's device, whole numbers as int64: by name, or those of `names` in order."""
        prefix = f"{self.name}/given/"
        found = {k.removeprefix(prefix): v for k, v in self.case.arrays.items() if k.startswith(prefix)}
        tensors = {k: self._tensor(v) for k, v in found.items() if v.dtype.kind in "fib"}
        return tensors if names is None else [tensors[name] for name in names.split()]

    def text(self, name: str) -> list[str]:
        """An input of several texts."""
        return [str(x) for x in self.case.arrays[f"{self.name}/given/{name}"]]

    def wanted(self, name: str) -> np.ndarray:
        """What the published implementation computed."""
        return self.case.arrays[f"{self.name}/{name}"]

    def holds(self, name: str) -> bool:
        """Whether the published implementation's array of this name is in the file."""
        return f"{self.name}/{name}" in self.case.arrays

    def close(self, name: str, computed: Any, bound: float = ROUNDING, wanted: Any = None) -> None:
        """Compares numbers; bound: the largest deviation allowed, as a share of the largest absolute value."""
        want = np.asarray(self.wanted(name) if wanted is None else wanted, dtype=np.float64)
        have = _plain(computed).astype(np.float64)
        if have.shape != want.shape:
            self.check(False, f"{name} has shape {have.shape} instead of {want.shape}")
            return
        deviation = float(np.abs(have - want).max() / max(np.abs(want).max(), 1e-12)) if want.size else 0.0
        self.case.worst = max(self.case.worst, deviation)
        self.check(deviation <= bound, f"{name} deviates by {deviation:.1e}, more than {bound:.0e}")

    def equal(self, name: str, computed: Any, wanted: Any = None, where: np.ndarray | None = None) -> None:
        """Compares labels, masks, paths; where: bool, the places that are looked at."""
        want, have = np.asarray(self.wanted(name) if wanted is None else wanted), _plain(computed)
        if have.shape != want.shape:
            self.check(False, f"{name} has shape {have.shape} instead of {want.shape}")
            return
        differs = (have != want) & (True if where is None else where)
        self.check(not differs.any(), f"{name} differs in {int(differs.sum())} of {differs.size} places")

    def check(self, condition: bool, otherwise: str) -> None:
        """As `Case.check`, with the variant's name in front."""
        self.case.check(bool(condition), f"{self.name}: {otherwise}")

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        whole = array.dtype.kind == "i"
        return torch.from_numpy(array.astype(np.int64) if whole else array.copy()).to(self.case.device)


def read_case(path: Path, device: torch.device) -> Case:
    """Opens a vector file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    settings = json.loads(str(arrays.pop("meta")))
    return Case(path.stem, path, arrays, settings, device)


def leaf(x: torch.Tensor) -> torch.Tensor:
    """A copy that gathers a gradient."""
    return x.detach().clone().requires_grad_()


def _plain(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
