"""Counts against published ones, unreadable files, fingerprints."""

import os
import shutil
from pathlib import Path

import pytest
from tiny_sets import make_regdb, make_sysu

from sdcl.data.images import find_unreadable
from sdcl.data.readers import regdb, sysu
from sdcl.data.records import market_records
from sdcl.data.verify import data_fingerprint
from sdcl.errors import UserError

SYSU_TRUE = {
    "visible training identities": 3, "visible training images": 22, "visible training images, raw": 22,
    "visible cameras": "1 2 4 5", "infrared training identities": 3, "infrared training images": 10,
    "infrared training images, raw": 10, "infrared cameras": "3 6", "test identities": 2, "infrared queries": 8,
    "all-search gallery of a trial": 8, "indoor-search gallery of a trial": 4,
}


def test_sysu_report(tmp_path: Path) -> None:
    root = make_sysu(tmp_path)
    sysu.prepare(root, progress=False)
    report = sysu.verify(root, deep=True, published=SYSU_TRUE, progress=False)
    assert {row.what: row.found for row in report.rows} == SYSU_TRUE
    assert SYSU_TRUE.keys() == sysu.PUBLISHED.keys()
    assert report.ok and report.opened == 56  # links of one file are read once
    assert report.verdict == "SYSU-MM01: all counts are as published, all 56 files can be read."

    report = sysu.verify(root, deep=False)
    assert not report.ok and report.opened == 0
    line = next(line for line in report.table().splitlines() if line.startswith("infrared queries"))
    assert line.split() == ["infrared", "queries", "8", "3,803", "DIFFERS"]
    assert "WARNING" in report.verdict and "10 points" in report.verdict and "\n" not in report.verdict
    assert "visible training images 22 instead of 22,258" in report.verdict
    assert next(row for row in report.rows if row.what == "infrared cameras").ok


@pytest.mark.parametrize("broken", ["cam1/0003/0001.jpg", "cam6/0030/0002.jpg"])
def test_unreadable_files_are_named_and_counted(tmp_path: Path, broken: str) -> None:
    root = make_sysu(tmp_path)
    path = root / broken
    path.write_bytes(path.read_bytes()[:200])
    sysu.prepare(root, progress=False)
    report = sysu.verify(root, deep=True, published=SYSU_TRUE, progress=False)
    assert list(report.unreadable) == [str(path)] and not report.ok and not report.differing
    assert str(path) in report.table() and "1 of 56 files cannot be read" in report.verdict


def test_a_broken_link_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "1_c1_1.jpg").symlink_to("nowhere")
    (record,) = market_records(tmp_path)
    count, unreadable = find_unreadable([record.path], progress=False)
    assert count == 1 and list(unreadable) == [record.path]
    with pytest.raises(UserError, match="1_c1_1.jpg"):
        data_fingerprint([record])


def test_fingerprint(tmp_path: Path) -> None:
    prints = []
    for place in ("a", "deeper/b"):
        root = make_sysu(tmp_path / place)
        sysu.prepare(root, progress=False)
        records = [r for modality in ("visible", "infrared") for r in sysu.train_records(root, modality)]
        prints += [data_fingerprint(records), data_fingerprint(records[::-1])]
    assert len(set(prints)) == 1 and len(prints[0]) == 16 and int(prints[0], 16) >= 0
    assert data_fingerprint(records[1:]) != prints[0]
    with open(records[0].path, "ab") as file:
        file.write(b"x")
    assert data_fingerprint(records) != prints[0]
    os.rename(records[0].path, records[0].path.replace("0003_", "0004_"))
    moved = [records[0]._replace(path=records[0].path.replace("0003_", "0004_")), *records[1:]]
    assert data_fingerprint(moved) != data_fingerprint(records[1:])


REGDB_TRUE = {what: {4120: 20, 206: 2, 2060: 10}[count] for what, count in regdb.PUBLISHED.items()}


def test_regdb_report(tmp_path: Path) -> None:
    root = make_regdb(tmp_path)
    regdb.prepare(root, progress=False)
    report = regdb.verify(root, deep=True, published=REGDB_TRUE, progress=False)
    assert report.ok and {row.what: row.found for row in report.rows} == REGDB_TRUE and report.opened == 40
    assert not regdb.verify(root, deep=False).ok

    lines = (root / "idx/test_thermal_3.txt").read_text().splitlines()
    (root / "idx/test_thermal_3.txt").write_text("\n".join(lines[:-1]))
    report = regdb.verify(root, deep=False, published=REGDB_TRUE)
    assert {row.what: row.found for row in report.differing} == {
        "infrared images of a trial": "20 (trial 3: 19)", "infrared test images": "10 (trial 3: 9)",
    }
    assert regdb.verify(root, deep=False, trials=[4], published=REGDB_TRUE).ok


def test_regdb_lists_that_overlap_are_seen(tmp_path: Path) -> None:
    root = make_regdb(tmp_path)
    shutil.copy(root / "idx/train_visible_1.txt", root / "idx/test_visible_1.txt")
    regdb.prepare(root, progress=False)
    report = regdb.verify(root, deep=False, trials=[1], published=REGDB_TRUE)
    assert [(row.what, row.found) for row in report.differing] == [("visible images of a trial", 10)]
