"""Test embeddings on disk: kept beside a checkpoint, taken again for further tests, re-ranking and figures."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sdcl import distributed
from sdcl.data.records import MODALITIES
from sdcl.files import write_atomically
from sdcl.frame.embedding import Levels, device_of
from sdcl.frame.method import Method
from sdcl.frame.retrieval import TestSet, embed_test_set, fingerprint
from sdcl.settings import RunSettings

__all__ = ["cache_file", "cached_embeddings", "embedding_arrays"]

Bar = Callable[[str, int], Callable[[int], object]]
PARTS = ("weights", "images", "settings")
"""What embeddings follow from; the file holds each beside them, as text."""


def cache_file(checkpoint: Path, variant: str = "") -> Path:
    """Where a checkpoint's test embeddings are kept: best.pth → embeddings-best.npz. variant: of the test, such as
    `-10-shot`."""
    return checkpoint.with_name(f"embeddings-{checkpoint.stem}{variant}.npz")


def cached_embeddings(
    file: Path,
    checkpoint: Path,
    method: Method,
    model: nn.Module,
    test: TestSet,
    config: RunSettings,
    bar: Bar | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, Levels]:
    """`embed_test_set`, but from `file` where that holds it, and written there where it does not.

    What is there is used when the checkpoint's content, the images (paths in their order, file sizes), the network's
    settings and the precision are the same. An image that was replaced by another of the same size goes unnoticed.

    Args:
        file: an .npz file with the arrays of `embedding_arrays` and, as text, what they follow from.
        checkpoint: of the weights that are in `model`.
        say: told that the file is used, or why not.
    """
    origin = distributed.from_main(lambda: _origin(checkpoint, method, test, config))
    found, reason = distributed.from_main(lambda: _read(file, origin, test))
    if found is not None:
        say(f"test embeddings: those of {file}")
        device = device_of(model)
        return {m: {k: torch.from_numpy(x).to(device) for k, x in levels.items()} for m, levels in found.items()}
    embeddings = embed_test_set(method, model, test, config, bar)
    if distributed.is_main():

        def save(path: Path) -> None:
            with open(path, "wb") as opened:  # an open file keeps its name, whatever its suffix
                texts = {name: np.array(text) for name, text in origin.items()}
                np.savez(opened, **texts, **embedding_arrays(test, embeddings))  # type: ignore[arg-type]

        write_atomically(file, save)
    say(f"test embeddings: {reason}; written to {file}")
    return embeddings


def embedding_arrays(test: TestSet, embeddings: dict[str, Levels]) -> dict[str, np.ndarray]:
    """For each modality `<m>_paths`, `<m>_identities`, `<m>_cameras` [N] and `<m>_<level>` [N, d] float32."""
    out: dict[str, np.ndarray] = {}
    for modality, levels in embeddings.items():
        paths, identities, cameras = zip(*test.images[modality], strict=True)
        columns = {"paths": paths, "identities": identities, "cameras": cameras}
        out |= {f"{modality}_{name}": np.array(column) for name, column in columns.items()}
        out |= {f"{modality}_{level}": x.cpu().numpy() for level, x in levels.items()}
    return out


def _origin(checkpoint: Path, method: Method, test: TestSet, config: RunSettings) -> dict[str, str]:
    """What the embeddings follow from, by the names of `PARTS`."""
    settings = config.to_json()
    network = {name: settings[name] for name in config.OF_NETWORK}
    return {
        "weights": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "images": fingerprint(test),
        "settings": json.dumps({"method": method.name, "precision": config.precision, **network}, sort_keys=True),
    }


def _read(
    file: Path, origin: dict[str, str], test: TestSet
) -> tuple[dict[str, dict[str, np.ndarray]] | None, str]:
    """Each level's embeddings by modality, if they are of this origin; else None and why not."""
    if not file.is_file():
        return None, f"{file.name} was not there"
    try:
        with np.load(file, allow_pickle=False) as saved:
            changed = [name for name in PARTS if str(saved[name]) != origin[name]]
            for m in MODALITIES:
                if saved[f"{m}_paths"].tolist() != [record.path for record in test.images[m]]:
                    changed.append(f"{m} paths")
            if changed:
                return None, f"what {file.name} held was of other {' and '.join(changed)}"
            columns = {m: [name for name in saved.files if name.startswith(f"{m}_")] for m in MODALITIES}
            others = ("paths", "identities", "cameras")
            return {
                m: {k.removeprefix(f"{m}_"): saved[k] for k in names if k.removeprefix(f"{m}_") not in others}
                for m, names in columns.items()
            }, ""
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        return None, f"{file.name} could not be read ({error})"
