"""What a test is made of: images, and which of them are retrieved from which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdcl.data.records import ImageRecord

__all__ = ["Task", "TestSet"]


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
