"""The cross-modality tests: embed the test images once, then every mode and trial is an index into them (section 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdcl.config import Config
from sdcl.data import regdb
from sdcl.data.records import ImageRecord
from sdcl.errors import UserError
from sdcl.embedding import embed, retrieval_features
from sdcl.evaluation import Metrics, chance, regdb_metrics, sysu_gallery, sysu_metrics, sysu_query
from sdcl.models import Embeddings, SDCLModel

__all__ = ["METRICS", "TestSet", "average", "chance_table", "evaluate", "load_test_set"]

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
SYSU_TRIALS = range(10)

Table = dict[str, dict[str, float]]
"""mode → metric → fraction; `<metric>_std` beside each is the deviation over trials (population, 0 for one trial)."""


@dataclass(frozen=True)
class Task:
    """One mode of a test, and its trials: rows of query and gallery in the test set's images."""

    mode: str
    query: tuple[str, np.ndarray]
    galleries: list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class TestSet:
    """Images of a test, each once, and what is retrieved from what."""

    images: dict[str, list[ImageRecord]]
    tasks: list[Task]

    def of(self, side: tuple[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Identities and cameras of a query or gallery."""
        modality, rows = side
        records = [self.images[modality][r] for r in rows]
        return np.array([r.identity for r in records]), np.array([r.camera for r in records])


def load_test_set(config: Config, trial: int = 0) -> TestSet:
    """The published protocol's query and gallery lists: SYSU-MM01's two modes of 10 trials, or a RegDB trial's two directions.

    Raises:
        UserError: the data set's folders or lists are missing or malformed.
    """
    if config.dataset == "regdb":
        images = {m: regdb.test_records(config.data_dir, m, trial) for m in ("visible", "infrared")}
        visible, infrared = (("visible", np.arange(len(images["visible"]))), ("infrared", np.arange(len(images["infrared"]))))
        return TestSet(images, [Task("visible_to_thermal", visible, [infrared]), Task("thermal_to_visible", infrared, [visible])])
    try:
        return _sysu_test_set(config.data_dir)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"the test set cannot be read: {error}") from error


def _sysu_test_set(root: Path) -> TestSet:
    query = [ImageRecord(*q) for q in sysu_query(root)]
    picks = {mode: [[ImageRecord(*g) for g in sysu_gallery(root, mode, t)] for t in SYSU_TRIALS] for mode in ("all", "indoor")}
    # One image is often picked in several trials: each is embedded once.
    visible = sorted({record for trials in picks.values() for gallery in trials for record in gallery})
    row = {record: i for i, record in enumerate(visible)}
    rows = ("infrared", np.arange(len(query)))
    tasks = [Task(f"{mode}_search", rows, [("visible", np.array([row[r] for r in gallery])) for gallery in trials])
             for mode, trials in picks.items()]
    return TestSet({"visible": visible, "infrared": query}, tasks)


def embed_test_set(model: SDCLModel, test: TestSet, config: Config, bar: Callable[[str, int], Callable[[int], object]] | None = None) -> dict[str, Embeddings]:
    """Embeddings of all test images, by modality; each image once. bar: makes a progress bar of a name and a number of images."""
    return {modality: embed(model, [r.path for r in records], modality, interpolation="lanczos", batch_size=config.embedding_batch,  # type: ignore[arg-type]
                            workers=config.workers, precision=config.precision, progress=bar(f"test {modality}", len(records)) if bar else None)
            for modality, records in test.images.items()}


def evaluate(test: TestSet, embeddings: dict[str, Embeddings], config: Config, final: bool) -> Table:
    """The table of a test: mean over the trials of each mode, and the deviation.

    Args:
        embeddings: by modality, rows as in `test.images`; un-normalised.
        final: the final test; SYSU-MM01 then sums the two levels' cosines (section 8).
    """
    each_level = final and config.dataset == "sysu"
    features = {m: retrieval_features(e, each_level, config.shallow) for m, e in embeddings.items()}
    table = {}
    for task in test.tasks:
        trials = []
        for gallery in task.galleries:
            similarity = features[task.query[0]][task.query[1]] @ features[gallery[0]][gallery[1]].t()
            (q_ids, q_cams), (g_ids, g_cams) = test.of(task.query), test.of(gallery)
            trials.append(sysu_metrics(similarity, q_ids, g_ids, q_cams, g_cams) if config.dataset == "sysu"
                          else regdb_metrics(similarity, q_ids, g_ids))
        table[task.mode] = _summary(trials)
    return table


def chance_table(test: TestSet, config: Config) -> Table:
    """What random embeddings are expected to reach on the same query and gallery."""
    table = {}
    for task in test.tasks:
        q_ids, q_cams = test.of(task.query)
        trials = []
        for gallery in task.galleries:
            g_ids, g_cams = test.of(gallery)
            trials.append(chance(q_ids, g_ids, q_cams, g_cams) if config.dataset == "sysu" else chance(q_ids, g_ids))
        table[task.mode] = _summary(trials)
    return table


def _summary(trials: Sequence[Metrics]) -> dict[str, float]:
    rows = np.array([[*(float(m.cmc[k - 1]) for k in (1, 5, 10, 20)), float(m.mAP), float(m.mINP)] for m in trials])
    return _mean_and_deviation(rows)


def _mean_and_deviation(rows: np.ndarray) -> dict[str, float]:
    mean, std = rows.mean(0), rows.std(0)
    return {**{k: float(v) for k, v in zip(METRICS, mean, strict=True)}, **{f"{k}_std": float(v) for k, v in zip(METRICS, std, strict=True)}}


def average(tables: Sequence[Table]) -> Table:
    """Mean and deviation over RegDB's trials, each with its own model."""
    return {mode: _mean_and_deviation(np.array([[t[mode][k] for k in METRICS] for t in tables])) for mode in tables[0]}
