"""The test during training, and what the published program's test does to the mean branches (docs/pic.md, "Tests")."""

from __future__ import annotations

import math

import numpy as np

from sdcl.data.records import Task, TestSet
from sdcl.pic.network import PICNetwork
from sdcl.pic.settings import PICConfig

__all__ = ["first_gallery", "move_as_published"]


def first_gallery(test_set: TestSet) -> TestSet:
    """The part of a test that chooses the best epoch: its first mode on its first gallery, and the images of these.

    SYSU-MM01: all-search on the gallery of trial 0; RegDB: visible to infrared, as published.
    """
    task = test_set.tasks[0]
    sides = dict([task.query, task.galleries[0]])
    images = {modality: [test_set.images[modality][row] for row in rows] for modality, rows in sides.items()}
    query, gallery = ((modality, np.arange(len(sides[modality]))) for modality in sides)
    return TestSet(images, [Task(task.mode, query, [gallery])], test_set.galleries)


def move_as_published(network: PICNetwork, test_set: TestSet, config: PICConfig) -> None:
    """Moves the mean branches as the published program does while it reads a test's embeddings: once for each batch of
    test images of their modality. Our reading: afterwards, so that embeddings do not depend on who reads them when."""
    for modality, records in test_set.images.items():
        network.move_mean(modality, math.ceil(len(records) / config.test_batch))
