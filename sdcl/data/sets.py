"""The data sets: of each its layout, published counts and test protocol, as data. The one place to add another ("Adding
a data set")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdcl.data.readers import folder, llcm, regdb, sysu, sysu02
from sdcl.data.records import ImageRecord, Task, TestSet
from sdcl.data.synthetic import SyntheticConfig, write_llcm_layout, write_regdb_layout, write_sysu_layout
from sdcl.data.verify import CheckReport, Count
from sdcl.errors import UserError
from sdcl.evaluation import same_camera, same_place

__all__ = ["SETS", "DataSet", "Task", "TestSet"]

Removal = Callable[[Any, Any, Any, Any], np.ndarray]
"""Identities of query [Q] and gallery [G], cameras of query and gallery to bool [Q, G]: what is taken out of a query's
ranking (`sdcl.evaluation.same_place`, `same_camera`)."""


@dataclass(frozen=True)
class DataSet:
    """A layout of files and the protocol of its test. The functions raise UserError for files that are not as they
    should be."""

    title: str
    """As papers call it."""
    training: Callable[[Path, str, int], list[ImageRecord]]
    """Data folder, modality and trial to the training images, sorted by path as text."""
    test: Callable[[Path, int, str, int], TestSet]
    """Data folder, trial, one of `galleries`, and gallery images of an identity and camera to the test (`test_set`
    checks them first)."""
    check: Callable[[Path, int, Mapping[str, Count] | None], CheckReport]
    """Data folder, trial and the counts to compare with (None: none) to what is there."""
    modes: tuple[str, ...]
    """What a test measures, each with a table of its own, where the images for it are there. The Rank-1 of the first
    selects the best epoch."""
    published: Mapping[str, Count] | None = None
    """Counts that the data set is known to have."""
    trials: Sequence[int] = (0,)
    """Each is trained and tested by itself, and the results averaged; (0,): one training set."""
    galleries: tuple[str, ...] = ("all",)
    """How gallery images are chosen: "seeded" picks by Python's generator, "official" ones by the data set's own lists,
    or "all" of them. Where there are several, `--galleries` says which."""
    multi_shot: bool = False
    """Whether picks can be of more than one image of an identity and camera."""
    rank_on: Literal["identities", "images"] = "images"
    """What Rank-k counts: the identities of a ranked list, each at its first image, or the images themselves."""
    removal: Removal | None = None
    """Gallery images that do not count for a query; None: all do."""
    same_identities: bool = True
    """Whether a number means the same person in training and test; labels of training lists start at 0."""
    mend_split: str = "move the images of either part elsewhere"
    """What to do when training and test overlap."""
    draw: Callable[[Path, SyntheticConfig], object] | None = None
    """Draws synthetic people in this layout, ready to be trained on; None: they have no such layout."""

    def test_set(self, root: Path, trial: int = 0, galleries: str = "seeded", shots: int = 1) -> TestSet:
        """The test of the images in a data folder.

        Args:
            galleries: "seeded", the default of `--galleries`, or "official"; a set with one kind of gallery uses that.
            shots: gallery images of an identity and camera. With more than one the modes are named for it, such as
                `all_search_10_shot`: their numbers do not compare with single-shot ones.

        Raises:
            UserError: the protocol has no such galleries or shots, or files are missing or malformed.
        """
        if galleries == "official" and "official" not in self.galleries:
            raise UserError(f"--galleries official: {self.title} has no official galleries; leave the option out")
        if shots > 1 and not self.multi_shot:
            raise UserError(f"--shots {shots} is a variant of SYSU-MM01's test; that of {self.title} has none")
        return self.test(root, trial, galleries if galleries in self.galleries else self.galleries[0], shots)

    def removed(
        self, query_ids: np.ndarray, query_cams: np.ndarray, gallery_ids: np.ndarray, gallery_cams: np.ndarray
    ) -> np.ndarray | None:
        """bool [Q, G]: gallery images that do not count for a query; None where all do. Integers [Q] and [G]."""
        return None if self.removal is None else self.removal(query_ids, gallery_ids, query_cams, gallery_cams)


def _draw_sysu(root: Path, people: SyntheticConfig) -> None:
    write_sysu_layout(root, people)
    sysu.prepare(root, progress=False)


def _draw_regdb(root: Path, people: SyntheticConfig) -> None:
    write_regdb_layout(root, people)
    regdb.prepare(root, progress=False)


SETS: dict[str, DataSet] = {
    "sysu": DataSet(
        title="SYSU-MM01",
        training=lambda root, modality, _: sysu.train_records(root, modality),
        test=lambda root, _, galleries, shots: sysu.test_set(root, shots, galleries),
        check=lambda root, _, published: sysu.verify(root, deep=False, published=published),
        modes=("all_search", "indoor_search"),
        published=sysu.PUBLISHED,
        galleries=("seeded", "official"),
        multi_shot=True,
        rank_on="identities",
        removal=same_place,
        mend_split="restore the released lists, remove rgb_modify and ir_modify, and prepare again",
        draw=_draw_sysu,
    ),
    "regdb": DataSet(
        title="RegDB",
        training=regdb.train_records,
        test=lambda root, trial, *_: regdb.test_set(root, trial),
        check=lambda root, trial, published: regdb.verify(root, deep=False, trials=[trial], published=published),
        modes=("visible_to_thermal", "thermal_to_visible"),
        published=regdb.PUBLISHED,
        trials=regdb.TRIALS,
        same_identities=False,
        mend_split="restore the released lists, remove rgb_modify and ir_modify, and prepare again",
        draw=_draw_regdb,
    ),
    "sysu02": DataSet(
        title="SYSU-MM02",
        training=lambda root, modality, _: sysu02.train_records(root, modality),
        test=lambda root, *_: sysu02.test_set(root),
        check=lambda root, _, published: sysu02.verify(root, published=published),
        modes=("visible_to_infrared", "infrared_to_visible"),
        published=sysu02.PUBLISHED,
        rank_on="identities",
        same_identities=False,
    ),
    "llcm": DataSet(
        title="LLCM",
        training=lambda root, modality, _: llcm.train_records(root, modality),
        test=lambda root, *_: llcm.test_set(root),
        check=lambda root, _, published: llcm.verify(root, published=published),
        modes=("infrared_to_visible", "visible_to_infrared"),
        published=llcm.PUBLISHED,
        galleries=("seeded",),
        rank_on="identities",
        removal=same_camera,
        same_identities=False,
        mend_split="restore the released lists",
        draw=write_llcm_layout,
    ),
    "folder": DataSet(
        title="a folder of your own",
        training=lambda root, modality, _: folder.train_records(root, modality),
        test=lambda root, *_: folder.test_set(root),
        check=lambda root, *_: folder.verify(root),
        modes=("infrared_to_visible", "visible_to_infrared"),
    ),
}
"""By the name that the setting `dataset` gives."""
