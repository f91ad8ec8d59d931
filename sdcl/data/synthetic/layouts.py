"""Writing a synthetic set as files, in the raw layout of SYSU-MM01 or of RegDB."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from sdcl.data.synthetic.cameras import REGDB_THERMAL, REGDB_VISIBLE, draw_image
from sdcl.data.synthetic.randomness import LAYOUT, Draws
from sdcl.data.synthetic.settings import CAMERAS, VISIBLE_CAMERAS, SyntheticConfig, identity_splits, image_counts
from sdcl.errors import UserError

RENDERER = 1
"""Grows with every change of the pixels, so that a set drawn by an older renderer is not taken for a current one."""
FINISHED, UNFINISHED = "synthetic.json", "synthetic-unfinished.json"
REGDB_IMAGES, REGDB_TRIALS = 10, 10
SOURCE_RESPONSE = 3
"""The infrared camera whose light and film the partners of a drawn source have."""
LLCM_CAMERAS = {"vis": range(1, 10), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}


class _Picture(NamedTuple):
    """One file to write: its path in the set and the address of its image."""

    path: str
    identity: int
    camera: int
    image: int
    response: int | None = None


def write_sysu_layout(root: Path, config: SyntheticConfig, workers: int | None = None, progress: bool = True) -> None:
    """Write a synthetic set in SYSU-MM01's raw layout: cam1 … cam6/<4-digit id>/<4-digit image>.jpg and exp/*_id.txt.

    Safe to interrupt and to repeat: a repeated call finishes what an interrupted one left, and returns at once when the
    set is complete. The decoded pixels of the JPEG files (quality 92, no colour subsampling) follow from the config and
    the JPEG library; what `draw_image` gives, before encoding, is the same on every machine.

    Args:
        root: the folder of the set; made if needed.
        config: what to draw.
        workers: processes; None = one for each CPU core, fewer for a small set. The files do not depend on it.
        progress: show a progress bar.

    Raises:
        UserError: root holds a set of another config or other files, or cannot be written.
    """
    identities = [
        [
            _Picture(f"cam{camera}/{number:04d}/{image:04d}.jpg", number, camera, image)
            for camera in CAMERAS
            for image in range(1, counts[camera - 1] + 1)
        ]
        for number, counts in image_counts(config).items()
    ]
    lists = {
        f"exp/{name}_id.txt": ",".join(map(str, numbers)) + "\n" for name, numbers in identity_splits(config).items()
    }
    _write(Path(root), "SYSU-MM01", config, identities, lists, workers, progress)


def write_regdb_layout(root: Path, config: SyntheticConfig, workers: int | None = None, progress: bool = True) -> None:
    """Write a synthetic set in RegDB's raw layout: Visible/, Thermal/ and the lists of ten trials in idx/.

    Ten images an identity and modality, as .bmp; the thermal ones are rendered as near infrared. In each trial a fresh
    draw of `config.train_identities` identities is for training, the others for test; labels count from 0 in each list.

    Args and Raises: as `write_sysu_layout`.
    """
    total = config.train_identities + config.test_identities
    places = {"visible": ("Visible", REGDB_VISIBLE), "thermal": ("Thermal", REGDB_THERMAL)}

    def path(modality: str, number: int, image: int) -> str:
        return f"{places[modality][0]}/{number}/{modality}_{number:04d}_{image:02d}.bmp"

    identities = [
        [
            _Picture(path(modality, number, image), number, camera, image)
            for modality, (_, camera) in places.items()
            for image in range(1, REGDB_IMAGES + 1)
        ]
        for number in range(1, total + 1)
    ]
    lists = {}
    for trial in range(1, REGDB_TRIALS + 1):
        order = [1 + place for place in Draws(config.seed, LAYOUT, image=trial).permutation(total)]
        parts = {"train": order[: config.train_identities], "test": order[config.train_identities :]}
        for part, numbers in parts.items():
            for modality in places:
                lists[f"idx/{part}_{modality}_{trial}.txt"] = "".join(
                    f"{path(modality, number, image)} {label}\n"
                    for label, number in enumerate(sorted(numbers))
                    for image in range(1, REGDB_IMAGES + 1)
                )
    _write(Path(root), "RegDB", config, identities, lists, workers, progress)


def write_source_layout(
    root: Path, config: SyntheticConfig, style: str, workers: int | None = None, progress: bool = True
) -> None:
    """Write a synthetic source in market1501_gen's layout: people in visible light, partners, and pseudo-labels.

    The visible cameras' images alone. The same moments as an infrared camera of this world would develop them play the
    part of images that a diffusion model generated; training identities are in the train folders, the others in the
    test folders. `pseudo_labels.txt` holds the drawn identities.

    Args:
        style: ending of the partners' folders.
        The others, and Raises: as `write_sysu_layout`.
    """
    splits = identity_splits(config)
    folders = {number: "market1501_test" if number in splits["test"] else "market1501_train" for number in
               image_counts(config)}  # fmt: skip
    identities, labels = [], {}
    for number, counts in image_counts(config).items():
        pictures = []
        for camera in VISIBLE_CAMERAS:
            for image in range(1, counts[camera - 1] + 1):
                name = f"{number:04d}_c{camera}s1_{image:06d}_00.jpg"
                labels[name] = number
                pictures += [
                    _Picture(f"{folders[number]}/{name}", number, camera, image),
                    _Picture(f"{folders[number]}_{style}/{name}", number, camera, image, SOURCE_RESPONSE),
                ]
        identities.append(pictures)
    lists = {"pseudo_labels.txt": "".join(f"{name} {label}\n" for name, label in sorted(labels.items()))}
    _write(Path(root), f"market1501_gen in the style of {style}", config, identities, lists, workers, progress)


def write_llcm_layout(root: Path, config: SyntheticConfig, workers: int | None = None, progress: bool = True) -> None:
    """Write a synthetic set in LLCM's layout: vis/, nir/ and idx/ for training, test_vis/ and test_nir/.

    The two infrared cameras are its cameras 1 and 2, whose numbers visible ones have too; its other cameras are empty.

    Args and Raises: as `write_sysu_layout`.
    """
    root, splits = Path(root), identity_splits(config)
    training = {number: label for label, number in enumerate(sorted(splits["train"] + splits["val"]))}
    identities, lists = [], {"idx/train_vis.txt": "", "idx/train_nir.txt": ""}
    for number, counts in image_counts(config).items():
        pictures = []
        for camera in CAMERAS:
            modality, shown_as = ("vis", camera) if camera in VISIBLE_CAMERAS else ("nir", {3: 1, 6: 2}[camera])
            for image in range(1, counts[camera - 1] + 1):
                name = f"{number:04d}_c{shown_as}_{image:04d}.jpg"
                if number in training:
                    path = f"{modality}/{number:04d}/{name}"
                    lists[f"idx/train_{modality}.txt"] += f"{path} {training[number]}\n"
                else:
                    path = f"test_{modality}/cam{shown_as}/{number:04d}/{name}"
                pictures.append(_Picture(path, number, camera, image))
        identities.append(pictures)
    lists["idx/test_id.txt"] = ",".join(map(str, splits["test"])) + "\n"
    _write(root, "LLCM", config, identities, lists, workers, progress)
    for modality, cameras in LLCM_CAMERAS.items():
        for camera in cameras:
            (root / f"test_{modality}/cam{camera}").mkdir(parents=True, exist_ok=True)


def _write(
    root: Path,
    layout: str,
    config: SyntheticConfig,
    identities: list[list[_Picture]],
    lists: dict[str, str],
    workers: int | None,
    progress: bool,
) -> None:
    """Write all pictures, then the lists, then the marker; the lists are missing as long as a picture may be."""
    marker = json.dumps({"layout": layout, "renderer": RENDERER, **asdict(config)}, indent=1) + "\n"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_writer(root):
            if not _claim(root, marker):
                return
            _draw_all(root, config, identities, lists, workers, progress)
    except OSError as error:
        raise UserError(
            f"cannot write the synthetic set to {root}: {error}; free space or choose another folder"
        ) from error
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that drew images for {root} was killed; repeat the command, with fewer workers"
        ) from error


@contextmanager
def _only_writer(root: Path) -> Iterator[None]:
    """Two runs that want the same set: one draws it, the other waits and finds it drawn."""
    folder = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _draw_all(
    root: Path,
    config: SyntheticConfig,
    identities: list[list[_Picture]],
    lists: dict[str, str],
    workers: int | None,
    progress: bool,
) -> None:
    for folder in sorted({root / Path(picture.path).parent for pictures in identities for picture in pictures}):
        folder.mkdir(parents=True, exist_ok=True)
    total = sum(map(len, identities))
    draw = partial(_write_identity, root, replace(config, counts=None))
    with (
        _mapper(workers or min(_cores(), 1 + total // 1000)) as mapper,
        tqdm(total=total, desc=f"drawing {root}", unit="image", disable=not progress) as bar,
    ):
        for written in mapper(draw, identities):
            bar.update(written)
    for name, text in lists.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    os.replace(root / UNFINISHED, root / FINISHED)


def _claim(root: Path, marker: str) -> bool:
    """True if root is now marked as an unfinished set of this config, False if it holds the finished one.

    Raises UserError if it holds anything else.
    """
    present = [name for name in (FINISHED, UNFINISHED) if (root / name).exists()]
    others = len(list(root.iterdir())) - len(present)
    if not present and others:
        raise UserError(f"{root} holds files that are not of a synthetic set; choose a new or an empty folder")
    if present and (root / present[0]).read_text() == marker:
        return present[0] != FINISHED
    if others:
        found = root / present[0]
        raise UserError(f"{root} holds a synthetic set of another config ({found}); remove it or choose another folder")
    (root / UNFINISHED).write_text(marker)
    return True


def _write_identity(root: Path, config: SyntheticConfig, pictures: list[_Picture]) -> int:
    """Draw and save one identity's pictures; their number."""
    for picture in pictures:
        pixels = draw_image(config, picture.identity, picture.camera, picture.image, picture.response)
        # Quality and subsampling are read by JPEG alone.
        Image.fromarray(pixels).save(root / picture.path, quality=92, subsampling=0)
    return len(pictures)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _mapper(workers: int) -> Iterator:
    """map(), in this process or over several."""
    if workers <= 1:
        yield map
        return
    # A fork starts at once, where a fresh process would import the whole package; the work needs none of its threads.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    # Ctrl-C is this process's to handle, once.
    pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield partial(pool.map, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)
