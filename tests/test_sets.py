"""Protocols as data: what each data set states is what its files give, and what its test does."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from tiny_sets import draw_folder, make_regdb, make_sysu

from sdcl.config import PRESETS
from sdcl.data import sysu
from sdcl.data.sets import SETS
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


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    made = {"sysu": make_sysu, "regdb": make_regdb, "folder": draw_folder}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in made.items()}


@pytest.mark.parametrize("name", ["sysu", "regdb", "folder"])
def test_a_set_states_its_modes_and_galleries(roots, name: str) -> None:
    rules = SETS[name]
    test = rules.test_set(roots[name], rules.trials[0])
    assert tuple(task.mode for task in test.tasks) == rules.modes and test.galleries == rules.galleries[0]
    assert [len(task.galleries) for task in test.tasks] == [10 if name == "sysu" else 1] * 2


def test_what_is_removed_for_a_query() -> None:
    sides = np.array([1, 1]), np.array([3, 6]), np.array([1, 2]), np.array([2, 1])  # ids and cameras, query and gallery
    assert SETS["sysu"].removed(*sides).tolist() == [[True, False], [False, False]]
    assert SETS["regdb"].removed(*sides) is None and SETS["folder"].removed(*sides) is None
    assert [SETS[name].rank_on for name in ("sysu", "regdb", "folder")] == ["identities", "images", "images"]


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
