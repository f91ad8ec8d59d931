"""The cross-modality tests: embed the test images once, then every mode and trial is an index into them (section 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdcl.config import Config
from sdcl.data import regdb
from sdcl.data.readable import unreadable_images
from sdcl.data.records import ImageRecord
from sdcl.embedding import embed_records, retrieval_features
from sdcl.errors import UserError
from sdcl.evaluation import Metrics, chance, regdb_metrics, sysu_gallery, sysu_metrics, sysu_query
from sdcl.models import Embeddings, SDCLModel

__all__ = ["METRICS", "TestSet", "average", "chance_table", "evaluate", "load_test_set", "modes"]

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
    """The published protocol's query and gallery lists: SYSU-MM01's two modes of 10 trials, or a RegDB trial's two
    directions.

    Every image is read once, so that a damaged one is known before training rather than after its first epoch.

    Raises:
        UserError: the data set's folders or lists are missing or malformed, query and gallery share no identity, or
            images cannot be read (unless `config.skip_unreadable`, which leaves them out).
    """
    test_set = _listed_test_set(config, trial)
    unreadable = unreadable_images(test_set.images, "test", config.skip_unreadable)
    test_set = _without(test_set, unreadable)
    for task in test_set.tasks:
        query, *galleries = (set(test_set.of(side)[0]) for side in (task.query, *task.galleries))
        if not all(query & gallery for gallery in galleries):
            raise UserError(
                f"the test {task.mode} in {config.data_dir} has no image of a query's identity in a gallery: query and "
                "gallery are not of the same data; restore the released files and lists"
            )
    return test_set


def _without(test: TestSet, unreadable: set[str]) -> TestSet:
    """The test set without these images."""
    if not unreadable:
        return test
    kept = {m: [r.path not in unreadable for r in records] for m, records in test.images.items()}
    new_row = {m: np.cumsum(keep) - 1 for m, keep in kept.items()}

    def left(side: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
        modality, rows = side
        return modality, new_row[modality][rows[np.array(kept[modality])[rows]]]

    return TestSet(
        {m: [r for r in records if r.path not in unreadable] for m, records in test.images.items()},
        [Task(task.mode, left(task.query), [left(gallery) for gallery in task.galleries]) for task in test.tasks],
    )


def _listed_test_set(config: Config, trial: int) -> TestSet:
    """The lists as published, whatever can be read of their images."""
    if config.dataset == "regdb":
        images = {m: regdb.test_records(config.data_dir, m, trial) for m in ("visible", "infrared")}
        visible, infrared = (
            ("visible", np.arange(len(images["visible"]))),
            ("infrared", np.arange(len(images["infrared"]))),
        )
        return TestSet(
            images, [Task("visible_to_thermal", visible, [infrared]), Task("thermal_to_visible", infrared, [visible])]
        )
    try:
        return _sysu_test_set(config.data_dir)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"the test set cannot be read: {error}") from error


def _sysu_test_set(root: Path) -> TestSet:
    query = [ImageRecord(*q) for q in sysu_query(root)]
    picks = {
        mode: [[ImageRecord(*g) for g in sysu_gallery(root, mode, t)] for t in SYSU_TRIALS]
        for mode in ("all", "indoor")
    }
    # One image is often picked in several trials: each is embedded once.
    visible = sorted({record for trials in picks.values() for gallery in trials for record in gallery})
    row = {record: i for i, record in enumerate(visible)}
    rows = ("infrared", np.arange(len(query)))
    tasks = [
        Task(f"{mode}_search", rows, [("visible", np.array([row[r] for r in gallery])) for gallery in trials])
        for mode, trials in picks.items()
    ]
    return TestSet({"visible": visible, "infrared": query}, tasks)


def embed_test_set(
    model: SDCLModel, test: TestSet, config: Config, bar: Callable[[str, int], Callable[[int], object]] | None = None
) -> dict[str, Embeddings]:
    """Embeddings of all test images, by modality; each image once. bar: see `embed_records`."""
    return embed_records(model, test.images, config, "lanczos", bar)


def evaluate(test: TestSet, embeddings: dict[str, Embeddings], config: Config, final: bool) -> Table:
    """The table of a test: mean over the trials of each mode, and the deviation.

    Args:
        embeddings: by modality, rows as in `test.images`; un-normalised.
        final: the final test; SYSU-MM01 then sums the two levels' cosines (section 8).

    Raises:
        UserError: embeddings are not finite, or no query has an image of its identity in the gallery.
    """
    each_level = final and config.dataset == "sysu"
    features = {m: retrieval_features(e, each_level, config.shallow) for m, e in embeddings.items()}
    table = {}
    for task in test.tasks:
        trials = []
        for gallery in task.galleries:
            similarity = features[task.query[0]][task.query[1]] @ features[gallery[0]][gallery[1]].t()
            (q_ids, q_cams), (g_ids, g_cams) = test.of(task.query), test.of(gallery)
            try:
                trials.append(
                    sysu_metrics(similarity, q_ids, g_ids, q_cams, g_cams)
                    if config.dataset == "sysu"
                    else regdb_metrics(similarity, q_ids, g_ids)
                )
            except ValueError as error:  # embeddings that are not finite, or no query with a hit
                raise UserError(f"the test {task.mode} cannot be computed: {error}") from error
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
    return {
        **{k: float(v) for k, v in zip(METRICS, mean, strict=True)},
        **{f"{k}_std": float(v) for k, v in zip(METRICS, std, strict=True)},
    }


def average(tables: Sequence[Table]) -> Table:
    """Mean and deviation over RegDB's trials, each with its own model."""
    return {mode: _mean_and_deviation(np.array([[t[mode][k] for k in METRICS] for t in tables])) for mode in tables[0]}


def modes(results: dict[str, Any]) -> Table:
    """The test modes in a log line or one level of results.json: mode → metric → fraction."""
    return {name: value for name, value in results.items() if isinstance(value, dict) and "rank1" in value}
