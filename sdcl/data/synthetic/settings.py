"""What a synthetic data set consists of: its size, its difficulty, its identities and their image counts."""

from __future__ import annotations

from dataclasses import dataclass

from sdcl.data.synthetic.randomness import LAYOUT, Draws

VISIBLE_CAMERAS = (1, 2, 4, 5)
INFRARED_CAMERAS = (3, 6)
INDOOR_CAMERAS = (1, 2, 3)
CAMERAS = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class SyntheticConfig:
    """Size, seed and difficulty of a synthetic data set. Every field shapes the images; equal configs give equal sets.

    The defaults are those of the demo. Raises ValueError for a value out of its range.
    """

    train_identities: int = 40
    """Training identities, at least 2; a quarter of them is listed in val_id.txt, as in SYSU-MM01."""
    test_identities: int = 30
    images_per_camera: int | tuple[int, int] = 12
    """Images of an identity in one camera, or their (lowest, highest) number, from which each folder draws its own."""
    height: int = 96
    width: int = 48
    seed: int = 0
    """0 … 2**64 - 1. Another seed is another world: other people, other cameras."""
    own_infrared: float = 0.05
    """Share of a garment's infrared brightness that is its own; the rest is a grey mixture of its visible channels."""
    absence: float = 0.1
    """Probability that an identity is not seen by a camera. At least one visible and one infrared camera see it."""
    view_range: float = 0.5
    """Views in which people are seen: 0 = all from the front, 1 = from every side."""
    occlusion: float = 0.1
    """Share of the images in which something stands before the person."""
    camera_strength: float = 0.5
    """How much cameras differ in light, colour, contrast and noise: 0 = not at all."""
    crop_jitter: float = 0.5
    """How loosely the boxes fit, as from a detector: 0 = exactly."""
    counts: tuple[tuple[int, ...], ...] | None = None
    """Exact images of each identity (rows: the training, then the test identities) in cameras 1 … 6, in place of
    images_per_camera and absence. RegDB's layout takes no notice of it: there each identity has 10 + 10 images."""

    def __post_init__(self) -> None:
        low, high = self.count_range
        checks = [
            (self.train_identities >= 2, "train_identities must be at least 2"),
            (self.test_identities >= 1, "test_identities must be at least 1"),
            (self.train_identities + self.test_identities <= 9999, "identities have four digits: at most 9999 in all"),
            (1 <= low <= high <= 9999, "images_per_camera must be 1 … 9999, or such a pair (lowest, highest)"),
            (self.height >= 16 and self.width >= 8, "height must be at least 16 and width at least 8 pixels"),
            (0 <= self.seed < 2**64, "seed must be 0 … 2**64 - 1"),
            *((0 <= getattr(self, name) <= 1, f"{name} must be 0 … 1")
              for name in ("own_infrared", "absence", "view_range", "occlusion")),
            *((0 <= getattr(self, name) <= 3, f"{name} must be 0 … 3") for name in ("camera_strength", "crop_jitter")),
        ]  # fmt: skip
        if self.counts is not None:
            rows = self.train_identities + self.test_identities
            right = len(self.counts) == rows and all(
                len(row) == len(CAMERAS) and all(0 <= count <= 9999 for count in row) for row in self.counts
            )
            checks.append((right, f"counts must have {rows} rows (train + test identities) of 6 numbers 0 … 9999"))
        for holds, message in checks:
            if not holds:
                raise ValueError(f"synthetic data set: {message} (got {self})"[:400])

    @property
    def count_range(self) -> tuple[int, int]:
        """(lowest, highest) number of images of an identity in a camera."""
        return (self.images_per_camera,) * 2 if isinstance(self.images_per_camera, int) else self.images_per_camera


def identity_splits(config: SyntheticConfig) -> dict[str, list[int]]:
    """Sorted identity numbers of "train", "val" and "test", mixed over 1 … number of identities as in SYSU-MM01."""
    total = config.train_identities + config.test_identities
    numbers = [1 + place for place in Draws(config.seed, LAYOUT).permutation(total)]
    validation = (config.train_identities + 2) // 4  # 99 of SYSU-MM01's 395
    train = config.train_identities - validation
    return {
        "train": sorted(numbers[:train]),
        "val": sorted(numbers[train : config.train_identities]),
        "test": sorted(numbers[config.train_identities :]),
    }


def image_counts(config: SyntheticConfig) -> dict[int, tuple[int, ...]]:
    """Number of images of each identity in cameras 1 … 6 (0: not seen there); keys are identity numbers, ascending."""
    splits = identity_splits(config)
    if config.counts is not None:
        rows = [*sorted(splits["train"] + splits["val"]), *splits["test"]]
        return dict(sorted(zip(rows, config.counts, strict=True)))
    return {number: _drawn_counts(config, number) for number in sorted(sum(splits.values(), []))}


def _drawn_counts(config: SyntheticConfig, number: int) -> tuple[int, ...]:
    draws = Draws(config.seed, LAYOUT, identity=number)
    low, high = config.count_range
    counts = [low + draws.below(high - low + 1) for _ in CAMERAS]
    for modality in (VISIBLE_CAMERAS, INFRARED_CAMERAS):
        sure = draws.choose(modality)
        for camera in modality:
            if draws.chance(config.absence) and camera != sure:
                counts[camera - 1] = 0
    return tuple(counts)


def sysu_shape(height: int = 32, width: int = 16, seed: int = 0) -> SyntheticConfig:
    """The config of a set with the shape of SYSU-MM01, by default of small images.

    296 + 99 training identities with 22,258 visible and 11,909 infrared images; 96 test identities with 6,775 visible
    and 3,803 infrared images, in 112 folders of cameras 1 and 2 and 189 of cameras 4 and 5: a gallery of one image a
    folder has 112 images indoors and 301 in all. How the images divide among the folders is made up.
    """
    # Identities seen in each camera 1 … 6; every one is seen by a visible and by an infrared camera.
    train = _divide(395, {1: 230, 2: 230, 3: 230, 4: 392, 5: 389, 6: 395}, visible=22_258, infrared=11_909)
    test = _divide(96, {1: 56, 2: 56, 3: 56, 4: 95, 5: 94, 6: 96}, visible=6_775, infrared=3_803)
    return SyntheticConfig(395, 96, height=height, width=width, seed=seed, counts=(*train, *test))


def regdb_shape(height: int = 32, width: int = 16, seed: int = 0) -> SyntheticConfig:
    """The config of a set with the shape of RegDB, by default of small images: 206 + 206 identities."""
    return SyntheticConfig(206, 206, height=height, width=width, seed=seed)


def _divide(identities: int, seen: dict[int, int], visible: int, infrared: int) -> list[tuple[int, ...]]:
    """Rows of image counts in cameras 1 … 6, with unequal folders and exactly these totals."""
    table = [[0] * len(CAMERAS) for _ in range(identities)]
    for cameras, total in ((VISIBLE_CAMERAS, visible), (INFRARED_CAMERAS, infrared)):
        # Outdoor cameras miss identities at the start of the list, indoor ones at its end: nobody is missed by all.
        folders = [
            (row, camera)
            for row in range(identities)
            for camera in cameras
            if (row < seen[camera] if camera in INDOOR_CAMERAS else row >= identities - seen[camera])
        ]
        weights = [4 + place * 7 % 5 for place in range(len(folders))]
        whole, passed, given = sum(weights), 0, 0
        for (row, camera), weight in zip(folders, weights, strict=True):
            passed += weight
            table[row][camera - 1] = total * passed // whole - given
            given = total * passed // whole
    return [tuple(row) for row in table]
