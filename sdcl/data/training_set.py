"""The training images of a run, found, counted and identified before anything else happens."""

from __future__ import annotations

from dataclasses import dataclass

from sdcl import distributed
from sdcl.config import Config
from sdcl.data.readable import unreadable_images
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.sets import SETS
from sdcl.data.synthetic import SyntheticConfig
from sdcl.data.verify import CheckReport, data_fingerprint
from sdcl.errors import UserError

__all__ = ["TrainingSet", "load_training_set", "training_fingerprint"]


@dataclass(frozen=True)
class TrainingSet:
    """Training images by modality, sorted by path as text: their order numbers the clusters and the memories' rows.

    Identities in the records are for diagnostics alone; nothing that trains reads them.
    """

    records: dict[str, list[ImageRecord]]
    fingerprint: str
    report: CheckReport


def load_training_set(config: Config, trial: int) -> TrainingSet:
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
        return SETS[config.dataset].check(config.data_dir, trial, config.published_counts)

    report = distributed.from_main(check)
    records = _records(config, trial)
    unreadable = unreadable_images(records, "training", config.skip_unreadable)
    readable = {m: [r for r in part if r.path not in unreadable] for m, part in records.items()}
    _check_batches(readable, config)
    return TrainingSet(readable, _fingerprint(records), report)


def training_fingerprint(config: Config, trial: int) -> str:
    """The fingerprint of the training images in `config.data_dir`. Raises UserError where there are none."""
    return _fingerprint(_records(config, trial))


def _records(config: Config, trial: int) -> dict[str, list[ImageRecord]]:
    return {m: SETS[config.dataset].training(config.data_dir, m, trial) for m in MODALITIES}


def _fingerprint(records: dict[str, list[ImageRecord]]) -> str:
    return data_fingerprint([r for m in MODALITIES for r in records[m]])


def _check_batches(records: dict[str, list[ImageRecord]], config: Config) -> None:
    """Raises UserError when no clustering of these images could fill a batch."""
    for modality, part in records.items():
        if config.instances > len(part):
            raise UserError(
                f"--instances {config.instances} is more than the {len(part)} {modality} training images in "
                f"{config.data_dir}: lower it, or complete the data"
            )
        if config.identities > len(part) // 2:
            raise UserError(
                f"--identities {config.identities} is more than the {len(part) // 2} clusters of two images that "
                f"{len(part)} {modality} training images in {config.data_dir} can form: lower it, or complete the data"
            )


def _draw(config: Config) -> None:
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
        height=config.model.image_height,
        width=config.model.image_width,
    )
    draw(config.data_dir, people)
