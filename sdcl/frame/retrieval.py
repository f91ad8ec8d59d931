"""The cross-modality tests: embed the test images once, then every mode and trial is an index into them ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from sdcl.data.images import unreadable_images
from sdcl.data.records import MODALITIES
from sdcl.data.sets import SETS, Task, TestSet
from sdcl.data.verify import data_fingerprint
from sdcl.errors import UserError
from sdcl.evaluation import Metrics, chance, retrieval_metrics
from sdcl.frame.embedding import Levels, embed_records
from sdcl.frame.method import Method
from sdcl.settings import RunSettings

__all__ = ["METRICS", "TestSet", "average", "chance_table", "evaluate", "load_test_set", "modes", "parts_of"]

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")

Table = dict[str, dict[str, float]]
"""mode → metric → fraction; `<metric>_std` beside each is the deviation over trials (population, 0 for one trial)."""


def load_test_set(config: RunSettings, trial: int = 0, shots: int = 1) -> TestSet:
    """The data set's query and gallery lists, by its protocol (`DataSet.test_set`).

    Every image is read once, so that a damaged one is known before training rather than after its first epoch.

    Args:
        shots: gallery images of an identity and camera, where the protocol has several.

    Raises:
        UserError: the data set's folders or lists are missing or malformed, query and gallery share no identity, or
            images cannot be read (unless `config.skip_unreadable`, which leaves them out).
    """
    test_set = SETS[config.dataset].test_set(config.data_dir, trial, config.galleries, shots)
    unreadable = unreadable_images(test_set.images, "test", config.skip_unreadable)
    test_set = _without(test_set, unreadable)
    for task in test_set.tasks:
        query, *galleries = (set(test_set.of(side)[0]) for side in (task.query, *task.galleries))
        if not all(query & gallery for gallery in galleries):
            raise UserError(
                f"the test {task.mode} in {config.data_dir} has no image of a query's identity in a gallery: query and "
                "gallery are not of the same people; restore the released files and lists, or name your own right"
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


def fingerprint(test: TestSet) -> str:
    """What tells test images apart from others: of each modality, names and sizes (`data_fingerprint`)."""
    return " ".join(data_fingerprint(test.images[m]) for m in MODALITIES)


def embed_test_set(
    method: Method,
    model: nn.Module,
    test: TestSet,
    config: RunSettings,
    bar: Callable[[str, int], Callable[[int], object]] | None = None,
) -> dict[str, Levels]:
    """Embeddings of all test images, by modality; each image once. bar: see `embed_records`."""
    return embed_records(method.embedding, model, test.images, config, method.interpolation, bar)


def evaluate(
    method: Method,
    test: TestSet,
    embeddings: dict[str, Levels],
    config: RunSettings,
    final: bool,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Table:
    """The table of a test: mean over the trials of each mode, and the deviation.

    Args:
        method: tells what is compared (`Method.features`) and how (`Method.similarity`).
        embeddings: by modality, rows as in `test.images`, as the method's network makes them.
        final: the final test rather than one during training, where a method tells them apart.
        similarity: of the features of query [Q, d] and gallery [G, d], as [Q, G], in place of the method's own;
            `sdcl.rerank.rerank` is one.

    Returns:
        A row a mode for the method's first kind of features, then a row `<mode>_<kind>` for each further kind.

    Raises:
        UserError: embeddings are not finite, or no query has an image of its identity in the gallery.
    """
    rules = SETS[config.dataset]
    compare = similarity or method.similarity
    by_modality = {m: method.features(levels, config, final) for m, levels in embeddings.items()}
    table = {}
    for number, kind in enumerate(next(iter(by_modality.values()))):
        for task in test.tasks:
            query, trials = test.of(task.query), []
            for gallery in task.galleries:
                scores = compare(*(by_modality[modality][kind][rows] for modality, rows in (task.query, gallery)))
                found = test.of(gallery)
                removed = rules.removed(*query, *found)
                try:
                    rank_on = config.rank_on or rules.rank_on
                    trials.append(retrieval_metrics(scores, query[0], found[0], removed, rank_on))
                except ValueError as error:  # embeddings that are not finite, or no query with a hit
                    raise UserError(f"the test {task.mode} cannot be computed: {error}") from error
            table[f"{task.mode}_{kind}" if number else task.mode] = _summary(trials)
    return table


def chance_table(test: TestSet, config: RunSettings) -> Table:
    """What random embeddings are expected to reach on the same query and gallery."""
    table, rules = {}, SETS[config.dataset]
    for task in test.tasks:
        query = test.of(task.query)
        trials = []
        for gallery in task.galleries:
            found = test.of(gallery)
            removed, rank_on = rules.removed(*query, *found), config.rank_on or rules.rank_on
            trials.append(chance(query[0], found[0], removed=removed, rank_on=rank_on))
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


def modes(results: Mapping[str, Any]) -> Table:
    """The test modes in a log line or one level of results.json: mode → metric → fraction."""
    return {name: value for name, value in results.items() if isinstance(value, dict) and "rank1" in value}


def parts_of(results: Mapping[str, Any]) -> list[str]:
    """The names of the tables in results.json beside the selected weights' own, in their order."""
    return [name for name, value in results.items() if isinstance(value, dict) and modes(value)]
