"""Embeddings, pseudo-labels and the network of a trained run, for other programs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from sdcl.config import Config, ModelConfig
from sdcl.data.records import IMAGE_SUFFIXES, ImageRecord, images_below
from sdcl.data.training_set import load_training_set
from sdcl.errors import UserError
from sdcl.frame.checkpoints import read_checkpoint, write_atomically
from sdcl.frame.embedding import embed, embed_records
from sdcl.frame.embedding_cache import embedding_arrays
from sdcl.frame.retrieval import embed_test_set, load_test_set
from sdcl.models import SDCLModel, build_model, load_checkpoint
from sdcl.training.labels import PseudoLabels, make_labels

__all__ = ["export_model", "folder_embeddings", "next_labels", "test_set_embeddings"]

Modality = Literal["visible", "infrared"]
TOLERANCE = 1e-3
"""Largest difference of an exported embedding from the network's, as a share of the embedding's length."""


def folder_embeddings(checkpoint: Path, folder: Path, modality: Modality) -> dict[str, np.ndarray]:
    """Embeddings of all images below a folder, sorted by path: `paths` [N], `deep` and `shallow` [N, D], un-normalised.

    Raises:
        UserError: no such folder, no image in it, or one that cannot be read.
    """
    model, config, _ = _load(checkpoint)
    paths = images_below(folder)
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    found = embed(model, paths, modality, batch_size=config.embedding_batch, workers=config.workers)
    return {"paths": np.array(paths), "deep": found.deep.cpu().numpy(), "shallow": found.shallow.cpu().numpy()}


def test_set_embeddings(checkpoint: Path, data_dir: Path | None = None) -> dict[str, np.ndarray]:
    """Embeddings of the test set that a checkpoint's run was tested on, its trial's in RegDB.

    Returns:
        The arrays of `embedding_arrays`.
    """
    model, config, trial = _load(checkpoint, data_dir)
    test = load_test_set(config, trial)
    return embedding_arrays(test, embed_test_set(model, test, config))


def next_labels(run: Path, data_dir: Path | None = None) -> tuple[PseudoLabels, dict[str, list[ImageRecord]], int]:
    """The pseudo-labels that a run's next epoch would train with, its rows and that epoch.

    They follow from last.pth, or, where the next epoch is the first of stage 2, from best.pth (method page, section 6).
    """
    last = read_checkpoint(run / "last.pth")
    epoch = last["epoch"] + 1
    config = Config.from_json(last["config"])
    enters_stage2 = config.at(epoch).stage == 2 and config.at(epoch - 1).stage == 1
    model, config, trial = _load(run / ("best.pth" if enters_stage2 else "last.pth"), data_dir)
    records = load_training_set(config, trial).records
    visible, infrared = embed_records(model, records, config, "bicubic").values()
    return make_labels(visible, infrared, config.at(epoch), config), records, epoch


def export_model(checkpoint: Path, modality: Modality, output: Path) -> float:
    """Writes the network of one modality: images [B, 3, H, W], normalised, to (deep, shallow) [B, D], un-normalised.

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
    model, config, _ = _load(checkpoint, device="cpu")
    model.eval()
    network = _OneModality(model, modality).eval()
    size = (3, config.model.image_height, config.model.image_width)
    images = torch.randn(5, *size, generator=torch.Generator().manual_seed(0))
    difference = 0.0

    def write_and_compare(path: Path) -> None:
        nonlocal difference
        run = write(network, images[:2], path)
        for batch in (images[:1], images):  # of other sizes than the one that it was exported with
            for mine, theirs in zip(model(**{modality: batch}), run(batch), strict=True):
                difference = max(difference, float(((mine - theirs).norm(dim=1) / mine.norm(dim=1)).max()))
        if not difference < TOLERANCE:
            raise UserError(f"what was exported differs from the network by {difference:.1e}; {output} is not kept")

    write_atomically(output, write_and_compare)
    return difference


class _OneModality(nn.Module):
    """The model with one input and a plain pair as output."""

    def __init__(self, model: SDCLModel, modality: Modality) -> None:
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(**{self.modality: images})
        return found.deep, found.shallow


def _write_program(network: nn.Module, images: Tensor, path: Path) -> Any:
    """Writes an exported program and returns the function that the written file holds."""
    program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: Dim("batch", min=1)}})
    with open(path, "wb") as file:  # not by name: torch would insist on the suffix
        torch.export.save(program, file)
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(network: nn.Module, images: Tensor, path: Path) -> Any:
    """Writes an ONNX file, weights included, and returns a function that runs it by ONNX's own reference code."""
    from onnx import load
    from onnx.reference import ReferenceEvaluator

    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["deep", "shallow"],
        dynamic_shapes={"images": {0: Dim("batch", min=1)}},
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no file"
    program.save(str(path), external_data=False)
    evaluator = ReferenceEvaluator(load(str(path)))
    return lambda batch: [torch.from_numpy(x) for x in evaluator.run(None, {"images": batch.numpy()})]


def _load(path: Path, data_dir: Path | None = None, device: str | None = None) -> tuple[SDCLModel, Config, int]:
    """A checkpoint's network with its weights, its run's settings, and its trial."""
    checkpoint = read_checkpoint(path)
    settings = checkpoint["config"] | ({} if data_dir is None else {"data_dir": str(data_dir), "image_cache": None})
    model = build_model(ModelConfig(**{**settings["model"], "pretrained": None}))
    load_checkpoint(model, path)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, Config.from_json(settings), checkpoint["trial"]
