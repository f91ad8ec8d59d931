"""What a user's data can hold, and what becomes of it: one table a room (data page, "Image files" and "What is
verified")."""

import dataclasses
import importlib
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sets import make_regdb, make_sysu, save_image, write

from sdcl.config import PRESETS
from sdcl.data import cache, images
from sdcl.data.cache import build_caches, pixel_reader
from sdcl.data.images import open_image, unreadable_images
from sdcl.data.readers import folder, regdb, sysu
from sdcl.data.records import ImageRecord, images_below, market_records
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout
from sdcl.data.training_set import load_training_set
from sdcl.data.verify import data_fingerprint
from sdcl.errors import UserError

RAMP = np.arange(0, 65521, 273, dtype=np.uint16)[:240].reshape(12, 20)
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
GREY = np.repeat((RAMP >> 8).astype(np.uint8)[:, :, None], 3, 2)


# -- image files -------------------------------------------------------------------------------------------------------


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(COLOURS).convert(mode[:-1])
    image.putalpha(Image.fromarray(COLOURS[:, :, 0]))
    return image


def palette() -> Image.Image:
    image = Image.fromarray(COLOURS // 128 * 255).quantize(8)
    image.info["transparency"] = 0
    return image


def turned() -> Image.Image:
    image = Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    return image


LUMA = np.asarray(Image.fromarray(COLOURS).convert("L").convert("RGB"))
IMAGES: dict[str, tuple[str, Callable[[], Image.Image], np.ndarray | str, str]] = {
    "16 bits": ("a.png", lambda: Image.fromarray(RAMP), GREY, "16 bits a pixel"),
    "16 bits, big-endian TIFF": ("a.tif.png", lambda: Image.fromarray(RAMP.astype(">u2")), GREY, "16 bits a pixel"),
    "32 bits": ("a.tif.png", lambda: Image.fromarray(RAMP.astype(np.int32)), "no largest value", ""),
    "floats": ("a.tif.png", lambda: Image.fromarray(RAMP.astype(np.float32)), "no largest value", ""),
    "CMYK": ("a.tif.png", lambda: Image.fromarray(COLOURS).convert("CMYK"), COLOURS, "are CMYK"),
    "alpha": ("a.png", lambda: with_alpha("RGBA"), COLOURS, "have transparency"),
    "grey and alpha": ("a.png", lambda: with_alpha("LA"), LUMA, "have transparency"),
    "palette": ("a.png", palette, COLOURS // 128 * 255, "have transparency"),
    "one bit": ("a.png", lambda: Image.fromarray(GREY[:, :, 0] > 99), np.where(GREY > 99, 255, 0), ""),
    "orientation": ("a.png", turned, np.rot90(COLOURS, -1), "turned upright"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_image_is_read_by_one_rule(tmp_path: Path, kind: str, capsys) -> None:
    name, make, expected, note = IMAGES[kind]
    path = str(tmp_path / name)
    image = make()
    image.save(path, format="TIFF" if ".tif" in name else None, exif=image.info.get("exif", b""))
    records = {"visible": [ImageRecord(path, 0, 1)]}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"{path}: .*{expected}.*8 or 16 bits"):
            open_image(path)
        with pytest.raises(UserError, match=f"1 of 1 training images .*{path} \\(.*{expected}"):
            unreadable_images(records, "training", skip=False)
        return
    assert np.array_equal(np.asarray(open_image(path)), expected)
    size = expected.shape[:2]
    cached = pixel_reader([path], "visible", size, "bicubic", tmp_path / "cache")(path)
    assert np.array_equal(cached, expected)                              # the cache keeps what the file gives
    assert unreadable_images(records, "training", skip=False) == set()
    said = capsys.readouterr().err
    assert (f"note: 1 training images {note}" in said or note in said) and ("note:" in said) == bool(note)


def test_a_large_image_that_is_no_bomb_is_read_in_silence(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)                  # the image has 240
    with warnings.catch_warnings(record=True) as heard:
        importlib.reload(images)                                         # pytest has undone what the import does
        open_image(str(path))
    assert heard == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="large.png: .*decompression bomb"):
        open_image(str(path))


def test_a_fifo_is_named_and_never_waited_for(tmp_path: Path) -> None:
    root = make_sysu(tmp_path / "sysu")
    pipe = root / "cam1/0003/0009.jpg"
    os.mkfifo(pipe)
    sysu.prepare(root, progress=False)
    report = sysu.verify(root, deep=True, published=None, progress=False)
    assert list(report.unreadable) == [str(pipe)] and "a FIFO or a device" in report.table()
    (root / "exp/train_id.txt").unlink()
    os.mkfifo(root / "exp/train_id.txt")
    with pytest.raises(UserError, match="train_id.txt: a FIFO or a device"):
        sysu.raw_split(root)


# -- links -------------------------------------------------------------------------------------------------------------


def own_set(root: Path) -> Path:
    for number, name in enumerate((
        "bounding_box_train/visible/1_c1_a.png", "bounding_box_train/infrared/1_c2_a.png",
        "query/visible/8_c1_a.png", "query/infrared/8_c2_a.png",
        "bounding_box_test/visible/8_c1_b.png", "bounding_box_test/infrared/8_c2_b.png",
    )):
        save_image(root / name, number)
    return root


LINKS = {
    "a loop": ("bounding_box_train/visible/loop", "..", None),
    "a loop to itself": ("bounding_box_train/loop", ".", None),
    "the same folder again": ("bounding_box_train/again", "visible", None),
    "above the part": ("bounding_box_train/loop", "..", "belongs to another part"),
    "another part": ("bounding_box_train/visible/more", "../../query", "belongs to another part"),
    "inside another part": ("bounding_box_train/visible/more", "../../query/visible", "belongs to another part"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_multiplies_no_image_and_leads_into_no_other_part(tmp_path: Path, kind: str) -> None:
    link, target, message = LINKS[kind]
    (own_set(tmp_path) / link).symlink_to(target)
    if message is None:
        assert [len(folder.train_records(tmp_path, m)) for m in ("visible", "infrared")] == [1, 1]
    else:
        with pytest.raises(UserError, match=f"{tmp_path / link}: .*{message}"):
            folder.train_records(tmp_path, "visible")


def test_export_reads_no_folder_twice(tmp_path: Path) -> None:
    save_image(tmp_path / "in/a.png", 0)
    (tmp_path / "in/loop").symlink_to(".")
    assert len(images_below(tmp_path / "in")) == 1


# -- training and test apart -------------------------------------------------------------------------------------------


def same_lists(root: Path) -> None:
    for modality in ("visible", "thermal"):
        (root / f"idx/test_{modality}_1.txt").write_text((root / f"idx/train_{modality}_1.txt").read_text())


def left_over(root: Path) -> None:
    """Copies, not links, of another split in the prepared folder."""
    for place in ("rgb_modify", "ir_modify"):
        for path in sorted((root / place / "1/bounding_box_train").iterdir()):
            path.unlink()
        for path in (root / place / "2/bounding_box_train").iterdir():
            (root / place / "1/bounding_box_train" / path.name).write_bytes(path.read_bytes())


def test_other_prepared_folders(root: Path) -> None:
    (root / "exp/train_id.txt").write_text("3\n")
    (root / "exp/test_id.txt").write_text("5,7,30\n")


test_other_prepared_folders.__test__ = False  # type: ignore[attr-defined]

OVERLAPS = {
    "identical lists": ("regdb", same_lists, "training images are test images, too.*restore the released lists"),
    "left over from another split": ("regdb", left_over, "training images are test images, too"),
    "sysu, left over": ("sysu", test_other_prepared_folders, "images are test images, too|identities are test"),
    "a file in both": ("folder", lambda root: os.link(root / "query/visible/8_c1_a.png",
                                                      root / "bounding_box_train/visible/2_c1_a.png"),
                       "1 training images are test images, too, .*2_c1_a.png"),
}


@pytest.mark.parametrize("kind", OVERLAPS)
def test_training_and_test_that_overlap_are_named_before_training(tmp_path: Path, kind: str) -> None:
    name, damage, message = OVERLAPS[kind]
    {"regdb": make_regdb, "sysu": make_sysu, "folder": own_set}[name](tmp_path)
    if name != "folder":
        {"regdb": regdb, "sysu": sysu}[name].prepare(tmp_path, progress=False)
    config = dataclasses.replace(PRESETS[name], data_dir=tmp_path, published_counts=False)
    trial = 1 if name == "regdb" else 0
    load_training_set(config, trial)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_training_set(config, trial)


def test_common_identities_of_ones_own_folder_are_a_warning(tmp_path: Path, capsys) -> None:
    save_image(own_set(tmp_path) / "bounding_box_train/visible/8_c1_new.png", 9)
    save_image(tmp_path / "bounding_box_train/visible/0_c1_new.png", 10)
    save_image(tmp_path / "bounding_box_test/visible/0_c1_new.png", 11)
    load_training_set(dataclasses.replace(PRESETS["folder"], data_dir=tmp_path), 0)
    assert "1 training identities are test identities, too, such as 8" in capsys.readouterr().err


# -- layouts and lists -------------------------------------------------------------------------------------------------


def without_cameras(*cameras: int) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for camera in cameras:
            for path in (root / f"cam{camera}").glob("*/*"):
                path.unlink()
    return act


def one_level_too_deep(root: Path) -> None:
    (root / "cam4").rename(root / "inner")
    (root / "cam4").mkdir()
    (root / "inner").rename(root / "cam4/cam4")


LAYOUTS = {
    "one modality": (make_sysu, without_cameras(3, 6), "cam3 and cam6 hold no infrared image of a training identity"),
    "too deep": (make_sysu, one_level_too_deep, "cam4/cam4: unpacked a level too low"),
    "an id twice": (make_sysu, write("exp/test_id.txt", "7,30,7"), "test_id.txt: it names id 7 twice"),
    "a backslash": (make_regdb, write("idx/train_visible_1.txt", "Visible\\0\\a.bmp 0"), r"line 1: .* has \\ in it"),
    "outside": (make_regdb, write("idx/train_visible_1.txt", "../x.bmp 0"), "line 1: '../x.bmp' leads out of"),
    "a long label": (make_regdb, write("idx/train_visible_1.txt", "Visible/0/p0_v_0.bmp " + "9" * 5000),
                     "train_visible_1.txt, line 1: the number 99999.* is too large"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_is_wrong_with_a_layout_is_named_before_preparing(tmp_path: Path, kind: str) -> None:
    make, damage, message = LAYOUTS[kind]
    damage(make(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        (sysu if make is make_sysu else regdb).prepare(tmp_path, progress=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*_modify/*/*"))


def test_a_path_that_stays_inside_is_taken(tmp_path: Path) -> None:
    make_regdb(tmp_path)
    write("idx/train_visible_1.txt", "Thermal/../Visible/./0/p0_v_0.bmp 0")(tmp_path)
    (record,) = regdb.list_records(tmp_path, "train", "visible", 1)
    assert record.path == str(tmp_path / "Visible/0/p0_v_0.bmp")


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000])
def test_numbers_in_names_that_are_too_large(tmp_path: Path, number: str) -> None:
    name = f"{number[:200]}_c1_visible.png"                              # file names end at 255 bytes
    save_image(tmp_path / "bounding_box_train" / name, 0)
    with pytest.raises(UserError, match=f"{name}: the number 9+… is too large"):
        folder.train_records(tmp_path, "visible")


def test_names_that_are_not_utf8_are_carried_and_escaped(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    odd = os.fsencode(root / "cam1/0003") + b"/\xff\xfe.jpg"
    os.rename(os.fsencode(root / "cam1/0003/0001.jpg"), odd)
    sysu.prepare(root, progress=False)
    records = market_records(root / "rgb_modify/bounding_box_train")
    (path,) = (r.path for r in records if not r.path.isascii())
    assert len(data_fingerprint(records)) == 16
    read = pixel_reader([r.path for r in records], "visible", (6, 4), "bicubic", tmp_path / "cache")
    assert np.array_equal(read(path), np.asarray(open_image(path)))
    with open(path, "wb"):
        pass
    report = sysu.verify(root, deep=True, published=None, progress=False)
    assert "\\xff\\xfe.jpg" in report.table() and report.table().isascii() and report.verdict.isascii()
    with pytest.raises(UserError, match=r"0003_c1_\\xff\\xfe.jpg"):
        open_image(path)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_cache_with_a_damaged_header_is_made_anew(tmp_path: Path, capsys) -> None:
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for n, path in enumerate(paths):
        save_image(Path(path), n)

    def read():
        return pixel_reader(paths, "visible", (6, 4), "bicubic", tmp_path / "cache")

    file = read().file
    whole = file.read_bytes()
    file.write_bytes(b"\0" * 20 + whole[20:])
    assert read().file.read_bytes() == whole and f"note: {file} is damaged: it is made anew" in capsys.readouterr().err


def test_a_run_looks_at_the_images_status_once(tmp_path: Path, monkeypatch) -> None:
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for n, path in enumerate(paths):
        save_image(Path(path), n)
    config = dataclasses.replace(PRESETS["demo"], image_cache=tmp_path / "cache", workers=0)
    build_caches(config, [("bicubic", {"visible": [ImageRecord(p, 0, 1) for p in paths]})])
    looks = []
    states = cache._states
    monkeypatch.setattr(cache, "_states", lambda some: looks.append(some) or states(some))
    for _ in range(3):
        pixel_reader(paths, "visible", config.image_size, "bicubic", config.image_cache)
    assert looks == []
    pixel_reader(paths, "visible", (6, 4), "bicubic", config.image_cache)  # another cache is looked at
    assert len(looks) == 1


# -- two at once -------------------------------------------------------------------------------------------------------


def draw_and_prepare(root: Path, start, failures) -> None:
    start.wait()
    try:
        write_sysu_layout(root, SyntheticConfig(3, 2, height=32, width=16), workers=1, progress=False)
        sysu.prepare(root, progress=False)
    except BaseException as error:  # noqa: BLE001 - told to the test
        failures.put(repr(error))


@pytest.mark.slow
def test_two_runs_that_draw_the_same_people_at_once_both_succeed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start, failures = fork.Event(), fork.Queue()
    runs = [fork.Process(target=draw_and_prepare, args=(tmp_path / "drawn", start, failures)) for _ in range(2)]
    for run in runs:
        run.start()
    start.set()
    for run in runs:
        run.join()
    assert failures.empty() and [run.exitcode for run in runs] == [0, 0]
    assert sysu.verify(tmp_path / "drawn", deep=False, published=None).ok
