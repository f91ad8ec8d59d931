"""The training images of a run, found, counted and identified before anything else happens."""

from __future__ import annotations

from dataclasses import dataclass

from sdcl import distributed
from sdcl.data.images import unreadable_images
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.sets import SETS
from sdcl.data.synthetic import SyntheticConfig
from sdcl.data.verify import CheckReport, data_fingerprint
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
    readable = {m: [r for r in part if r.path not in unreadable] for m, part in records.items()}
    return TrainingSet(readable, _fingerprint(records), report)


def training_fingerprint(config: RunSettings, trial: int) -> str:
    """The fingerprint of the training images in `config.data_dir`. Raises UserError where there are none."""
    return _fingerprint(_records(config, trial))


def _records(config: RunSettings, trial: int) -> dict[str, list[ImageRecord]]:
    return {m: SETS[config.dataset].training(config.data_dir, m, trial) for m in MODALITIES}


def _fingerprint(records: dict[str, list[ImageRecord]]) -> str:
    return data_fingerprint([r for m in MODALITIES for r in records[m]])


def _draw(config: RunSettings) -> None:
    draw = SETS[config.dataset].draw
    if draw is None:
        raise UserError(
            f"--synthetic-seed {config.synthetic_seed} draws people in the layouts of SYSU-MM01 and RegDB alone: leave "
            "it away, or choose another preset"
        )
    train, test = config.synthetic_identities
    people = SyntheticConfig(
        train_identities=train,
        test_identities=test,
        seed=config.synthetic_seed or 0,
        height=config.image_size[0],
        width=config.image_size[1],
    )
    draw(config.data_dir, people)
