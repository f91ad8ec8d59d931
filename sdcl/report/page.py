"""A run folder's report.html: reads the run, embeds its test images once and puts the sections together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdcl.checkpoints import read_checkpoint, write_atomically
from sdcl.config import Config, ModelConfig
from sdcl.data.records import MODALITIES
from sdcl.errors import UserError
from sdcl.models import Embeddings, SDCLModel, build_model, load_checkpoint
from sdcl.report import markup, sections
from sdcl.report.run_files import read_run
from sdcl.retrieval import TestSet, embed_test_set, load_test_set

__all__ = ["write_report"]


def write_report(
    folder: Path,
    data_dir: Path | None = None,
    cache_features: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Path:
    """Writes report.html into a run folder; the test images are embedded once with best.pth.

    Args:
        folder: of a run; it may still be going on.
        data_dir: where the data set is now, if no longer where the run found it.
        cache_features: keep the embeddings as features.npz and use them again while best.pth stays the same.
        say: told what is being done.

    Returns:
        The page's path.

    Raises:
        UserError: no run, no best.pth, or data that are not there.
    """
    run = read_run(folder)
    best = folder / "best.pth"
    if not best.is_file():
        raise UserError(f"{folder} holds no best.pth: it is written at the end of the first epoch")
    checkpoint = read_checkpoint(best)
    trial = checkpoint["trial"]
    config = run.config if data_dir is None else Config.from_json({**run.config.to_json(), "data_dir": str(data_dir)})
    test = load_test_set(config, trial)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(ModelConfig(**{**checkpoint["config"]["model"], "pretrained": None})).to(device)
    load_checkpoint(model, best)
    say(f"embedding {sum(map(len, test.images.values()))} test images with {best} (epoch {checkpoint['epoch']})")
    embeddings = _embeddings(model, test, config, best, folder / "features.npz" if cache_features else None)

    say("drawing")
    parts = [
        sections.curves(run),
        sections.results(run, test, checkpoint["epoch"]),
        *sections.retrieval(test, embeddings, config),
        sections.tsne(test, embeddings),
        sections.attention(model, test),
        sections.augmentation(config, trial),
        sections.settings(run, device),
    ]
    page = folder / "report.html"
    text = markup.page(run, checkpoint["epoch"], parts)
    write_atomically(page, lambda p: p.write_text(text, encoding="utf-8"))
    return page


def _embeddings(
    model: SDCLModel, test: TestSet, config: Config, best: Path, cache: Path | None
) -> dict[str, Embeddings]:
    """The test images' embeddings, from the cache where it is of these weights and images."""
    if cache is None:
        return embed_test_set(model, test, config)
    digest = hashlib.sha256(best.read_bytes())
    for modality in MODALITIES:
        digest.update("\n".join(record.path for record in test.images[modality]).encode())
    key = digest.hexdigest()
    if cache.is_file():
        with np.load(cache) as saved:
            if str(saved["key"]) == key:
                return {
                    m: Embeddings(*(torch.from_numpy(saved[f"{m}_{x}"]) for x in Embeddings._fields))
                    for m in MODALITIES
                }
    embeddings = embed_test_set(model, test, config)
    arrays = {f"{m}_{x}": getattr(e, x).cpu().numpy() for m, e in embeddings.items() for x in e._fields}

    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, key=np.array(key), **arrays)

    write_atomically(cache, save)
    return embeddings
