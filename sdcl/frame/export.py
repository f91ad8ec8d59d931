"""Embeddings and the network of a trained run, for other programs."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from sdcl.data.records import IMAGE_SUFFIXES, images_below
from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.embedding import embed_paths
from sdcl.frame.embedding_cache import embedding_arrays
from sdcl.frame.method import Method, load_network, method_of
from sdcl.frame.retrieval import embed_test_set, load_test_set
from sdcl.settings import RunSettings

__all__ = ["export_model", "folder_embeddings", "load_trained", "test_set_embeddings"]

Modality = Literal["visible", "infrared"]
TOLERANCE = 1e-3
"""Largest difference of an exported embedding from the network's, as a share of the embedding's length."""


def folder_embeddings(checkpoint: Path, folder: Path, modality: Modality) -> dict[str, np.ndarray]:
    """Embeddings of all images below a folder, sorted by path: `paths` [N] and each level [N, d].

    Raises:
        UserError: no such folder, no image in it, or one that cannot be read.
    """
    method, model, config, _ = load_trained(checkpoint)
    paths = images_below(folder)
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    found = embed_paths(
        method.embedding,
        model,
        paths,
        modality,
        config.image_size,
        interpolation=method.interpolation,
        batch_size=config.embedding_batch,
        workers=config.workers,
    )
    return {"paths": np.array(paths), **{level: x.cpu().numpy() for level, x in found.items()}}


def test_set_embeddings(checkpoint: Path, data_dir: Path | None = None) -> dict[str, np.ndarray]:
    """Embeddings of the test set that a checkpoint's run was tested on, its trial's in RegDB.

    Returns:
        The arrays of `embedding_arrays`.
    """
    method, model, config, trial = load_trained(checkpoint, data_dir)
    test = load_test_set(config, trial)
    return embedding_arrays(test, embed_test_set(method, model, test, config))


def export_model(checkpoint: Path, modality: Modality, output: Path) -> float:
    """Writes the network of one modality: normalised images [B, 3, H, W] to each level [B, d] (`Method.embed`).

    output: .pt2 (`torch.export`) or .onnx.

    Returns:
        The largest difference between what the written file and the network make of random images, as a share of the
        embedding's length.

    Raises:
        UserError: another suffix, ONNX without its packages, or a difference that is too large (nothing is written).
    """
    write = {".pt2": _write_program, ".onnx": _write_onnx}.get(output.suffix)
    if write is None:
        raise UserError(f"{output}: the name must end in .pt2 (torch.export) or .onnx")
    if output.suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"ONNX needs the packages onnx and onnxscript ({', '.join(missing)} not found): install them, or "
                "export to .pt2, which needs nothing more"
            )
    method, model, config, _ = load_trained(checkpoint, device="cpu")
    network = _OneModality(method, model, modality).eval()
    size = (3, *config.image_size)
    images = torch.randn(5, *size, generator=torch.Generator().manual_seed(0))
    difference = 0.0

    def write_and_compare(path: Path) -> None:
        nonlocal difference
        run = write(network, images[:2], path)
        for batch in (images[:1], images):  # of other sizes than the one that it was exported with
            for mine, theirs in zip(network(batch), run(batch), strict=True):
                difference = max(difference, float(((mine - theirs).norm(dim=1) / mine.norm(dim=1)).max()))
        if not difference < TOLERANCE:
            raise UserError(f"what was exported differs from the network by {difference:.1e}; {output} is not kept")

    write_atomically(output, write_and_compare)
    return difference


class _OneModality(nn.Module):
    """A method's embeddings of one modality, one output a level."""

    def __init__(self, method: Method, model: nn.Module, modality: Modality) -> None:
        super().__init__()
        self.method, self.model, self.modality = method, model, modality
        self.levels: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.method.embed(self.model, images, self.modality)
        self.levels = tuple(found)
        return tuple(found.values())


def _write_program(network: _OneModality, images: Tensor, path: Path) -> Any:
    """Writes an exported program and returns the function that the written file holds."""
    program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: Dim("batch", min=1)}})
    with open(path, "wb") as file:  # not by name: torch would insist on the suffix
        torch.export.save(program, file)
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(network: _OneModality, images: Tensor, path: Path) -> Any:
    """Writes an ONNX file, weights included, and returns a function that runs it by ONNX's own reference code."""
    from onnx import load
    from onnx.reference import ReferenceEvaluator

    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=list(network.levels),
        dynamic_shapes={"images": {0: Dim("batch", min=1)}},
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no file"
    program.save(str(path), external_data=False)
    evaluator = ReferenceEvaluator(load(str(path)))
    return lambda batch: [torch.from_numpy(x) for x in evaluator.run(None, {"images": batch.numpy()})]


def load_trained(
    path: Path, data_dir: Path | None = None, device: str | None = None
) -> tuple[Method, nn.Module, RunSettings, int]:
    """A checkpoint's method, network with its weights, its run's settings, and its trial."""
    checkpoint = read_checkpoint(path)
    method = method_of(path)
    config = method.settings.from_json(checkpoint["config"], path)
    if data_dir is not None:
        config = replace(config, data_dir=data_dir, image_cache=None)
    model = load_network(method, path, config, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return method, model, config, checkpoint["trial"]
