"""SDCL's sections of a run's report: attention of the two heads, and the augmented views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdcl.config import Config
from sdcl.data.images import open_image
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.sets import SETS
from sdcl.data.transforms import evaluation_transform
from sdcl.models import SDCLModel
from sdcl.report import figures, findings
from sdcl.report.markup import Section, photo, picture, row
from sdcl.report.page import ReportedRun
from sdcl.training.views import InfraredTransform, VisibleTransform

__all__ = ["Attention", "attention", "attention_maps", "augmentation", "augmented_views", "class_token_attention"]


def attention(reported: ReportedRun) -> Section:
    """Where the class token looks, in the deep and in the shallow head, for six people in both modalities."""
    model, test = cast(SDCLModel, reported.model), reported.test
    ids = {m: np.array([r.identity for r in records]) for m, records in test.images.items()}
    rows = findings.spread_identities(ids, identities=6, images=1)
    records = [
        (m, test.images[m][r])
        for pair in zip(*(rows[m] for m in MODALITIES), strict=True)
        for m, r in zip(MODALITIES, pair, strict=True)
    ]
    cells = []
    for item in attention_maps(model, records):
        size = model.config.image_width, model.config.image_height
        image = open_image(item.record.path).resize(size)
        maps = "".join(
            picture(figures.photo_uri(figures.heat(image, getattr(item, level)), 144), level)
            for level in ("deep", "shallow")
        )
        whole = picture(figures.photo_uri(image, 144), f"id {item.record.identity}")
        cells.append(f'<div class="triple">{whole}{maps}</div>')
    return (
        "attention",
        "Attention of the class token",
        "<p>The last block's attention from the class token to the patches, mean over the heads, bright where it is "
        "high. The deep head reads the patches after all blocks, the shallow head those of the patch embedding."
        f'</p><div class="triples">{"".join(cells)}</div>',
    )


def augmentation(reported: ReportedRun) -> Section:
    """Training views of a few images of each modality."""
    config = cast(Config, reported.run.config)
    parts = []
    names = {
        "visible": "three draws of view 1 and of view 2, where one channel is copied over all three",
        "infrared": "six draws: one channel copied over all three, grey, or unchanged",
    }
    for modality in MODALITIES:
        records = SETS[config.dataset].training(config.data_dir, modality, reported.trial)
        chosen = [records[i] for i in np.linspace(0, len(records) - 1, 4).round().astype(int)]
        rows = []
        for record, pictures in augmented_views(config, modality, chosen, draws=6):
            drawn = "".join(
                picture(figures.photo_uri(view), f"view {1 + n % 2}" if modality == "visible" else f"draw {1 + n}")
                for n, view in enumerate(pictures)
            )
            rows.append(row(photo(record, "the image", "query"), drawn))
        title = f"<h3>{modality.capitalize()} <small>{names[modality]}</small></h3>"
        parts.append(f'{title}<div class="ranked">{"".join(rows)}</div>')
    return "views", "What the network sees in training", "".join(parts)


@dataclass(frozen=True)
class Attention:
    """An image and where its class token looks: maps [rows, columns] of the patch grid, each of sum 1."""

    record: ImageRecord
    modality: str
    deep: np.ndarray
    shallow: np.ndarray


def class_token_attention(block: nn.Module, tokens: Tensor) -> Tensor:
    """Attention of the class token to all tokens in a transformer block: [B, N, D] -> [B, heads, N], sum 1."""
    layers: Any = block  # nn.Module does not type them
    attn = layers.attn
    q, k, _ = attn.qkv(layers.norm1(tokens)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return torch.softmax((q[:, :, :1] @ k.transpose(2, 3))[:, :, 0] * q.shape[-1] ** -0.5, dim=-1)


@torch.no_grad()
def attention_maps(model: SDCLModel, records: Sequence[tuple[str, ImageRecord]]) -> list[Attention]:
    """Mean over the heads of the class token's attention to the patches, in the deep and in the shallow head's block.

    records: (modality, image). The share that goes to the class token itself is left out.
    """
    config = model.config
    transform = evaluation_transform(config.image_height, config.image_width, "lanczos")
    tokens: dict[str, Tensor] = {}
    heads = {"deep": model.deep_head, "shallow": model.shallow_head}
    hooks = [
        head.register_forward_pre_hook(lambda _, args, name=name: tokens.__setitem__(name, args[0]))
        for name, head in heads.items()
    ]
    was_training = model.training
    model.eval()
    try:
        out = []
        for modality, record in records:
            image = transform(open_image(record.path))[None].to(model.cls_token.device)
            model(**{modality: image})
            maps = {}
            for name, head in heads.items():
                weights = class_token_attention(head.block, tokens[name])[0, :, 1:].mean(0)
                maps[name] = (weights / weights.sum()).view(config.grid).cpu().numpy()
            out.append(Attention(record, modality, **maps))
        return out
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def augmented_views(
    config: Config, modality: str, records: Sequence[ImageRecord], draws: int, seed: int = 0
) -> list[tuple[ImageRecord, list[Image.Image]]]:
    """Training views of images, as pictures; visible draws alternate between view 1 and view 2 (channel exchange)."""
    size, padding = config.image_size, config.crop_padding
    transforms: list[VisibleTransform | InfraredTransform]
    if modality == "visible":
        transforms = [VisibleTransform(*size, bool(d % 2), padding) for d in range(draws)]
    else:
        transforms = [InfraredTransform(*size, padding)] * draws
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [(r, [findings.as_picture(t(open_image(r.path))) for t in transforms]) for r in records]
