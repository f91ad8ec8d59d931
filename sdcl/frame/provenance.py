"""What made a run: code, machine, seed, starting weights and data, written into its folder and its results.

A run that goes on elsewhere, or with other code, gets a further entry. Nothing in an entry is a time, so that equal
runs have equal entries.
"""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdcl import distributed
from sdcl.settings import RunSettings
from sdcl.version import __version__

__all__ = ["DESCRIPTIONS", "describe", "differences", "provenance", "text", "weights_hash"]

ROOT = Path(__file__).resolve().parents[2]

DESCRIPTIONS = {
    "version": "version",
    "commit": "commit",
    "python": "Python",
    "torch": "PyTorch",
    "cuda": "CUDA",
    "driver": "driver",
    "gpus": "GPUs",
    "system": "system",
    "processes": "processes",
    "precision": "precision",
    "seed": "seed",
    "starting_weights": "starting weights",
    "data": "training data",
}
"""Entry → its name for readers."""


def provenance(config: RunSettings, fingerprint: str, starting_weights: str) -> dict[str, Any]:
    """An entry of a run's provenance, plain values; None where there is no such thing (no GPU, no commit).

    Args:
        fingerprint: of the training data.
        starting_weights: `weights_hash` of the network that the run began with.
    """
    gpu = torch.cuda.is_available()
    return {
        "version": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "driver": _driver() if gpu else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else [],
        "system": f"{platform.system()} {platform.machine()}",
        "processes": distributed.world(),
        "precision": config.precision,
        "seed": config.seed,
        "starting_weights": starting_weights,
        "data": fingerprint,
    }


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that follow from names, shapes and values of a network's tensors, in whatever order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@cache
def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout at `root`, with `, modified` where its tracked files differ from it; None where there
    is no checkout or no git."""
    if not (root / ".git").exists():
        return None
    try:
        found, status = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() + (", modified" if status.stdout.strip() else "")


def describe(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Reader's name → value, of the last entry; values that changed on the way stand one after another."""
    out = {}
    for key, name in DESCRIPTIONS.items():
        values = list(dict.fromkeys(text(entry.get(key)) for entry in entries))
        if values:
            out[name] = ", then ".join(values)
    return out


def differences(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """In what runs (name → entries) differ, a line each: `PyTorch: 2.8.0 (runs/a), 2.9.0 (runs/b)`."""
    described = {name: describe(entries) for name, entries in runs.items() if entries}
    lines = []
    for what in DESCRIPTIONS.values():
        values: dict[str, list[str]] = {}
        for name, entry in described.items():
            values.setdefault(entry[what], []).append(name)
        if len(values) > 1:
            lines.append(f"{what}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items()))
    return lines


def text(value: Any) -> str:
    """An entry's value for readers; equal GPUs are counted."""
    if isinstance(value, list):
        counts = {item: value.count(item) for item in value}
        return ", ".join(f"{n} x {item}" if n > 1 else item for item, n in counts.items()) or "none"
    return "none" if value is None else str(value)


def _driver() -> str | None:
    """The version of the NVIDIA driver, where the system tells it."""
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", file.read_text()) if file.is_file() else None
    return found[1] if found else None
