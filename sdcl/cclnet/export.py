"""The pseudo-labels that a CCLNet run's next epoch would train with, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from sdcl.cclnet.labels import make_labels
from sdcl.cclnet.method import METHOD, initial_model
from sdcl.cclnet.settings import Config
from sdcl.data.training_set import load_training_set
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.embedding import device_of, embed_records
from sdcl.frame.export import load_trained

__all__ = ["next_labels"]


def next_labels(run: Path, data_dir: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """`Method.next_labels`: "visible" and "infrared".

    Stage 1 and its rehearsals train with the stored labels of stage 0's last epoch; an epoch of stage 0 or 2 with the
    clusters of last.pth's features, the first one of stage 2 with those of the initial weights.
    """
    last = read_checkpoint(run / "last.pth")
    _, network, settings, trial = load_trained(run / "last.pth", data_dir)
    config = cast(Config, settings)
    epoch = min(last["epoch"] + 1, config.epochs - 1)
    now = config.at(epoch)
    records = load_training_set(config, trial).records
    if now.stage == 1:
        return last["handover"]["labels"], records, f"stored labels of stage 0, for epoch {epoch} (stage 1)"
    if epoch == config.epochs_of(2).start:
        network = initial_model(config, trial).image.to(device_of(network))
    levels = embed_records(METHOD.embedding, network, records, config, "lanczos")
    found = make_labels({m: x["features"] for m, x in levels.items()}, now, config)
    counts = found.describe(records, truth=False)
    return found.labels, records, f"labels of epoch {epoch}, stage {now.stage}: {counts}"
