"""Stage 2 from the weights of a stage 1 that was trained elsewhere (`--stage1`; method page, section 6)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch.optim import SGD

from sdcl.config import Config
from sdcl.errors import UserError
from sdcl.frame.checkpoints import load_weights, own_checkpoint
from sdcl.frame.run import Run
from sdcl.models import SDCLModel, build_model, load_checkpoint

__all__ = ["begin_stage2", "build_stage1"]


def build_stage1(config: Config, trial: int) -> SDCLModel:
    """The network with the weights of `config.stage1`, on the CPU; no pre-trained weights are read.

    Raises:
        UserError: there are none, they are not SDCL's or of another network, of another RegDB trial, or of a stage 2.
    """
    path, checkpoint = _read(config, trial)
    model = build_model(dataclasses.replace(config.model, pretrained=None))
    if checkpoint is None:
        load_checkpoint(model, path)
    else:
        load_weights(model, checkpoint, path)
    return model


def begin_stage2(run: Run, config: Config, model: SDCLModel, optimizer: SGD) -> str:
    """Puts a fresh run where the stages change, as if it had trained stage 1 itself; the model has its weights already.

    This project's stage1.pth brings the optimiser's state along, other files begin with a fresh one. The checkpoint
    stays the selected one until an epoch of stage 2 exceeds its Rank-1, if that was found with the same data.

    Returns:
        What was done, in words.
    """
    path, checkpoint = _read(config, run.trial)
    checkpoint = checkpoint or {}
    same_data = checkpoint.get("fingerprint") == run.fingerprint
    rank1 = checkpoint["metrics"].get("rank1") if same_data else None
    if "optimizer" in checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
    run.begin_at(config.stage2_from, rank1, model=model, optimizer=optimizer, labels=None)
    state = "with its optimiser's state" if "optimizer" in checkpoint else "with a fresh optimiser"
    other = "" if same_data or not checkpoint else "; it was trained on other images than these"
    return f"stage 2 begins with {path}, {state}{other}"


def _read(config: Config, trial: int) -> tuple[Path, dict[str, Any] | None]:
    """The file of stage-1 weights and, where it is this project's, what it holds."""
    path = config.stage1
    assert path is not None
    if path.is_dir():
        path = (path / f"trial-{trial}" if trial else path) / "stage1.pth"
    checkpoint = own_checkpoint(path)
    if checkpoint is None:
        return path, None
    if checkpoint["method"] != "sdcl":
        raise UserError(f"{path} holds weights of another method ({checkpoint['method']}): --stage1 takes SDCL's")
    if checkpoint["trial"] != trial:
        raise UserError(
            f"{path} is of trial {checkpoint['trial']}, not {trial}: it has seen images that this one is tested on"
        )
    if Config.from_json(checkpoint["config"], path).at(checkpoint["epoch"]).stage == 2:
        raise UserError(f"{path} is of epoch {checkpoint['epoch']}, in stage 2 of its run: take its stage1.pth")
    return path, checkpoint
