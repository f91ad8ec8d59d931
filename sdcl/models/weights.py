"""Files of whole trained models: this project's checkpoints and those of the published implementation.

A file's kind is told by what is in it, never by its name. Nothing but tensors and plain values is read from it, so a
file cannot run code. Either everything that is needed is there and fits, or the model stays as it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.frame.checkpoints import FORMAT
from sdcl.models.sdcl_model import SDCLModel
from sdcl.tensor_files import fill, first_names, read_weights, tensors_in

__all__ = ["LoadReport", "block_count", "check_size", "is_published", "load_checkpoint", "published_names",
           "published_state_dict", "published_unused", "renamed", "save_published_format"]

log = logging.getLogger(__name__)

PUBLISHED_PREFIXES = (
    # this project      published implementation
    ("cls_token", "base.cls_token"),
    ("pos_embed", "base.pos_embed"),
    ("stem_visible.", "base.patch_embed."),
    ("stem_infrared.", "base.patch_embed2."),
    ("blocks.", "base.blocks."),
    ("deep_head.block.", "b1.0."),
    ("deep_head.norm.", "b1.1."),
    ("deep_head.bn.", "bottleneck."),
    ("shallow_head.block.", "b2.0."),
    ("shallow_head.norm.", "b2.1."),
    ("shallow_head.bn.", "bottlenecks."),
)


@dataclass
class LoadReport:
    """What became of each entry of a weight file (names as in the file, without prefixes such as `module.`)."""

    source: str
    """The file and what it was recognised as."""
    loaded: list[str] = field(default_factory=list)
    """Entries that were used."""
    resized: list[str] = field(default_factory=list)
    """Those of them that were resampled to the model's patch grid."""
    skipped: list[str] = field(default_factory=list)
    """Entries that the model has no use for."""
    missing: list[str] = field(default_factory=list)
    """What the model would take and the file has not; it keeps its random values."""

    def table(self) -> str:
        """The report as text, one line a kind: number and first names."""
        kinds = {"loaded": self.loaded, "resized": self.resized, "skipped": self.skipped, "missing": self.missing}
        rows = [f"  {kind:<8}{len(names):>4}  {first_names(names)}".rstrip() for kind, names in kinds.items()]
        return "\n".join([self.source, *rows])


def load_checkpoint(model: SDCLModel, path: str | Path) -> LoadReport:
    """Loads all weights of a trained model, this project's checkpoint or one of the published implementation.

    Raises:
        UserError: no such file, not readable, neither kind, another architecture, or names missing or too many.
    """
    data = read_weights(path)
    if data.get("format") == FORMAT:
        kind, source, prefix = "this project", tensors_in(data.get("model")), ""
        names = {name: name for name in model.state_dict()}
        depth, skipped = block_count(source, "blocks.") + 1, []
    else:
        kind, prefix = "the published implementation", "base."
        source = tensors_in(data.get("state_dict", data), "module.")
        if not is_published(source):
            backbone = "teacher" in data or any("blocks." in name for name in source)
            hint = "; it seems to hold backbone weights to start training from (--pretrained)" if backbone else ""
            raise UserError(f"{path} is neither a checkpoint of this project nor of the published implementation{hint}")
        names, depth = published_names(model), block_count(source, "base.blocks.")
        unused = _unused_prefixes(model.config.depth)
        skipped = sorted(name for name in source if name.startswith(unused))
    check_size(path, model, source.get(f"{prefix}cls_token"), depth)
    fill(model, source, names, path, sorted(source.keys() - set(names.values()) - set(skipped)))
    report = LoadReport(f"{path} (checkpoint of {kind})", sorted(names.values()), skipped=skipped)
    log.info(report.table())
    return report


def published_names(model: SDCLModel) -> dict[str, str]:
    """This model's names of parameters and buffers → the published implementation's, without `module.`."""
    return renamed(model.state_dict(), PUBLISHED_PREFIXES)


def published_state_dict(model: SDCLModel) -> dict[str, Tensor]:
    """All tensors under their published names, without `module.` (241 for 12 blocks), copied to the CPU.

    The published implementation keeps tensors that it never uses and yet insists on: an ImageNet classifier and a
    BatchNorm of size 1, written as zeros and with its initial values, and the last block and norm, of which its heads
    are copies, written as the deep head's.
    """
    state = model.state_dict()
    prefixes = [*PUBLISHED_PREFIXES, ("deep_head.block.", f"base.blocks.{model.config.depth - 1}."),
                ("deep_head.norm.", "base.norm.")]
    out = {theirs + name.removeprefix(ours): state[name]
           for ours, theirs in prefixes for name in state if name.startswith(ours)}
    out |= {"base.fc.weight": torch.zeros(1000, model.dim), "base.fc.bias": torch.zeros(1000)}
    out |= {f"base.decoder_norm.{name}": t for name, t in torch.nn.BatchNorm1d(1).state_dict().items()}
    return {name: t.detach().cpu().clone() for name, t in sorted(out.items())}


def published_unused(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint that nothing uses, under their names in it without `module.`."""
    source = tensors_in(read_weights(path).get("state_dict"), "module.")
    unused = _unused_prefixes(block_count(source, "base.blocks."))
    return {name: t for name, t in sorted(source.items()) if name.startswith(unused)}


def save_published_format(model: SDCLModel, path: str | Path, epoch: int, rank1: float,
                          unused: Mapping[str, Tensor] | None = None) -> None:
    """Writes a checkpoint that the published implementation loads, all at once or not at all.

    Args:
        epoch: epochs done.
        rank1: Rank-1 of that epoch as a fraction (there called best_mAP).
        unused: tensors to write where the published implementation uses nothing, by their names without `module.`,
            instead of those that `published_state_dict` describes.

    Raises:
        UserError: the file cannot be written, or the model has plain patch embeddings, which that program has not.
    """
    if model.config.stem != "conv":
        raise UserError(f"{path} is not written: the published implementation knows convolutional stems alone, and "
                        f"this network was trained with --stem {model.config.stem}")
    state = published_state_dict(model) | dict(unused or {})
    file = {"state_dict": {f"module.{name}": t for name, t in state.items()},
            "epoch": int(epoch), "best_mAP": float(rank1)}
    write_atomically(Path(path), lambda temporary: torch.save(file, temporary))


def is_published(entries: Iterable[str]) -> bool:
    """Whether these are names of the published implementation: its infrared stem or shallow head is among them. (Other
    re-identification projects use `base.` and `bottleneck.` too.)"""
    return any(name.startswith(("base.patch_embed2.", "bottlenecks.")) for name in entries)


def _unused_prefixes(depth: int) -> tuple[str, ...]:
    """What the published implementation keeps and never uses, in a network of `depth` blocks."""
    return "base.fc.", "base.decoder_norm.", f"base.blocks.{depth - 1}.", "base.norm."


def renamed(names: Iterable[str], prefixes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name → name with its prefix exchanged, for the names that have one."""
    pairs = list(prefixes)
    return {name: theirs + name.removeprefix(ours)
            for name in names for ours, theirs in pairs if name.startswith(ours)}


def block_count(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows `prefix`; 0 when none does."""
    matches = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names)
    return 1 + max((int(m[1]) for m in matches if m), default=-1)


def check_size(path: str | Path, model: SDCLModel, cls_token: Tensor | None, depth: int) -> None:
    """Raises UserError when a file, by its class token and number of blocks, is of another width or depth."""
    if cls_token is None or cls_token.ndim != 3:
        return                                                             # `fill` says what is missing
    if (cls_token.shape[2], depth) != (model.dim, model.config.depth):
        raise UserError(f"{path} has weights of another architecture: width {cls_token.shape[2]} and {depth} blocks, "
                        f"expected width {model.dim} and {model.config.depth} blocks")
