"""Tiny data sets in the layouts of SYSU-MM01 and RegDB, and in a folder of one's own, for tests."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sdcl.data.readers import sysu
from sdcl.data.records import MODALITIES
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout

# fmt: off
TINY_RUN = [
    "demo", "--pretrained", "None", "--synthetic-identities", "6", "3", "--synthetic-images", "4", "--epochs", "2",
    "--stage2-from", "1",
    "--heterogeneous-from", "0", "--eps", "0.6", "--steps-stage1", "2", "--steps-stage2", "2", "--identities", "1",
    "--instances", "4", "--k1", "8", "--k1-visible-stage2", "8", "--k2", "3", "--dim", "32", "--depth", "2",
    "--image-height", "32", "--image-width", "16", "--learning-rate", "1e-5",
]
# fmt: on
"""Arguments of train_sdcl.py for a run of seconds, both stages, from random weights. A batch is one pseudo-identity,
since few of the visible clusters get a label of their own then."""


def save_image(path: Path, number: int) -> None:
    """A small image whose content, and so its size, differs from most others'."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def make_sysu(root: Path) -> Path:
    """Training ids 3, 5 and 12 (validation), test ids 7 and 30; two images a camera, id 5 unseen by cameras 4 and 6."""
    number = 0
    for camera in range(1, 7):
        for identity in (3, 5, 7, 12, 30):
            if (identity, camera) in ((5, 4), (5, 6)):
                continue
            for image in (2, 1):
                number += 1
                save_image(root / f"cam{camera}" / f"{identity:04d}" / f"{image:04d}.jpg", number)
    for name, ids in (("train", "5,3"), ("val", "12"), ("test", "30,7")):
        (root / "exp").mkdir(exist_ok=True)
        (root / "exp" / f"{name}_id.txt").write_text(ids + "\n")
    return root


def make_regdb(root: Path) -> Path:
    """Four people of five images a modality; odd trials train on people 0 and 1, even ones on 2 and 3, as 0 and 1."""
    number = 0
    files: dict[str, list[str]] = {"visible": [], "thermal": []}
    for modality in files:
        for person in range(4):
            for image in range(5):
                number += 1
                relative = f"{modality.capitalize()}/{person}/p{person}_{modality[0]}_{image}.bmp"
                save_image(root / relative, number)
                files[modality].append(relative)
    (root / "idx").mkdir()
    for trial in range(1, 11):
        for modality, paths in files.items():
            halves = {"train": paths[:10], "test": paths[10:]}
            if trial % 2 == 0:
                halves = {"train": paths[10:], "test": paths[:10]}
            for split, part in halves.items():
                lines = [f"{path} {n // 5}\n" for n, path in enumerate(part)]
                (root / "idx" / f"{split}_{modality}_{trial}.txt").write_text("".join(lines))
    return root


def draw_folder(root: Path) -> Path:
    """Drawn people named as in Market-1501: training images in a sub-folder a modality, the test's modality in the
    names."""
    with tempfile.TemporaryDirectory(dir=root.parent) as drawn:  # beside it, so that files can be linked
        people = SyntheticConfig(8, 5, images_per_camera=3, height=32, width=16)
        write_sysu_layout(Path(drawn), people, workers=1, progress=False)
        training, test = sysu.raw_split(drawn)
        for modality in MODALITIES:
            for ids, parts in ((training, ["bounding_box_train"]), (test, ["query", "bounding_box_test"])):
                for n, (path, identity, camera) in enumerate(sysu.raw_records(drawn, modality, ids)):
                    place = root / parts[n % len(parts)] / (modality if ids is training else "")
                    word = "" if ids is training else f"_{modality}"
                    place.mkdir(parents=True, exist_ok=True)
                    os.link(path, place / f"{identity:04d}_c{camera}_{n:04d}{word}.jpg")
    return root


def remove(relative: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        path = root / relative
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return act


def write(relative: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / relative).write_text(text) and None
