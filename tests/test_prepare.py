"""Preparing SYSU-MM01 and RegDB on tiny sets: names, sets, links, interruptions, folders of others."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_sets import make_regdb, make_sysu, save_image

from sdcl.data import prepare as prepare_module
from sdcl.data.readers import regdb, sysu
from sdcl.data.records import ImageRecord, market_records
from sdcl.errors import UserError


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_sysu_folders_and_names(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    assert sysu.prepare(root, progress=False) == []
    for folder in ("rgb_modify", "ir_modify"):
        assert names(root / folder) == ["bounding_box_test", "bounding_box_train", "query"]
    assert names(root / "ir_modify" / "bounding_box_train") == [
        f"{i:04d}_c{c}_{n:04d}.jpg" for i, c in ((3, 3), (3, 6), (5, 3), (12, 3), (12, 6)) for n in (1, 2)
    ]
    # Four queries an identity and modality, in the order of cameras and names; the rest is the gallery.
    assert names(root / "rgb_modify" / "query") == [
        f"{i:04d}_c{c}_{n:04d}.jpg" for i in (7, 30) for c in (1, 2) for n in (1, 2)
    ]
    assert names(root / "rgb_modify" / "bounding_box_test") == [
        f"{i:04d}_c{c}_{n:04d}.jpg" for i in (7, 30) for c in (4, 5) for n in (1, 2)
    ]
    assert len(names(root / "ir_modify" / "query")) == 8 and names(root / "ir_modify" / "bounding_box_test") == []
    for folder in ("rgb_modify", "ir_modify"):
        for path in (root / folder).rglob("*.jpg"):
            identity, camera, image = path.name.split("_")
            assert path.samefile(root / f"cam{camera[1:]}" / identity / image)  # a hard link: no byte is stored twice


def test_sysu_training_records(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    sysu.prepare(root, progress=False)
    visible = sysu.train_records(root, "visible")
    assert visible == sorted(visible) and len(visible) == 2 * (4 + 3 + 4)
    assert visible[0] == ImageRecord(str(root / "rgb_modify/bounding_box_train/0003_c1_0001.jpg"), 3, 1)
    assert {record.camera for record in visible} == {1, 2, 4, 5}
    assert {record.identity for record in sysu.train_records(root, "infrared")} == {3, 5, 12}
    with pytest.raises(ValueError, match="thermal"):
        sysu.train_records(root, "thermal")


def test_other_peoples_names_are_read_in_text_order(tmp_path: Path) -> None:
    for name in ("9_c1_0001.jpg", "10_c12_0003.jpg", "0002_c6_x.png", "-1_c2_0001.jpg", ".hidden", "Thumbs.db"):
        (tmp_path / name).touch()
    assert [record._replace(path=os.path.basename(record.path)) for record in market_records(tmp_path)] == [
        ("-1_c2_0001.jpg", -1, 2),
        ("0002_c6_x.png", 2, 6),
        ("10_c12_0003.jpg", 10, 12),
        ("9_c1_0001.jpg", 9, 1),
    ]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="notes.txt"):
        market_records(tmp_path)


def test_repeating_changes_nothing_and_touches_no_file(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    sysu.prepare(root, progress=False)
    before = states(root)
    assert sysu.prepare(root, progress=False) == []
    assert states(root) == before


def states(root: Path) -> dict[Path, tuple[int, int, int, int]]:
    found = {path: path.stat() for path in root.rglob("*")}
    return {path: (s.st_ino, s.st_nlink, s.st_size, s.st_mtime_ns) for path, s in found.items()}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("stop_after", [0, 1, 17])
def test_interrupted_and_repeated_is_as_uninterrupted(
    tmp_path: Path, monkeypatch, links: bool, stop_after: int
) -> None:
    """Cut off before the n-th file, in the middle of a copy where links are not possible."""
    whole, root = make_sysu(tmp_path / "whole"), make_sysu(tmp_path / "cut")
    sysu.prepare(whole, progress=False)
    placed = 0

    def no_link(source, destination):
        raise OSError(errno.EXDEV, "other file system")

    def cut_off(operation: Callable[[str, str], None], write_half: bool) -> Callable[[str, str], None]:
        def run(source: str, destination: str) -> None:
            nonlocal placed
            if placed == stop_after:
                if write_half:
                    Path(destination).write_bytes(Path(source).read_bytes()[:50])
                raise KeyboardInterrupt
            placed += 1
            operation(source, destination)
        return run

    with monkeypatch.context() as patch:
        if links:
            patch.setattr(prepare_module.os, "link", cut_off(os.link, False))
        else:
            patch.setattr(prepare_module.os, "link", no_link)
            patch.setattr(prepare_module.shutil, "copyfile", cut_off(shutil.copyfile, True))
        with pytest.raises(KeyboardInterrupt):
            sysu.prepare(root, progress=False)
    assert sum(len(market_records(f)) for f in root.glob("*_modify/*") if any(f.glob("0*"))) == stop_after
    if not links:
        monkeypatch.setattr(prepare_module.os, "link", no_link)
    assert sysu.prepare(root, progress=False) == []
    assert tree(root) == tree(whole)  # no half copy is left either


def test_copies_where_links_are_impossible(tmp_path: Path, monkeypatch) -> None:
    root = make_sysu(tmp_path)
    copied = []

    def no_link(source, destination):
        raise OSError(errno.EPERM, "not permitted")

    def copy(source, destination):
        copied.append(source)
        Path(destination).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(prepare_module.os, "link", no_link)
    monkeypatch.setattr(prepare_module.shutil, "copyfile", copy)
    sysu.prepare(root, progress=False)
    sysu.prepare(root, progress=False)
    assert len(copied) == len(set(copied)) == 2 * (4 * 5 + 2 * 5 - 2)  # once each, never again
    assert sysu.verify(root, deep=True, published=None, progress=False).ok


def test_links_to_raw_images_that_are_symbolic_links(tmp_path: Path) -> None:
    root = make_sysu(tmp_path / "set")
    moved = tmp_path / "elsewhere.jpg"
    first = root / "cam1" / "0003" / "0001.jpg"
    first.rename(moved)
    first.symlink_to("../../../elsewhere.jpg")
    sysu.prepare(root, progress=False)
    assert (root / "rgb_modify/bounding_box_train/0003_c1_0001.jpg").samefile(moved)


def test_existing_folders_of_others_stay_untouched_and_are_reported(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    train, query = root / "rgb_modify/bounding_box_train", root / "ir_modify/query"
    save_image(train / "3_c1_0001.jpg", 1)  # another program's naming
    save_image(query / "0007_c3_0001.jpg", 99)  # a planned name, but another picture
    (query / "0007_c3_0001.jpg").write_bytes(b"short")
    notes = sysu.prepare(root, progress=False)
    assert names(train) == ["3_c1_0001.jpg"] and names(query) == ["0007_c3_0001.jpg"]
    assert len(notes) == 2 and str(train) in notes[0] and "3_c1_0001.jpg" in notes[0] and str(query) in notes[1]
    assert len(names(root / "ir_modify/bounding_box_train")) == 10  # the others are made
    report = sysu.verify(root, deep=False, published=None)
    assert [row.what for row in report.differing] == ["visible training images"]  # 1, not the 22 raw ones


def test_stale_files_of_an_earlier_set_are_reported(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    sysu.prepare(root, progress=False)
    shutil.rmtree(root / "cam3" / "0005")
    (note,) = sysu.prepare(root, progress=False)
    assert "0005_c3_0001.jpg" in note and "2 do not come" in note and "delete the folder" in note
    assert not sysu.verify(root, deep=False, published=None).ok
    shutil.rmtree(root / "ir_modify")
    assert sysu.prepare(root, progress=False) == []
    assert sysu.verify(root, deep=False, published=None).ok


def test_an_incomplete_set_is_completed(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    (root / "cam2/0003/0001.jpg").rename(tmp_path / "kept")
    sysu.prepare(root, progress=False)
    (tmp_path / "kept").rename(root / "cam2/0003/0001.jpg")
    assert sysu.prepare(root, progress=False) == []
    assert sysu.verify(root, deep=False, published=None).ok


def test_regdb_folders_and_names(tmp_path: Path) -> None:
    root = make_regdb(tmp_path)
    assert regdb.prepare(root, progress=False) == []
    assert names(root / "ir_modify") == names(root / "rgb_modify") == sorted(map(str, range(1, 11)))
    trial = root / "ir_modify" / "2"
    assert names(trial / "bounding_box_train") == [f"{p - 2}_c1_p{p}_t_{n}.bmp" for p in (2, 3) for n in range(5)]
    assert names(trial / "bounding_box_test") == [f"{p}_c1_p{p}_t_{n}.bmp" for p in (0, 1) for n in range(5)]
    assert names(trial / "query") == [f"{p}_c1_p{p}_t_{n}.bmp" for p in (0, 1) for n in range(4)]
    assert (trial / "query/0_c1_p0_t_0.bmp").samefile(root / "Thermal/0/p0_t_0.bmp")

    train = regdb.train_records(root, "infrared", 2)
    assert len(train) == 10 and train == sorted(train)
    assert train[0] == ImageRecord(str(trial / "bounding_box_train/0_c1_p2_t_0.bmp"), 0, 1)
    test = regdb.test_records(root, "visible", 3)
    assert test[5] == ImageRecord(str(root / "Visible/3/p3_v_0.bmp"), 1, 1) and len(test) == 10
    for trial_number in (0, 11):
        with pytest.raises(ValueError, match="1 to 10"):
            regdb.train_records(root, "visible", trial_number)
