"""The pseudo-labels that an SDCL run's next epoch would train with, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from sdcl.config import Config
from sdcl.data.training_set import load_training_set
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.embedding import embed_records
from sdcl.frame.export import load_trained
from sdcl.models import Embeddings
from sdcl.training.labels import make_labels

__all__ = ["next_labels"]


def next_labels(run: Path, data_dir: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """`Method.next_labels`: "visible", "infrared" and "visible_clusters", the visible rows' own clusters.

    They follow from last.pth, or, where the next epoch is the first of stage 2, from best.pth (method page, section 6).
    """
    last = read_checkpoint(run / "last.pth")
    epoch = last["epoch"] + 1
    config = Config.from_json(last["config"], run / "last.pth")
    enters_stage2 = config.at(epoch).stage == 2 and config.at(epoch - 1).stage == 1
    method, model, settings, trial = load_trained(run / ("best.pth" if enters_stage2 else "last.pth"), data_dir)
    config = cast(Config, settings)
    records = load_training_set(config, trial).records
    levels = embed_records(method.embedding, model, records, config, "bicubic")
    visible, infrared = (Embeddings(**levels[m]) for m in ("visible", "infrared"))
    labels = make_labels(visible, infrared, config.at(epoch), config)
    arrays = {"visible": labels.visible, "infrared": labels.infrared, "visible_clusters": labels.visible_clusters}
    return arrays, records, f"labels of epoch {epoch}, stage {labels.stage}: {labels.counts()}"
