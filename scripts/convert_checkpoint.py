"""Converts a checkpoint between this project's format and the published implementation's.

    python scripts/convert_checkpoint.py runs/sysu/best.pth published.pth --to published
    python scripts/convert_checkpoint.py published.pth best.pth --to sdcl --preset sysu
    python scripts/convert_checkpoint.py published.pth best.pth --to sdcl --preset regdb --trial 3

There and back gives every tensor bit for bit. The published format does not say what a model was trained on, so
`--to sdcl` is told; the image size, width and depth are read off the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from torch import Tensor

from sdcl.config import PATCH, PRESETS, Config, ModelConfig  # noqa: E402
from sdcl.errors import UserError, run_program  # noqa: E402
from sdcl.frame.checkpoints import FORMAT, pack, read_checkpoint, save_checkpoint  # noqa: E402
from sdcl.models import (  # noqa: E402
    SDCLModel,
    load_checkpoint,
    published_state_dict,
    published_unused,
    save_published_format,
)
from sdcl.settings import from_plain  # noqa: E402
from sdcl.tensor_files import read_weights, tensors_in  # noqa: E402

HEAD_WIDTH = 64
"""Width of an attention head in every published ViT; the weights do not show it."""


def published_shape(entries: dict[str, Tensor], path: Path) -> ModelConfig:
    """The network that a published checkpoint's tensors (without `module.`) belong to.

    Raises:
        UserError: tensors that show it are missing, or their patches form no grid twice as high as wide.
    """
    needed = ("base.cls_token", "base.pos_embed", "b1.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in entries]:
        raise UserError(f"{path} is not a checkpoint of the published implementation: {', '.join(missing)} not found")
    dim, patches = entries["base.cls_token"].shape[-1], entries["base.pos_embed"].shape[1] - 1
    columns = round((patches / 2) ** 0.5)
    if 2 * columns**2 != patches:
        raise UserError(f"{path} is of a model with {patches} patches, which form no grid twice as high as wide")
    blocks = {int(m[1]) for m in (re.match(r"base\.blocks\.(\d+)\.", name) for name in entries) if m}
    return ModelConfig(image_height=2 * columns * PATCH, image_width=columns * PATCH, dim=dim, depth=len(blocks),
                       heads=max(1, dim // HEAD_WIDTH), mlp_ratio=len(entries["b1.0.mlp.fc1.weight"]) / dim)


def to_published(source: Path, target: Path) -> str:
    """Writes a checkpoint of this project in the published format; returns what it did."""
    saved = read_weights(source)
    if saved.get("format") != FORMAT:
        raise UserError(f"{source} is not a checkpoint of this project, so it cannot be converted")
    saved = read_checkpoint(source)
    shape = saved["config"].get("model")
    if not isinstance(shape, dict):
        raise UserError(f"{source} is damaged: it does not say of which network it is; take another one of the run")
    model = SDCLModel(from_plain(ModelConfig, shape, source))
    load_checkpoint(model, source)
    epochs_done, rank1 = saved["epoch"] + 1, saved["metrics"].get("rank1", 0.0)
    save_published_format(model, target, epochs_done, rank1, saved.get("published_unused"))
    count = len(published_state_dict(model))
    return f"{count} tensors in the published format, {epochs_done} epochs done, Rank-1 {rank1:.4f}"


def to_sdcl(source: Path, target: Path, config: Config) -> str:
    """Writes a published checkpoint as one of this project; returns what it did."""
    saved = read_weights(source)
    if saved.get("format") == FORMAT:
        raise UserError(f"{source} is a checkpoint of this project already")
    shape = published_shape(tensors_in(saved.get("state_dict"), "module."), source)
    model = SDCLModel(shape)
    report = load_checkpoint(model, source)
    epoch, rank1 = int(saved.get("epoch", 1)) - 1, float(saved.get("best_mAP", 0.0))
    checkpoint = pack(model, dataclasses.replace(config, model=shape), method="sdcl", epoch=epoch,
                      trial=config.trial or 0, fingerprint="unknown", metrics={"rank1": rank1})
    # Nothing here uses them; kept so that converting back restores the file's own values.
    save_checkpoint(target, {**checkpoint, "published_unused": published_unused(source)})
    return f"{len(report.loaded)} tensors in this project's format, epoch {epoch} (counted from 0), Rank-1 {rank1:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", type=Path, help="the checkpoint to read")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write; an existing one is replaced")
    parser.add_argument("--to", choices=("published", "sdcl"), required=True, help="the format to write")
    parser.add_argument("--preset", choices=("sysu", "regdb", "folder"), default="sysu",
                        help="with --to sdcl: what the model was trained on (%(default)s)")
    parser.add_argument("--trial", type=int, help="with --to sdcl --preset regdb: its trial, 1 to 10")
    a = parser.parse_args()
    if a.to == "published":
        done = to_published(a.source, a.target)
    else:
        if a.preset == "regdb" and a.trial is None:
            raise UserError("which of RegDB's ten trials was the model trained on? Say so with --trial")
        done = to_sdcl(a.source, a.target, dataclasses.replace(PRESETS[a.preset], trial=a.trial))
    print(f"{a.target}: {done}")


if __name__ == "__main__":
    run_program(main)
