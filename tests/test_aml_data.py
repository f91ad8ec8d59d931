"""Readers of SYSU-MM02, market1501_gen and SYSU-MM01's own inventory."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from sdcl.data.readers import market_gen, sysu02
from sdcl.data.readers.sysu import take_inventory
from sdcl.errors import UserError

REAL_LISTS = Path(os.environ.get("SDCL_GOLDEN", Path(__file__).parents[2] / "shared" / "golden")).parent / "data"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


# -- SYSU-MM02 ---------------------------------------------------------------------------------------------------------

LISTS = {
    "train.txt": ["train/b/2.jpg 17 1", "train/a/1 x.jpg -1 2", "train/c/3.jpg 17 3"],
    "test_rgb.txt": ["test/v1.jpg 5 1", "test/v2.jpg 6 1"],
    "test_ir.txt": ["test/i1.jpg 6 2", "test/i2.jpg 5 3", "test/i3.jpg 5 2"],
}


def make_sysu02(root, ends="\n", last="\n", strip=False):
    for name, lines in LISTS.items():
        touch(root, *(line.rsplit(" ", 2)[0] for line in lines))
        lines = [line.split("/", 1)[1] if strip else line for line in lines]
        (root / name).write_bytes((ends.join(lines) + last).encode())
    return root


@pytest.mark.parametrize("form", [{}, {"ends": "\r\n", "last": "\r\n"}, {"last": ""}, {"strip": True}])
def test_sysu02(tmp_path, form):
    root = make_sysu02(tmp_path, **form)
    visible, infrared = (sysu02.train_records(root, m) for m in ("visible", "infrared"))
    assert [(os.path.relpath(r.path, root), r.identity, r.camera) for r in visible] == [("train/b/2.jpg", -1, 1)]
    assert [(os.path.relpath(r.path, root), r.identity, r.camera) for r in infrared] == [
        ("train/a/1 x.jpg", -1, 2),
        ("train/c/3.jpg", -1, 3),
    ]
    test = sysu02.test_set(root)
    assert [task.mode for task in test.tasks] == ["visible_to_infrared", "infrared_to_visible"]
    assert [len(test.of(task.query)[0]) for task in test.tasks] == [2, 3]
    assert test.of(test.tasks[1].query)[0].tolist() == [6, 5, 5]
    report = sysu02.verify(root)
    assert {row.what: row.found for row in report.rows} == {
        "visible training images": 1, "infrared training images": 2,
        "visible test images": 2, "infrared test images": 3, "test identities": 2,
    }  # fmt: skip
    assert "instead of 7,440" in report.verdict and sysu02.verify(root, published=None).ok


BAD_LINES = {
    "train/b/2.jpg 1": "must read `path id camera`",
    "train/b/2.jpg one 1": "must read `path id camera`",
    "../b/2.jpg 1 1": "leads out",
    "/etc/b.jpg 1 1": "leads out",
    "train/b/2.jpg 1 4": "camera 4 is unknown",
    "train/b/9.jpg 1 1": "incomplete",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_sysu02_refuses_lists_of_other_forms(tmp_path, line):
    root = make_sysu02(tmp_path)
    (root / "train.txt").write_text(f"train/c/3.jpg 17 3\n{line}\n")
    with pytest.raises(UserError, match=BAD_LINES[line]) as error:
        sysu02.train_records(root, "infrared")
    assert "train.txt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("train.txt", None, "no such file"),
        ("train.txt", "", "empty"),
        ("train.txt", "train/b/2.jpg 1 1\n", "no infrared image"),
        ("train.txt", "train/b/2.jpg 1 1\ntrain/b/2.jpg 2 1\n", "listed twice"),
        ("test_rgb.txt", "test/i1.jpg 6 2\n", "camera 2, but visible"),
    ],
)
def test_sysu02_refuses_incomplete_lists(tmp_path, name, text, says):
    root = make_sysu02(tmp_path)
    (root / name).unlink() if text is None else (root / name).write_text(text)
    with pytest.raises(UserError, match=says):
        sysu02.train_records(root, "infrared")
        sysu02.test_set(root)


# -- market1501_gen ----------------------------------------------------------------------------------------------------

NAMES = {
    "market1501_train": ["0002_c1s1_000451_03.jpg", "0002_c3s1_000551_01.jpg", "0007_c2s3_1_1.jpg"],
    "market1501_test": ["-1_c1s1_000401_03.jpg", "0000_c5s1_000001_00.jpg"],
}
LABELS = {"0002_c1s1_000451_03.jpg": 12, "0002_c3s1_000551_01.jpg": 4, "0000_c5s1_000001_00.jpg": 12}


def make_market(root):
    for folder, names in NAMES.items():
        touch(root, *(f"{f}/{name}" for name in names for f in (folder, f"{folder}_sysumm01")))
    return root


def write(root, entries, how):
    if how == "text":
        market_gen.write_labels(root / "pseudo_labels.txt", dict(entries))
    else:
        wrap = np.int64 if how == "numpy" else int
        rows = [(f"data/market/{name}" if how == "numpy" else name, wrap(y), 3) for name, y in entries]
        torch.save(rows, root / "pplr_pseudo_labels.pth")


@pytest.mark.parametrize("how", ["plain", "numpy", "text"])
def test_market_with_labels_of_every_form(tmp_path, how):
    root = make_market(tmp_path)
    write(root, [*LABELS.items(), ("elsewhere_c1.jpg", 3)], how)
    source = market_gen.load_source(root, "sysumm01")
    assert [(os.path.basename(r.path), r.identity, r.camera) for r in source.records] == [
        ("0002_c1s1_000451_03.jpg", 1, 1),
        ("0002_c3s1_000551_01.jpg", 0, 3),
        ("0000_c5s1_000001_00.jpg", 1, 5),
    ]
    assert [os.path.relpath(p, root) for p in source.partners] == [
        "market1501_train_sysumm01/0002_c1s1_000451_03.jpg",
        "market1501_train_sysumm01/0002_c3s1_000551_01.jpg",
        "market1501_test_sysumm01/0000_c5s1_000001_00.jpg",
    ]
    assert (source.classes, source.unlabelled, source.unknown) == (2, 1, 1)
    assert source.report().ok and "pseudo-identities" in source.report().table()


def test_market_with_the_identities_of_the_names_says_so(tmp_path):
    source = market_gen.load_source(make_market(tmp_path), "sysumm01", "names")
    assert [r.identity for r in source.records] == [1, 1, 2, 0]
    assert "supervised" in source.report().table()


@pytest.mark.parametrize("side", ["market1501_train", "market1501_train_sysumm01"])
def test_a_missing_partner_is_named(tmp_path, side):
    root = make_market(tmp_path)
    (root / side / "0007_c2s3_1_1.jpg").unlink()
    with pytest.raises(UserError, match=r"0007_c2s3_1_1\.jpg") as error:
        market_gen.load_source(root, "sysumm01", "names")
    assert f"{side}: 1 of the 3" in str(error.value)


def test_pairs_are_sets_of_names_wherever_they_come_in_the_listing(tmp_path):
    """Surplus at the end of the longer listing is noticed too."""
    root = make_market(tmp_path)
    touch(root, "market1501_test_sysumm01/1501_c6s4_9_9.jpg")
    with pytest.raises(UserError, match="1501_c6s4_9_9"):
        market_gen.load_source(root, "sysumm01", "names")


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran-code",)


def bad_labels(root, kind):
    file = root / "pplr_pseudo_labels.pth"
    if kind == "code":
        torch.save([("a.jpg", Runs())], file)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps([("a.jpg", Runs())]))
    elif kind == "outlier":
        write(root, [("0002_c1s1_000451_03.jpg", -1)], "plain")
    elif kind == "two":
        torch.save([("x/a.jpg", 1), ("y/a.jpg", 2)], file)
    elif kind == "dict":
        torch.save({"a.jpg": 1}, file)
    elif kind == "float":
        torch.save([("a.jpg", 1.5)], file)
    elif kind == "empty":
        torch.save([], file)
    elif kind == "others":
        write(root, [("a_c1.jpg", 1)], "plain")
    elif kind == "text":
        (root / "pseudo_labels.txt").write_text("a.jpg 1\nb.jpg\n")


@pytest.mark.parametrize("kind, says", [
    ("code", "could run code"), ("pickle", "cannot be read|could run code"), ("outlier", "leave outliers out"),
    ("two", "labels 1 and 2"), ("dict", "holds a dict"), ("float", "entry 1"), ("empty", "no label"),
    ("others", "none of the 4"), ("text", "line 2"), ("none", "neither"),
])  # fmt: skip
def test_bad_labels_are_refused_and_run_nothing(tmp_path, monkeypatch, kind, says):
    monkeypatch.chdir(tmp_path)
    bad_labels(make_market(tmp_path), kind)
    with pytest.raises(UserError, match=says) as error:
        market_gen.load_source(tmp_path, "sysumm01")
    assert "\n" not in str(error.value) and not (tmp_path / "ran-code").exists()


def test_folders_and_names_of_other_forms(tmp_path):
    with pytest.raises(UserError, match="market1501_train: no such folder"):
        market_gen.load_source(tmp_path, "sysumm01")
    root = make_market(tmp_path)
    with pytest.raises(UserError, match="market1501_train_regdb: no such folder"):
        market_gen.load_source(root, "regdb")
    touch(root, "market1501_train/somebody.jpg")
    with pytest.raises(UserError, match=r"somebody\.jpg"):
        market_gen.load_source(root, "sysumm01", "names")


# -- SYSU-MM01's inventory ---------------------------------------------------------------------------------------------


def small_sysu(root):
    """Ids 1, 2, 4 listed, 3 not; camera 1 saw all, others none."""
    cells = np.empty((6, 1), dtype=object)
    for c in range(6):
        inner = np.empty((4, 1), dtype=object)
        for i in range(4):
            m = i + 1 if c == 0 else 0
            inner[i, 0] = np.tile(np.arange(1, m + 1, dtype=np.uint8), (10, 1))
            touch(root, *(f"cam{c + 1}/{i + 1:04d}/{k:04d}.jpg" for k in range(1, m + 1)))
        cells[c, 0] = inner
    (root / "exp").mkdir()
    savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    for part, ids in (("train", "1"), ("val", "2"), ("test", "4")):
        (root / "exp" / f"{part}_id.txt").write_text(ids)
    return root


def test_inventory_names_the_folders_that_differ(tmp_path):
    root = small_sysu(tmp_path)
    whole = take_inventory(root)
    assert whole.folders == 3 and not whole.differing and whole.message == ""
    (root / "cam1/0002/0002.jpg").unlink()
    touch(root, "cam3/0004/0001.jpg", "cam1/0003/0009.jpg", "cam1/0004/Thumbs.db")
    shutil.rmtree(root / "cam1/0001")
    found = take_inventory(root)
    assert found.differing == {"cam1/0001": (0, 1), "cam1/0002": (1, 2), "cam3/0004": (1, 0)}
    assert "cam1/0002 (1 of 2)" in found.message


def test_no_list_no_inventory_and_a_damaged_one_is_an_error(tmp_path):
    root = small_sysu(tmp_path)
    (root / "exp/rand_perm_cam.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(UserError, match="rand_perm_cam"):
        take_inventory(root)
    (root / "exp/rand_perm_cam.mat").unlink()
    assert take_inventory(root) is None


def test_the_released_list(tmp_path):
    """Its own counts, of empty files."""
    lists = REAL_LISTS / "sysu-exp"
    if not lists.is_dir():
        pytest.skip(f"no lists in {lists}")
    shutil.copytree(lists, tmp_path / "exp")
    cells = loadmat(lists / "rand_perm_cam.mat")["rand_perm_cam"]
    for part, few in (("train", "2"), ("val", "334"), ("test", "6,333")):
        (tmp_path / "exp" / f"{part}_id.txt").chmod(0o644)
        (tmp_path / "exp" / f"{part}_id.txt").write_text(few)
    for identity in (2, 334, 6, 333):
        for c in range(6):
            cell = cells[c, 0]
            n = cell[identity - 1, 0].shape[1] if identity <= len(cell) else 0
            touch(tmp_path, *(f"cam{c + 1}/{identity:04d}/{k:04d}.jpg" for k in range(1, n + 1)))
    assert take_inventory(tmp_path).message == ""
    (tmp_path / "cam3/0006/0001.jpg").unlink()
    assert list(take_inventory(tmp_path).differing) == ["cam3/0006"]
