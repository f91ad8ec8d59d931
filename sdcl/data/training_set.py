"""The training images of a run, found, counted and identified before anything else happens."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdcl import distributed
from sdcl.data.images import file_key, unreadable_images
from sdcl.data.records import MODALITIES, ImageRecord, shown
from sdcl.data.sets import SETS, DataSet
from sdcl.data.synthetic import SyntheticConfig
from sdcl.data.verify import CheckReport, CheckRow, data_fingerprint
from sdcl.errors import UserError
from sdcl.settings import RunSettings

__all__ = ["TrainingSet", "load_training_set", "training_fingerprint"]


@dataclass(frozen=True)
class TrainingSet:
    """Training images by modality, sorted by path as text: their order numbers the clusters and the memories' rows.

    Identities in the records are for diagnostics alone; nothing that trains reads them.
    """

    records: dict[str, list[ImageRecord]]
    fingerprint: str
    report: CheckReport


def load_training_set(config: RunSettings, trial: int) -> TrainingSet:
    """Finds a run's training images, compares their counts with the published ones and reads each of them once.

    A synthetic set (`config.synthetic_seed`) is drawn and prepared first where it is not there yet. Fingerprint and
    report are those of all images, `records` those that can be read.

    Raises:
        UserError: folders or lists are missing or malformed (the message says what to put where), images cannot be
            read (unless `config.skip_unreadable`), or there are too few of them for a batch.
    """

    def check() -> CheckReport:  # on one process: the others find the files drawn
        if config.synthetic_seed is not None:
            _draw(config)
        rules = SETS[config.dataset]
        return rules.check(config.data_dir, trial, rules.published if config.published_counts else None)

    report = distributed.from_main(check)
    records = _records(config, trial)
    unreadable = unreadable_images(records, "training", config.skip_unreadable)
    distributed.from_main(lambda: _check_apart(config, trial, records))
    readable = {m: [r for r in part if r.path not in unreadable] for m, part in records.items()}
    paired, rows = _unpaired(readable, config.unpaired, config.seed)
    return TrainingSet(paired, _fingerprint(records), replace(report, rows=[*report.rows, *rows]))


def training_fingerprint(config: RunSettings, trial: int) -> str:
    """The fingerprint of the training images in `config.data_dir`. Raises UserError where there are none."""
    return _fingerprint(_records(config, trial))


def _records(config: RunSettings, trial: int) -> dict[str, list[ImageRecord]]:
    return {m: SETS[config.dataset].training(config.data_dir, m, trial) for m in MODALITIES}


def _unpaired(
    records: dict[str, list[ImageRecord]], share: float, seed: int
) -> tuple[dict[str, list[ImageRecord]], list[CheckRow]]:
    """The records without one modality of a share of the identities that have both, and rows that say what is left.

    The identities follow from the seed; half of them keep the visible, half the infrared images.
    """
    if share == 0:
        return records, []
    present = {m: {r.identity for r in part} for m, part in records.items()}
    both = sorted(set.intersection(*present.values()))
    chosen = np.random.default_rng(seed).permutation(both)[: round(share * len(both))].tolist()
    kept = {identity: MODALITIES[n % 2] for n, identity in enumerate(chosen)}
    left = {m: [r for r in part if kept.get(r.identity, m) == m] for m, part in records.items()}
    rows = [
        CheckRow(f"{m} {what}, --unpaired {share:g}", count, None, True)
        for m, part in left.items()
        for what, count in (("training images", len(part)), ("identities alone", sum(k == m for k in kept.values())))
    ]
    return left, rows


def _fingerprint(records: dict[str, list[ImageRecord]]) -> str:
    return data_fingerprint([r for m in MODALITIES for r in records[m]])


def _check_apart(config: RunSettings, trial: int, records: Mapping[str, Sequence[ImageRecord]]) -> None:
    """UserError where an image is in training and test both, or, in a published split, an identity; where a folder of
    one's own has identities in both, a warning.

    Identity 0 stands for an unknown one there. The test itself may be missing or malformed: whoever reads it will say.
    """
    rules = SETS[config.dataset]
    try:
        test = [r for part in rules.test_set(config.data_dir, trial).images.values() for r in part]
    except UserError:
        return
    training = [r for part in records.values() for r in part]
    tested = {key: r.path for r in test for key in _file_keys(r.path, rules)}
    shared = [(r.path, tested[key]) for r in training for key in _file_keys(r.path, rules) if key in tested]
    if shared:
        first, other = shared[0]
        raise UserError(
            f"{config.data_dir}: {len(shared):,} training images are test images, too, such as {shown(first)} "
            f"({shown(other)}); {rules.mend_split}"
        )
    if not rules.same_identities:
        return
    known = {r.identity for r in training} & {r.identity for r in test}
    if rules.published is not None and known:
        raise UserError(
            f"{config.data_dir}: {len(known):,} training identities are test identities, too, such as {min(known)}; "
            f"{rules.mend_split}"
        )
    if known - {0}:
        print(
            f"warning: {config.data_dir}: {len(known - {0}):,} training identities are test identities, too, such as "
            f"{min(known - {0})}: if they are the same people, the test says nothing about others",
            file=sys.stderr,
            flush=True,
        )


def _file_keys(path: str, rules: DataSet) -> list[object]:
    """What tells a file apart: itself and, where each trial has prepared folders, the name that a copy there keeps,
    with its size."""
    if len(rules.trials) == 1:
        return [file_key(path)]
    name = re.sub(r"^-?\d+_c\d+_", "", os.path.basename(path))
    return [file_key(path), (name, os.path.getsize(path) if os.path.exists(path) else 0)]


def _draw(config: RunSettings) -> None:
    draw = SETS[config.dataset].draw
    if draw is None:
        raise UserError(
            f"--synthetic-seed {config.synthetic_seed} draws people in the layouts of SYSU-MM01, RegDB and LLCM alone: "
            "leave the option out, or choose another preset"
        )
    train, test = config.synthetic_identities
    height, width = config.drawn_size
    seed, images = config.synthetic_seed or 0, config.synthetic_images
    people = SyntheticConfig(train, test, images, seed=seed, height=height, width=width)
    draw(config.data_dir, people)
