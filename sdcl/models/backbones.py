"""Weights to start training from: pre-trained vision transformers in the layouts that their projects save.

What a file holds is told by its names and shapes. Wrappers are taken off, layouts that the network can compute are
brought to one set of names (timm's), and of those that it cannot, the family is named in the refusal.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.config import PATCH, ModelConfig
from sdcl.errors import UserError
from sdcl.frame.checkpoints import FORMAT
from sdcl.models.sdcl_model import SDCLModel
from sdcl.models.weights import LoadReport, block_count, check_size, is_published, load_checkpoint, renamed
from sdcl.tensor_files import fill, read_weights, tensors_in

__all__ = ["build_model", "load_backbone"]

log = logging.getLogger(__name__)

PREFIXES = (
    # this project      backbone file; {last}: number of the last block
    ("cls_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("stem_visible.", "patch_embed."),
    ("blocks.", "blocks."),
    ("deep_head.block.", "blocks.{last}."),
    ("deep_head.norm.", "norm."),
)

WRAPPERS = ("teacher", "target_encoder", "model", "state_dict", "module")
"""Entries of a file's top level that hold the weights (DINO, MSN, MAE, Lightning, DeepSpeed); the first counts."""

SKIPPED_WORDS = ("head", "dist", "pre_logits")
"""Entries of a backbone file whose name contains one of these belong to its own training task."""

WORKS = "what works: ICS (TransReID-SSL) or PASS weights; with --stem patch a plain ViT of DINO, MAE or timm"

FAMILIES: tuple[tuple[str, Callable[[Mapping[str, Tensor]], bool], str], ...] = (
    # How the family is called, what tells it by names or shapes, and why it does not fit
    ("CLIP", lambda e: any(re.search(r"^visual\.|^norm_pre\.|(^|\.)class_embedding$", n) for n in e),
     "it normalises before its first block and activates otherwise"),
    ("Swin Transformer", lambda e: any(re.search(r"layers\..*relative_position_bias_table$", n) for n in e),
     "it attends within windows and has no class token"),
    ("DINOv3", lambda e: any(n.startswith(("rope_embed.", "storage_tokens")) for n in e),
     "it rotates positions instead of adding an embedding"),
    ("DINOv2", lambda e: any(n.endswith((".ls1.gamma", "layer_scale1.lambda1")) for n in e),
     "it scales each branch of its blocks and has patches of 14 pixels"),
    ("Hugging Face Transformers", lambda e: any(re.search(r"encoder\.layer\.0\.|embeddings\.cls_token$", n) for n in e),
     "its names and the parts of its attention are its own; take the same weights from timm or their own project"),
    ("BEiT or EVA", lambda e: any(n.endswith((".attn.q_bias", ".gamma_1")) for n in e),
     "its attention and blocks have further parameters"),
    ("ResNet", lambda e: "layer1.0.conv1.weight" in e or "conv1.weight" in e and "layer4.0.conv1.weight" in e,
     "it is no transformer"),
    ("MAE, fine-tuned", lambda e: "fc_norm.weight" in e and "norm.weight" not in e,
     "it averages patches and has no norm of its class token; take the pre-trained file"),
    ("I-JEPA or another ViT without a class token", lambda e: "pos_embed" in e and "cls_token" not in e
     and "blocks.0.norm1.weight" in e and "patch_embed.proj.weight" in e, "both heads read the class token"),
)  # fmt: skip


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
    """Starts a model from a pre-trained ViT (method page, section 1, "Pre-trained weights", a), or from a whole trained
    model.

    Takes weights by timm's names, bare, wrapped (`teacher`, `model`, `state_dict`, …) or prefixed (`module.`,
    `backbone.`, `base.`, …), with a convolutional stem (ICS, PASS, CION) or plain patches (`config.stem` "patch": DINO,
    MAE, timm, PersonViT, HAP). The position embedding is resampled to the model's grid; then the infrared stem is
    copied from the visible one and both heads from the last block and norm, their BatchNorms afresh. Part tokens (PASS)
    and classifiers are left out. A checkpoint of SDCL, this project's or published, fills the whole model instead.

    Plain patches into a model with convolutional stems: all else is loaded, the stems stay random, their names are in
    `.missing`, and a UserWarning says so.

    Raises:
        UserError: no such file, not readable, another architecture, or less in it than the model needs.
    """
    data = read_weights(path)
    if data.get("format") == FORMAT and data.get("method", "sdcl") != "sdcl":
        raise UserError(f"{path} holds weights of another method ({data['method']}), which SDCL cannot start from")
    if data.get("format") == FORMAT or is_published(tensors_in(data.get("state_dict", data), "module.")):
        return load_checkpoint(model, path)
    source, skipped = _entries(data)
    _refuse_other_families(source, model, path)
    check_size(path, model, source.get("cls_token"), block_count(source, "blocks."))
    names = renamed(model.state_dict(), [(o, t.format(last=model.config.depth - 1)) for o, t in PREFIXES])
    notes, missing = [], list[str]()
    if parts := [name for name in source if re.fullmatch(r"part_token\d+|part\d+_pos", name)]:
        notes.append("part tokens left out")
        _without_parts(source)
        skipped += parts
    plain = "patch_embed.conv.0.weight" not in source and "patch_embed.proj.weight" in source
    if plain and model.config.stem == "conv" and source["patch_embed.proj.weight"].shape[1] == 3:
        of_stem = [name for name in source if name.startswith("patch_embed.")]
        missing = sorted(theirs for theirs in names.values() if theirs.startswith("patch_embed."))
        names = {ours: theirs for ours, theirs in names.items() if theirs not in missing}
        skipped += of_stem
        source = {name: t for name, t in source.items() if name not in of_stem}
        warnings.warn(f"{path} is a plain ViT: its {PATCH}x{PATCH} patch embedding does not fit the convolutional "
                      "stem, which starts from random weights; --stem patch uses it. Published results need the ICS "
                      "weights of TransReID-SSL", UserWarning, stacklevel=2)
    resized = []
    if "pos_embed" in source:
        source["pos_embed"], grid = _resampled(source["pos_embed"], model.config.grid, path)
        if grid != model.config.grid:
            resized.append("pos_embed")
            notes.append("position grid {}x{}, resampled to {}x{}".format(*grid, *model.config.grid))
    extra = sorted(source.keys() - set(names.values()))
    # A surplus entry inside the network (layer scale, say) would change what it computes; one outside it does not.
    fill(model, source, names, path, [n for n in extra if n.startswith(("blocks.", "patch_embed."))])
    model.copy_branches()
    kind = "plain patches" if plain else "convolutional stem"
    about = "; ".join([f"backbone: ViT with {kind}", *notes])
    report = LoadReport(f"{path} ({about})", sorted(names.values()), resized, sorted({*skipped, *extra}), missing)
    log.info(report.table())
    return report


def _entries(data: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors in a file by their bare names, and the names that are skipped."""
    while inner := next((data[k] for k in WRAPPERS if isinstance(data.get(k), dict)), None):
        data = inner
    entries = tensors_in(data)
    for prefix in ("module.", "model.", "module."):
        entries = {name.removeprefix(prefix): t for name, t in entries.items()}
    inside = next((p for p in ("backbone.", "base.") if any(n.startswith(f"{p}blocks.") for n in entries)), "")
    skipped = [name for name in entries if not name.startswith(inside) or any(word in name for word in SKIPPED_WORDS)]
    bare = {name.removeprefix(inside): t for name, t in entries.items() if name not in skipped}
    return bare, [name.removeprefix(inside) for name in skipped]


def _refuse_other_families(source: Mapping[str, Tensor], model: SDCLModel, path: str | Path) -> None:
    """Raises UserError, with the family's name and what would work, for networks that this one cannot compute."""
    family = next(((name, why) for name, recognises, why in FAMILIES if recognises(source)), None)
    if family:
        raise UserError(f"{path} seems to be of {family[0]}: {family[1]}. It cannot be started from; {WORKS}")
    if model.config.stem == "patch" and "patch_embed.conv.0.weight" in source:
        raise UserError(f"{path} has a convolutional stem, which this network has not: leave out --stem patch")


def _without_parts(source: dict[str, Tensor]) -> None:
    """Makes a ViT with part tokens (PASS) one without, in place: the class token's position and those of the patches
    are joined where they are apart, those of parts are taken out."""
    count = len([name for name in source if re.fullmatch(r"part_token\d+", name)])
    for name in [n for n in source if re.fullmatch(r"part_token\d+|part\d+_pos", n)]:
        del source[name]
    position, own = source.get("pos_embed"), source.pop("cls_pos", None)
    if position is not None and own is not None:
        source["pos_embed"] = torch.cat([own, position], dim=1)
    elif position is not None:
        source["pos_embed"] = torch.cat([position[:, :1], position[:, 1 + count :]], dim=1)


def _resampled(pos_embed: Tensor, grid: tuple[int, int], path: str | Path) -> tuple[Tensor, tuple[int, int]]:
    """A position embedding [1, 1 + p, D] on the model's grid, bilinear, and the grid that it came with."""
    patches = pos_embed.shape[1] - 1 if pos_embed.ndim == 3 else 0
    own = _grid(patches)
    if own is None:
        raise UserError(f"the position embedding in {path} has shape {tuple(pos_embed.shape)}: its patches form no "
                        "grid of an image's proportions, so it cannot be resampled")
    if own == grid:
        return pos_embed, own
    on_grid = pos_embed[:, 1:].float().reshape(1, *own, -1).permute(0, 3, 1, 2)                      # [1, D, h, w]
    on_grid = F.interpolate(on_grid, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([pos_embed[:, :1].float(), on_grid.flatten(2).transpose(1, 2)], dim=1), own


def _grid(patches: int) -> tuple[int, int] | None:
    """Rows and columns of so many patches: twice as high as wide (person images, 16x8), square (14x14) or three times
    as high (24x8) where the number allows, else what comes nearest to twice (21x10), up to four times; or None."""
    pairs = [(patches // w, w) for w in range(1, patches + 1) if patches % w == 0 and w * w <= patches]
    exact = [pair for ratio in (2, 1, 3) for pair in pairs if pair[0] == ratio * pair[1]]
    near = sorted((max(h / (2 * w), 2 * w / h), (h, w)) for h, w in pairs if h <= 4 * w)
    return exact[0] if exact else near[0][1] if near else None
