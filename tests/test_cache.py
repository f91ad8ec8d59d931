"""The cache of resized images: equal to the image files to the last bit, and never stale, partial or in the way."""

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sdcl.config import PRESETS
from sdcl.data import cache
from sdcl.data.cache import CachedImages, build_caches, pixel_reader
from sdcl.data.images import open_image
from sdcl.data.loading import evaluation_loader
from sdcl.data.records import ImageRecord
from sdcl.data.transforms import evaluation_transform, normalize_bytes
from sdcl.errors import UserError
from sdcl.training.views import images_read

SIZE = (32, 16)


def draw(path: Path, number: int) -> None:
    """A picture of its own size, content and, now and then, mode."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(20, 90, 2)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    picture.convert("L" if number % 5 == 0 else "RGB").save(path)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    names = [tmp_path / f"{n:02d}.{'jpg' if n % 2 else 'png'}" for n in range(30)]
    for n, path in enumerate(names):
        draw(path, n)
    return [str(path) for path in names]


def reader(paths, folder: Path, interpolation: str = "bicubic", workers: int = 0):
    return pixel_reader(paths, "visible", SIZE, interpolation, folder, workers)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_tensors_are_those_of_the_image_files_to_the_last_bit(paths, tmp_path, interpolation) -> None:
    expected = torch.cat(list(evaluation_loader(paths, evaluation_transform(*SIZE, interpolation), 7, 0)))

    def tensors(folder: Path | None, workers: int, some=paths) -> torch.Tensor:
        read = reader(paths, folder, interpolation, workers)
        return torch.cat([normalize_bytes(x) for x in evaluation_loader(some, torch.from_numpy, 7, workers, read)])

    for folder, workers in ((tmp_path / "one", 0), (tmp_path / "two", 2), (None, 0)):
        assert torch.equal(tensors(folder, workers), expected)  # built by this many processes; None: without a cache
        assert torch.equal(tensors(folder, workers), expected)  # read again
    assert torch.equal(tensors(tmp_path / "two", 0, [paths[20], paths[3], paths[3]]), expected[[20, 3, 3]])


def test_every_byte_is_normalised_as_the_chain_does() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).repeat(1, 1, 3)
    expected = evaluation_transform(16, 16, "bicubic")(Image.fromarray(pixels.numpy()))
    got = normalize_bytes(pixels[None])
    assert torch.equal(got[0], expected) and got.is_contiguous()


def test_the_file_is_plain_and_mapped_and_each_list_has_its_own(paths, tmp_path) -> None:
    folder = tmp_path / "deep" / "folder"
    read = reader(paths, folder)
    assert isinstance(read, CachedImages)
    pixels = np.load(read.file)
    assert pixels.shape == (30, 32, 16, 3) and pixels.dtype == np.uint8
    expected = np.array(open_image(paths[4]).resize((16, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels[4], expected)
    first = read(paths[4])
    first[:] = 0  # a copy: the file stays
    assert isinstance(read._pixels, np.memmap) and np.array_equal(read(paths[4]), expected)

    others = [reader(paths, folder, "lanczos"), reader(paths[1:], folder), reader(paths[::-1], folder)]
    others.append(pixel_reader(paths, "infrared", SIZE, "bicubic", folder))
    others.append(pixel_reader(paths, "visible", (16, 32), "bicubic", folder))
    assert len({read.file, *(other.file for other in others)}) == len(files(folder)) == 6
    assert np.array_equal(others[2](paths[4]), expected)


def test_it_is_built_once_and_again_when_an_image_has_changed(paths, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "cache"
    other = reader(paths[:5], folder)
    before = reader(paths[5:], folder).file
    assert capsys.readouterr().err.count("writing") == 2
    monkeypatch.setattr(cache, "evaluation_loader", lambda *_: pytest.fail("built again"))
    assert reader(paths[5:], folder).file == before
    monkeypatch.undo()
    assert capsys.readouterr().err == ""

    for change in (lambda: draw(Path(paths[9]), 99), lambda: os.utime(paths[9], ns=(5, 5)),
                   lambda: os.utime(paths[9], ns=(5, 6))):  # a nanosecond is enough
        change()
        read = reader(paths[5:], folder)
        said = capsys.readouterr().err
        assert "changed" in said and str(before) in said and "made anew" in said
        assert read.file != before and not before.exists() and other.file.exists() and len(files(folder)) == 2
        assert np.array_equal(read(paths[9]), reader(paths, None)(paths[9]))
        before = read.file


def build_and_die(paths, folder) -> None:
    """Builds, and is killed when it comes to the last image."""
    def read(path):
        if path == paths[-1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return open_image(path)

    cache.open_image, cache.BATCH = read, 4
    reader(paths, folder)


def test_a_killed_build_leaves_nothing_that_is_mistaken_for_a_cache(paths, tmp_path) -> None:
    folder = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(paths, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = files(folder)
    assert leftover.startswith(".") and (folder / leftover).stat().st_size > 0  # it had begun to write
    read = reader(paths, folder)
    assert files(folder) == [read.file.name]
    assert all(np.array_equal(read(path), reader(paths, None)(path)) for path in paths)


def test_a_file_that_was_cut_is_made_anew(paths, tmp_path) -> None:
    read = reader(paths, tmp_path / "cache")
    whole = read.file.read_bytes()
    read.file.write_bytes(whole[:-1])
    assert reader(paths, tmp_path / "cache").file.read_bytes() == whole


def build_slowly(paths, folder, started) -> None:
    def read(path):
        started.set()
        time.sleep(0.02)
        return open_image(path)

    cache.open_image = read
    reader(paths, folder)


def test_a_run_waits_for_another_that_builds_the_same(paths, tmp_path, monkeypatch) -> None:
    folder, fork = tmp_path / "cache", multiprocessing.get_context("fork")
    started = fork.Event()
    process = fork.Process(target=build_slowly, args=(paths, folder, started))
    process.start()
    assert started.wait(60)
    monkeypatch.setattr(cache, "evaluation_loader", lambda *_: pytest.fail("built twice"))
    read = reader(paths, folder)
    process.join()
    assert process.exitcode == 0 and len(files(folder)) == 1
    assert np.array_equal(read(paths[7]), reader(paths, None)(paths[7]))


def test_too_little_space_is_said_before_anything_is_written(paths, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=45_000))
    with pytest.raises(UserError, match=r"needs 0\.00 GB, and 0\.00 GB are free.*--image-cache"):
        reader(paths, folder)
    assert files(folder) == []
    assert reader(paths[:20], folder).file.stat().st_size == 20 * 32 * 16 * 3 + 128  # 31 kB fit


def test_a_folder_that_cannot_be_made(paths, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*--image-cache"):
        reader(paths, tmp_path / "file")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_and_no_cache_remains(paths, tmp_path, workers) -> None:
    Path(paths[12]).write_bytes(Path(paths[12]).read_bytes()[:50])
    with pytest.raises(UserError, match=f"{paths[12]}.*cannot be read"):
        reader(paths, tmp_path / "cache", workers=workers)
    assert files(tmp_path / "cache") == []
    os.remove(paths[12])
    with pytest.raises(UserError, match=paths[12]):
        reader(paths, tmp_path / "cache")


@pytest.mark.parametrize("augment, expected", [("workers", 4), ("device", 6)])
def test_a_run_builds_all_that_it_will_read_before_it_starts(paths, tmp_path, augment, expected) -> None:
    records = {m: [ImageRecord(p, 0, 0) for p in part] for m, part in (("visible", paths), ("infrared", paths[:9]))}
    tests = {m: part[:4] for m, part in records.items()}
    config = dataclasses.replace(PRESETS["demo"], workers=0, augment=augment)
    read = images_read(config, records, tests)
    build_caches(config, read)  # no folder, no cache
    build_caches(dataclasses.replace(config, image_cache=tmp_path / "cache"), read)
    made = {tuple(name.split("-")[:3]) for name in files(tmp_path / "cache")}
    assert len(made) == len(files(tmp_path / "cache")) == expected
    assert {m: i for m, i, _ in made}.keys() == {"visible", "infrared"} and {size for *_, size in made} == {"96x48"}
