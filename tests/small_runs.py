"""A run folder as a finished run leaves it, made in a second: drawn people, random weights, a made-up log."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from sdcl.config import PRESETS, Config, ModelConfig
from sdcl.data.readers import sysu
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout
from sdcl.files import write_json
from sdcl.frame.checkpoints import pack, save_checkpoint
from sdcl.frame.retrieval import METRICS
from sdcl.models import build_model

MODEL = ModelConfig(image_height=48, image_width=32, dim=16, depth=2, heads=2, drop_path=0.0)


def draw_people(root: Path) -> Path:
    """Eight training and six test identities in the layout of SYSU-MM01, prepared."""
    write_sysu_layout(root, SyntheticConfig(8, 6, images_per_camera=2, height=48, width=24, absence=0.0), workers=1)
    sysu.prepare(root, progress=False)
    return root


def table(value: float, modes: tuple[str, str] = ("all_search", "indoor_search")) -> dict[str, dict[str, float]]:
    return {mode: {k: value for k in METRICS} | {f"{k}_std": value / 20 for k in METRICS} for mode in modes}


def log_lines(epochs: int, stage2_from: int, modes: tuple[str, str] = ("all_search", "indoor_search")) -> list[dict]:
    """Entries as training writes them, with smooth made-up values."""
    lines = []
    for epoch in range(epochs):
        stage = 2 if epoch >= stage2_from else 1
        done = (epoch + 1) / epochs
        line = {
            "epoch": epoch,
            "stage": stage,
            "loss": 9 - 5 * done,
            "cluster_visible_deep": 3 - 2 * done,
            "cluster_infrared_shallow": 2 - done,
            "neighbor_visible_visible": 1.5,
            "neighbors_visible_infrared": 0.5 * done,
            "seconds": {"embed": 2.0, "train": 5.0},
            **table(0.6 * done, modes),
        }
        for modality, clusters in (("visible", 12), ("infrared", 9)):
            line |= {
                f"{modality}_clusters": clusters,
                f"{modality}_outliers": int(40 * (1 - done)),
                f"{modality}_identities": 8,
                f"{modality}_purity": 0.8 * done,
                f"{modality}_ari": 0.6 * done,
                f"{modality}_cluster_sizes": [0, 1, 4, clusters - 5, 0, 0, 0, 0],
            }
        if stage == 2:
            line |= {"associated_visible_clusters": 8, "association_accuracy": 0.75}
        lines.append(line)
    return lines


def make_run(folder: Path, data: Path, lines: list[dict] | None = None, **changes) -> Path:
    """changes: of the settings. The weights are random, the log is `lines`, the table follows its last one."""
    config: Config = dataclasses.replace(PRESETS["demo"], data_dir=data, run_dir=folder, model=MODEL, **changes)
    lines = log_lines(config.epochs, config.stage2_from) if lines is None else lines
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"method": "sdcl", **config.to_json()})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    trial = config.trial or 0
    packed = pack(
        build_model(MODEL), config, method="sdcl", epoch=1, trial=trial, fingerprint="made-up", metrics={"rank1": 0.4}
    )
    save_checkpoint(folder / "best.pth", packed)
    results = {**table(0.6), "last": table(0.58), "stage1": table(0.5), "start": table(0.2), "chance": table(0.1),
               "epoch": 1, "selected_by": "test-rank1"}  # fmt: skip
    write_json(folder / "results.json", results)
    return folder


def random_features(test_set, dim: int = 6) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(5)
    return {m: torch.from_numpy(rng.normal(size=(len(r), dim)).astype(np.float32)) for m, r in test_set.images.items()}
