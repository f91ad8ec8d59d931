"""Protocols as data: what each data set states is what its files give, and what its test does."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from tiny_sets import draw_folder, make_regdb, make_sysu

from sdcl.config import PRESETS
from sdcl.data.readers import llcm, sysu
from sdcl.data.sets import SETS
from sdcl.data.synthetic import SyntheticConfig, write_llcm_layout
from sdcl.data.training_set import load_training_set
from sdcl.errors import UserError


def write_orders(root: Path, change: int = 0) -> dict[tuple[int, int], np.ndarray]:
    """exp/rand_perm_cam.mat of the folders in `root`, the last one's number of images changed; returns the orders
    [10, m] by camera and identity."""
    rng, orders, last = np.random.default_rng(5), {}, 0
    cameras = np.empty((6, 1), dtype=object)
    for camera in range(1, 7):
        cameras[camera - 1, 0] = np.empty((40, 1), dtype=object)
        for identity in range(1, 41):
            count = len(list((root / f"cam{camera}" / f"{identity:04d}").glob("*.jpg")))
            last = count + change if (camera, identity) == (6, 30) else count
            order = np.array([rng.permutation(last) + 1 for _ in range(10)], dtype=np.uint8).reshape(10, last)
            cameras[camera - 1, 0][identity - 1, 0] = orders[camera, identity] = order
    savemat(root / "exp/rand_perm_cam.mat", {"rand_perm_cam": cameras})
    return orders


TESTED = ("sysu", "regdb", "llcm", "folder")
RANK_ON = ["identities", "images", "identities", "images"]


def draw_llcm(root: Path) -> Path:
    write_llcm_layout(root, SyntheticConfig(6, 4, images_per_camera=3, height=32, width=16), workers=1, progress=False)
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    made = {"sysu": make_sysu, "regdb": make_regdb, "folder": draw_folder, "llcm": draw_llcm}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in made.items()}


@pytest.mark.parametrize("name", ["sysu", "regdb", "folder", "llcm"])
def test_a_set_states_its_modes_and_galleries(roots, name: str) -> None:
    rules = SETS[name]
    test = rules.test_set(roots[name], rules.trials[0])
    assert tuple(task.mode for task in test.tasks) == rules.modes and test.galleries == rules.galleries[0]
    assert [len(task.galleries) for task in test.tasks] == [10 if name in ("sysu", "llcm") else 1] * 2
    assert len(rules.trials) == (10 if name == "regdb" else 1)


def test_what_is_removed_for_a_query() -> None:
    sides = np.array([1, 1]), np.array([3, 6]), np.array([1, 2]), np.array([2, 1])  # ids and cameras, query and gallery
    assert SETS["sysu"].removed(*sides).tolist() == [[True, False], [False, False]]
    assert SETS["llcm"].removed(*sides).tolist() == [[False, False], [False, False]]
    junk = np.array([1, 2]), np.array([4, 4]), np.array([1, 1, 2]), np.array([4, 5, 4])
    assert SETS["llcm"].removed(*junk).tolist() == [[True, False, False], [False, False, True]]
    assert SETS["regdb"].removed(*sides) is None and SETS["folder"].removed(*sides) is None
    assert [SETS[name].rank_on for name in SETS if name in TESTED] == RANK_ON


@pytest.mark.parametrize("shots", [1, 2])
def test_official_galleries_follow_the_sets_own_lists(tmp_path: Path, shots: int) -> None:
    root = make_sysu(tmp_path)
    orders = write_orders(root)
    test = SETS["sysu"].test_set(root, galleries="official", shots=shots)
    assert test.galleries == "official"
    for task, cameras in zip(test.tasks, ((1, 2, 4, 5), (1, 2)), strict=True):
        for trial, (_, rows) in enumerate(task.galleries):
            expected = [
                str(root / f"cam{camera}/{identity:04d}/{position:04d}.jpg")
                for identity in (7, 30)
                for camera in cameras
                for position in orders[camera, identity][trial][:shots]
            ]
            assert sorted(test.images["visible"][r].path for r in rows) == sorted(expected)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("sysu", {"galleries": "official"}, "rand_perm_cam.mat: no such file; .*--galleries seeded"),
    ("regdb", {"galleries": "official", "trial": 1}, "--galleries official: RegDB has no official galleries"),
    ("folder", {"shots": 10}, "--shots 10 is a variant of SYSU-MM01's test"),
])
def test_a_protocol_that_a_set_has_not(roots, name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SETS[name].test_set(roots[name], **options)


def test_the_choice_of_galleries_belongs_to_a_run() -> None:
    """It selects the best epoch, so a run cannot go on with another."""
    assert PRESETS["sysu"].galleries == "seeded"
    assert "galleries" not in PRESETS["sysu"].NOT_IN_RESULT


@pytest.mark.parametrize(("change", "found"), [(0, "28 of 28"), (1, "27 of 28")])
def test_sysus_folders_are_compared_with_its_own_list(tmp_path: Path, change: int, found: str) -> None:
    root = make_sysu(tmp_path)
    write_orders(root, change)
    sysu.prepare(root, progress=False)
    report = sysu.verify(root, deep=False, published=None)
    row = next(row for row in report.rows if row.what == "folders as in exp/rand_perm_cam.mat")
    assert row.found == found and row.ok == report.ok == (change == 0)
    assert ("cam6/0030 (2 of 3); copy them again" in report.verdict) == (change == 1)


# -- LLCM --------------------------------------------------------------------------------------------------------------


def test_llcms_galleries_are_drawn_as_documented(roots) -> None:
    root = roots["llcm"]
    test = SETS["llcm"].test_set(root)
    folders = {"visible": "test_vis", "infrared": "test_nir"}
    for task in test.tasks:
        (asked, query), searched = task.query, task.galleries[0][0]
        assert {asked, searched} == {"visible", "infrared"}
        expected = [str(p) for p in sorted((root / folders[asked]).glob("cam*/*/*"))]  # by camera, identity, name
        assert [test.images[asked][r].path for r in query] == expected
        for trial, (_, rows) in enumerate(task.galleries):
            draw, picks = random.Random(trial), []
            for identity in llcm.test_ids(root):
                for camera in range(1, 10):
                    folder = root / folders[searched] / f"cam{camera}" / f"{identity:04d}"
                    if folder.exists():
                        picks.append(str(draw.choice(sorted(folder.iterdir()))))
            assert [test.images[searched][r].path for r in rows] == picks


def test_llcms_counts_are_a_remark(roots) -> None:
    report = llcm.verify(roots["llcm"], deep=True, progress=False)
    assert report.ok and not report.differing and "16,946" in report.table() and "revised" in report.verdict
    assert report.unreadable == {} and report.opened > 50
    assert "revised" not in llcm.verify(roots["llcm"], published=None).verdict


@pytest.mark.parametrize(("path", "camera"), [
    ("vis/0001/0001_c3_0004.jpg", 3), ("vis/cam7/0001/0004.jpg", 7), ("vis/0001_c04_f.jpg", 4),
    ("nir/0001/0004.jpg", None), ("vis/abc5/pic1.jpg", None),
])  # fmt: skip
def test_the_camera_of_a_training_image_of_llcm(path: str, camera: int | None) -> None:
    assert llcm.camera_of(path) == camera


@pytest.mark.parametrize(("name", "text", "message"), [
    ("idx/train_vis.txt", None, "train_vis.txt: no such file; put LLCM as released"),
    ("idx/train_vis.txt", "vis/none.jpg 0\n", "1 of 1 listed images do not exist"),
    ("idx/train_vis.txt", "vis/none.jpg\n", "train_vis.txt, line 1: must read `path label`"),
    ("idx/train_nir.txt", "../x.jpg 0\n", "train_nir.txt, line 1: .*leads out of"),
    ("idx/test_id.txt", "1,x", "must be one line of identities .*'x'"),
    ("idx/test_id.txt", "1,2,1", "it names identity 1 twice"),
])
def test_bad_lists_of_llcm(roots, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    for part in ("vis", "nir", "test_vis", "test_nir"):
        (tmp_path / part).symlink_to(roots["llcm"] / part)
    (tmp_path / "idx").mkdir()
    for path in (roots["llcm"] / "idx").iterdir():
        (tmp_path / "idx" / path.name).write_text(path.read_text())
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        llcm.verify(tmp_path)


# -- identities of one modality ----------------------------------------------------------------------------------------


def test_unpaired_identities_keep_one_modality_by_seed(roots) -> None:
    config = dataclasses.replace(PRESETS["folder"], data_dir=roots["folder"], unpaired=0.5)
    whole = load_training_set(dataclasses.replace(config, unpaired=0.0), 0)
    sets = [load_training_set(dataclasses.replace(config, seed=seed), 0) for seed in (1, 1, 2)]
    people = [{m: {r.identity for r in part} for m, part in found.records.items()} for found in sets]
    both = {r.identity for r in whole.records["visible"]} & {r.identity for r in whole.records["infrared"]}
    assert people[0] == people[1] != people[2] and len(both) == 8
    for found, parts in zip(sets, people, strict=True):
        assert len(parts["visible"] & parts["infrared"]) == 4
        assert len(parts["visible"] - parts["infrared"]) == len(parts["infrared"] - parts["visible"]) == 2
        assert found.fingerprint == whole.fingerprint
        for modality, records in found.records.items():
            assert records == [r for r in whole.records[modality] if r.identity in parts[modality]]
        assert "visible identities alone, --unpaired 0.5" in found.report.table()
    assert whole.report.table() in sets[0].report.table() or len(sets[0].report.rows) == len(whole.report.rows) + 4
