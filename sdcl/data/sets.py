"""What the programs ask of a data set, for each of them; the one place to add another ("Adding a data set")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdcl.data import folder, regdb, sysu
from sdcl.data.records import ImageRecord
from sdcl.data.synthetic import SyntheticConfig, write_regdb_layout, write_sysu_layout
from sdcl.data.tasks import TestSet
from sdcl.data.verify import REGDB_PUBLISHED, SYSU_PUBLISHED, CheckReport, verify_folder, verify_regdb, verify_sysu

__all__ = ["SETS", "DataSet"]


@dataclass(frozen=True)
class DataSet:
    """A layout of files and the rules of its test. The functions raise UserError for files that are not as they
    should be."""

    training: Callable[[Path, str, int], list[ImageRecord]]
    """Data folder, modality and trial to the training images, sorted by path as text."""
    test: Callable[[Path, int], TestSet]
    """Data folder and trial to the test. The Rank-1 of its first mode selects the best epoch."""
    check: Callable[[Path, int, bool], CheckReport]
    """Data folder and trial to counts, compared with the published ones if the last argument says so."""
    trials: Sequence[int] = (0,)
    """Each is trained and tested by itself, and the results averaged; (0,): one training set."""
    multi_shot: Callable[[Path, int], TestSet] | None = None
    """Data folder and gallery images of an identity and camera to that variant of the test; None: there is none."""
    sysu_metrics: bool = False
    """Metrics of SYSU-MM01 (Rank-k counts identities, the query's own place is removed) rather than those of RegDB."""
    draw: Callable[[Path, SyntheticConfig], object] | None = None
    """Draws synthetic people in this layout, ready to be trained on; None: they have no such layout."""


def _draw_sysu(root: Path, people: SyntheticConfig) -> None:
    write_sysu_layout(root, people)
    sysu.prepare(root, progress=False)


def _draw_regdb(root: Path, people: SyntheticConfig) -> None:
    write_regdb_layout(root, people)
    regdb.prepare(root, progress=False)


SETS: dict[str, DataSet] = {
    "sysu": DataSet(
        training=lambda root, modality, _: sysu.train_records(root, modality),
        test=lambda root, _: sysu.test_set(root),
        check=lambda root, _, compare: verify_sysu(root, deep=False, published=SYSU_PUBLISHED if compare else None),
        multi_shot=sysu.test_set,
        sysu_metrics=True,
        draw=_draw_sysu,
    ),
    "regdb": DataSet(
        training=regdb.train_records,
        test=regdb.test_set,
        check=lambda root, trial, compare: verify_regdb(
            root, deep=False, trials=[trial], published=REGDB_PUBLISHED if compare else None
        ),
        trials=regdb.TRIALS,
        draw=_draw_regdb,
    ),
    "folder": DataSet(
        training=lambda root, modality, _: folder.train_records(root, modality),
        test=lambda root, _: folder.test_set(root),
        check=lambda root, *_: verify_folder(root),
    ),
}
"""By the name that `Config.dataset` gives."""
