"""Weight files: pre-trained backbones, this project's checkpoints and those of the published implementation.

A file's kind is told by what is in it, never by its name. Nothing but tensors and plain values is read from it, so a
file cannot run code. Either everything that is needed is there and fits, or the model stays as it was.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.config import PATCH, ModelConfig
from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.frame.checkpoints import FORMAT
from sdcl.models.sdcl_model import SDCLModel
from sdcl.tensor_files import fill, first_names, read_weights, tensors_in

__all__ = ["LoadReport", "build_model", "load_backbone", "load_checkpoint", "published_names", "published_state_dict",
           "published_unused", "save_published_format"]

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

BACKBONE_PREFIXES = (
    # this project      backbone file; {last}: number of the last block
    ("cls_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("stem_visible.", "patch_embed."),
    ("blocks.", "blocks."),
    ("deep_head.block.", "blocks.{last}."),
    ("deep_head.norm.", "norm."),
)

SKIPPED_WORDS = ("head", "dist", "pre_logits")
"""Entries of a backbone file whose name contains one of these belong to its own training task."""


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


def build_model(config: ModelConfig) -> SDCLModel:
    """The network with random weights (torch's global generator), or pre-trained ones when `config.pretrained` is set.

    Raises:
        UserError: the pre-trained weights are missing, unreadable or of another architecture.
    """
    model = SDCLModel(config)
    model.initialise()
    if config.pretrained is not None:
        load_backbone(model, config.pretrained)
    return model


def load_backbone(model: SDCLModel, path: str | Path) -> LoadReport:
    """Starts a model from a pre-trained ViT (method page, section 1, "Pre-trained weights", a).

    Takes the ICS weights of TransReID-SSL, DINO checkpoints, files that hold `model` or `state_dict`, bare dicts of
    tensors, and safetensors files. The position embedding is resampled to the model's grid; afterwards the infrared
    stem is copied from the visible one and both heads from the last block and norm, their BatchNorms afresh.

    A ViT with plain 16x16 patches (timm) has no convolutional stem: all else is loaded, the stem stays random, its
    names are in `.missing`, and a UserWarning says so.

    Raises:
        UserError: no such file, not readable, another architecture, or less in it than the model needs.
    """
    source, skipped = _backbone_entries(path)
    _check_size(path, model, source.get("cls_token"), _block_count(source, "blocks."))
    prefixes = [(ours, theirs.format(last=model.config.depth - 1)) for ours, theirs in BACKBONE_PREFIXES]
    names = _renamed(model.state_dict(), prefixes)
    missing: list[str] = []
    patch_weight = source.get("patch_embed.proj.weight")
    plain_vit = patch_weight is not None and patch_weight.shape == (model.dim, 3, PATCH, PATCH)
    if plain_vit:
        missing = sorted(theirs for theirs in names.values() if theirs.startswith("patch_embed."))
        names = {ours: theirs for ours, theirs in names.items() if theirs not in missing}
        skipped += [name for name in source if name.startswith("patch_embed.")]
        source = {name: t for name, t in source.items() if not name.startswith("patch_embed.")}
    resized = []
    if "pos_embed" in source:
        source["pos_embed"], changed = _resample(source["pos_embed"], model.config.grid, path)
        resized = ["pos_embed"] * changed
    extra = sorted(source.keys() - set(names.values()))
    # A surplus entry inside the network (layer scale, say) would change what it computes; one outside it does not.
    fill(model, source, names, path, [n for n in extra if n.startswith(("blocks.", "patch_embed.", "norm_pre."))])
    model.copy_branches()
    kind = "plain ViT, without convolutional stem" if plain_vit else "ViT with convolutional stem"
    report = LoadReport(f"{path} (backbone: {kind})", sorted(names.values()), resized, sorted(skipped + extra), missing)
    log.info(report.table())
    if plain_vit:
        warnings.warn(f"{path} is a plain ViT: its {PATCH}x{PATCH} patch embedding does not fit the convolutional "
                      "stem, which starts from random weights. Published results need the ICS weights of TransReID-SSL",
                      UserWarning, stacklevel=2)
    return report


def load_checkpoint(model: SDCLModel, path: str | Path) -> LoadReport:
    """Loads all weights of a trained model, this project's checkpoint or one of the published implementation.

    Raises:
        UserError: no such file, not readable, neither kind, another architecture, or names missing or too many.
    """
    data = read_weights(path)
    if data.get("format") == FORMAT:
        kind, source, prefix = "this project", tensors_in(data.get("model")), ""
        names = {name: name for name in model.state_dict()}
        depth, skipped = _block_count(source, "blocks.") + 1, []
    else:
        kind, prefix = "the published implementation", "base."
        source = tensors_in(data.get("state_dict", data), "module.")
        if not _is_published(source):
            backbone = "teacher" in data or any("blocks." in name for name in source)
            hint = "; it seems to hold backbone weights to start from (setting pretrained)" if backbone else ""
            raise UserError(f"{path} is neither a checkpoint of this project nor of the published implementation{hint}")
        names, depth = published_names(model), _block_count(source, "base.blocks.")
        unused = _unused_prefixes(model.config.depth)
        skipped = sorted(name for name in source if name.startswith(unused))
    _check_size(path, model, source.get(f"{prefix}cls_token"), depth)
    fill(model, source, names, path, sorted(source.keys() - set(names.values()) - set(skipped)))
    report = LoadReport(f"{path} (checkpoint of {kind})", sorted(names.values()), skipped=skipped)
    log.info(report.table())
    return report


def published_names(model: SDCLModel) -> dict[str, str]:
    """This model's names of parameters and buffers → the published implementation's, without `module.`."""
    return _renamed(model.state_dict(), PUBLISHED_PREFIXES)


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
    unused = _unused_prefixes(_block_count(source, "base.blocks."))
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
        UserError: the file cannot be written.
    """
    state = published_state_dict(model) | dict(unused or {})
    file = {"state_dict": {f"module.{name}": t for name, t in state.items()},
            "epoch": int(epoch), "best_mAP": float(rank1)}
    write_atomically(Path(path), lambda temporary: torch.save(file, temporary))


def _backbone_entries(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors in a file by their bare names, and the names that are skipped."""
    data = read_weights(path)
    inner = next((data[k] for k in ("teacher", "model", "state_dict") if isinstance(data.get(k), dict)), data)
    entries = tensors_in(inner, "module.")
    if data.get("format") == FORMAT or _is_published(entries):
        raise UserError(f"{path} is a checkpoint of a whole trained model, not backbone weights to start from; "
                        "give it to a test as --checkpoint")
    entries = tensors_in(entries, "backbone.")
    skipped = [name for name in entries if any(word in name for word in SKIPPED_WORDS)]
    return {name: t for name, t in entries.items() if name not in skipped}, skipped


def _is_published(entries: Iterable[str]) -> bool:
    return any(name.startswith(("base.", "bottleneck")) for name in entries)


def _unused_prefixes(depth: int) -> tuple[str, ...]:
    """What the published implementation keeps and never uses, in a network of `depth` blocks."""
    return "base.fc.", "base.decoder_norm.", f"base.blocks.{depth - 1}.", "base.norm."


def _renamed(names: Iterable[str], prefixes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name → name with its prefix exchanged, for the names that have one."""
    pairs = list(prefixes)
    return {name: theirs + name.removeprefix(ours)
            for name in names for ours, theirs in pairs if name.startswith(ours)}


def _block_count(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows `prefix`; 0 when none does."""
    matches = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names)
    return 1 + max((int(m[1]) for m in matches if m), default=-1)


def _check_size(path: str | Path, model: SDCLModel, cls_token: Tensor | None, depth: int) -> None:
    """Raises UserError when a file, by its class token and number of blocks, is of another width or depth."""
    if cls_token is None or cls_token.ndim != 3:
        return                                                             # `fill` says what is missing
    if (cls_token.shape[2], depth) != (model.dim, model.config.depth):
        raise UserError(f"{path} has weights of another architecture: width {cls_token.shape[2]} and {depth} blocks, "
                        f"expected width {model.dim} and {model.config.depth} blocks")


def _resample(pos_embed: Tensor, grid: tuple[int, int], path: str | Path) -> tuple[Tensor, bool]:
    """A position embedding [1, 1 + p, D] on the model's grid, bilinear, and whether that changed it.

    Its own grid is twice as high as wide where p allows (person images, 16x8), else square (timm, 14x14).
    """
    patches = pos_embed.shape[1] - 1 if pos_embed.ndim == 3 else 0
    candidates = [(ratio * w, w) for ratio in (2, 1) for w in [round((max(patches, 0) / ratio) ** 0.5)]]
    own = next(((h, w) for h, w in candidates if h * w == patches and w > 0), None)
    if own is None:
        raise UserError(f"the position embedding in {path} has shape {tuple(pos_embed.shape)}: its patches form "
                        "neither a grid twice as high as wide nor a square, so it cannot be resampled")
    if own == grid:
        return pos_embed, False
    on_grid = pos_embed[:, 1:].float().reshape(1, *own, -1).permute(0, 3, 1, 2)                      # [1, D, h, w]
    on_grid = F.interpolate(on_grid, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([pos_embed[:, :1].float(), on_grid.flatten(2).transpose(1, 2)], dim=1), True
