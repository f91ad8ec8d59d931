"""All images of a run of AML, found, counted and identified before anything else happens."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace

from sdcl import distributed
from sdcl.aml.settings import Config
from sdcl.data.images import unreadable_images
from sdcl.data.readers.market_gen import Source, load_source
from sdcl.data.records import ImageRecord
from sdcl.data.synthetic import SyntheticConfig, write_source_layout
from sdcl.data.training_set import TrainingSet, load_training_set
from sdcl.data.verify import data_fingerprint
from sdcl.errors import UserError

__all__ = ["Images", "load_images"]

SOURCE_WORLD = 1_000
"""Seed of the drawn source, whatever the target's is: one set of people, other ones than the targets of other seeds."""


@dataclass(frozen=True)
class Images:
    """target: its training images. source: None where the run has no phase of it. source_fingerprint: of its files and
    labels, empty without one."""

    target: TrainingSet
    source: Source | None = None
    source_fingerprint: str = ""

    def by_modality(self) -> list[dict[str, list[ImageRecord]]]:
        """What is read as the caches are named: the target's modalities, and the source's originals and partners."""
        if self.source is None:
            return [self.target.records]
        partners = [ImageRecord(path, 0, 0) for path in self.source.partners]
        return [self.target.records, {"source": self.source.records, "generated": partners}]


def load_images(config: Config, trial: int) -> Images:
    """Finds the target's training images and, for the phases that need it, the source; draws them where they are to be
    drawn. Every file is read once.

    Raises:
        UserError: as `load_training_set` and `load_source`; images cannot be read; a modality has fewer images than
            k-means has clusters.
    """
    target = load_training_set(config, trial)
    if "target_kmeans" in config.phases:
        for modality, records in target.records.items():
            if len(records) < config.clusters:
                raise UserError(
                    f"--clusters {config.clusters} is more than the {len(records)} {modality} training images in "
                    f"{config.data_dir}: lower it, or complete the data"
                )
    if not {"source", "source_mutual"} & set(config.phases):
        return Images(target)
    if config.synthetic_seed is not None:
        distributed.from_main(lambda: _draw(config))
    source = load_source(config.source_dir, config.style, config.source_labels)
    return Images(target, _without_unreadable(source, config), _fingerprint(source))


def _without_unreadable(source: Source, config: Config) -> Source:
    """The pairs of which both files can be read."""
    partners = [ImageRecord(path, 0, 0) for path in source.partners]
    bad = unreadable_images({"source": source.records, "generated": partners}, "source", config.skip_unreadable)
    kept = [(r, p) for r, p in zip(source.records, source.partners, strict=True) if r.path not in bad and p not in bad]
    if len(kept) < len(source.records):
        present = {label: n for n, label in enumerate(sorted({r.identity for r, _ in kept}))}
        kept = [(r._replace(identity=present[r.identity]), p) for r, p in kept]
    return replace(source, records=[r for r, _ in kept], partners=[p for _, p in kept])


def _fingerprint(source: Source) -> str:
    """16 hexadecimal digits that identify the files and their labels."""
    files = data_fingerprint([*source.records, *(ImageRecord(path, 0, 0) for path in source.partners)])
    labels = [record.identity for record in source.records]
    return hashlib.sha256(f"{files} {labels}".encode()).hexdigest()[:16]


def _draw(config: Config) -> None:
    train, test = config.synthetic_identities
    height, width = config.drawn_size
    people = SyntheticConfig(train, test, config.synthetic_images, seed=SOURCE_WORLD, height=height, width=width)
    write_source_layout(config.source_dir, people, config.style, progress=sys.stderr.isatty())
