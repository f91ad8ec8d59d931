"""Retrieval metrics and test lists: naive references, closed forms, hand-computed cases, bad input."""
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from sdcl import evaluation
from sdcl.evaluation import (
    Metrics,
    chance,
    identity_metrics,
    regdb_metrics,
    retrieval_metrics,
    same_camera,
    same_place,
    sysu_gallery,
    sysu_metrics,
    sysu_official_gallery,
    sysu_query,
)

ROOT = Path(__file__).resolve().parents[1]

# -- naive reference: one query after the other, with lists ------------------------------------------------------------


def naive(similarity, query_ids, gallery_ids, query_cams=None, gallery_cams=None, llcm=False, on_identities=None):
    """llcm: that set's removal rule instead of SYSU-MM01's."""
    curves, aps, inps = [], [], []
    on_identities = query_cams is not None if on_identities is None else on_identities
    for i, identity in enumerate(query_ids):
        ranked = sorted(range(len(gallery_ids)), key=lambda j, i=i: (-similarity[i][j], j))
        if llcm:
            ranked = [j for j in ranked if not (identity == gallery_ids[j] and query_cams[i] == gallery_cams[j])]
        elif query_cams is not None:
            ranked = [j for j in ranked if not (query_cams[i] == 3 and gallery_cams[j] == 2)]
        ids = [gallery_ids[j] for j in ranked]
        hits = [r for r, x in enumerate(ids, 1) if x == identity]
        if not hits:
            continue
        aps.append(sum(n / r for n, r in enumerate(hits, 1)) / len(hits))
        inps.append(len(hits) / hits[-1])
        listed = list(dict.fromkeys(ids)) if on_identities else ids
        curve = [float(identity in listed[:k]) for k in range(1, len(listed) + 1)]
        curves.append((curve + [curve[-1]] * 20)[:20])
    return np.mean(curves, axis=0), np.mean(aps), np.mean(inps)


def problem(seed, queries, gallery, ids, gain=0.5):
    rng = np.random.default_rng(seed)
    query_ids, gallery_ids = rng.integers(0, ids, queries) * 7 - 3, rng.integers(0, ids, gallery) * 7 - 3
    match = query_ids[:, None] == gallery_ids
    similarity = rng.random((queries, gallery)) + gain * match * rng.random((queries, gallery))
    return similarity, query_ids, gallery_ids, rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], gallery)


def check(got: Metrics, want) -> None:
    assert got.cmc.shape == (20,) and got.cmc.dtype == np.float64
    assert isinstance(got.mAP, float) and isinstance(got.mINP, float)
    np.testing.assert_allclose(got.cmc, want[0], atol=1e-12)
    assert (got.mAP, got.mINP) == pytest.approx((want[1], want[2]), abs=1e-12)


def flat(m: Metrics) -> np.ndarray:
    return np.array([*m.cmc, m.mAP, m.mINP])


SIZES = [(60, 200, 30), (30, 15, 40), (25, 40, 5), (1, 1, 1), (7, 300, 1), (40, 19, 12)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queries, gallery, ids", SIZES)
def test_metrics_equal_naive_loops(seed, queries, gallery, ids):
    s, qi, gi, qc, gc = problem(seed, queries, gallery, ids)
    check(regdb_metrics(s, qi, gi), naive(s, qi, gi))
    if (gallery, queries) == (1, 1):
        qc[:] = 6                                                       # else nothing might be left
    check(sysu_metrics(s, qi, gi, qc, gc), naive(s, qi, gi, qc, gc))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queries, gallery, ids", SIZES)
def test_other_protocols_equal_naive_loops(seed, queries, gallery, ids):
    s, qi, gi, _, gc = problem(seed, queries, gallery, ids)
    check(identity_metrics(s, qi, gi), naive(s, qi, gi, on_identities=True))
    qc = np.random.default_rng(seed).choice([1, 4, 5] if gallery > 1 else [9], queries)
    removed = same_camera(qi, gi, qc, gc)
    assert removed.any() or gallery < 20 or queries == 7
    check(retrieval_metrics(s, qi, gi, removed), naive(s, qi, gi, qc, gc, llcm=True))
    on_images = retrieval_metrics(torch.from_numpy(s), qi, gi, torch.from_numpy(removed), rank_on="images")
    check(on_images, naive(s, qi, gi, qc, gc, llcm=True, on_identities=False))


def test_each_query_has_its_precision_and_first_hit():
    s, qi, gi, qc, gc = problem(9, 60, 50, 30)
    got = sysu_metrics(s, qi, gi, qc, gc)
    removed, found = same_place(qi, gi, qc, gc), got.first_hit > 0
    np.testing.assert_array_equal(found, ((qi[:, None] == gi) & ~removed).any(1))
    assert 0 < found.sum() < 60 and got.first_hit.dtype == np.int64
    for i in np.flatnonzero(found):
        cmc, ap, _ = naive(s[i : i + 1], qi[i : i + 1], gi, qc[i : i + 1], gc)
        assert got.ap[i] == pytest.approx(ap, abs=1e-12)
        assert [got.first_hit[i] <= k for k in range(1, 21)] == (cmc > 0).tolist()
    assert np.isnan(got.ap[~found]).all() and got.mAP == np.mean(got.ap[found])
    assert chance(qi, gi).ap is None


@pytest.mark.slow
def test_memory_stays_within_what_a_chunk_takes():
    """Many chunks, in a process of its own: temporaries of all of them together would be 2 GB."""
    code = """
import numpy as np, torch
from pathlib import Path
from sdcl.evaluation import sysu_metrics

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))

def run(q, g):
    rng = np.random.default_rng(0)
    cams = rng.choice([3, 6], q), rng.choice([1, 2, 4, 5], g)
    sysu_metrics(torch.rand(q, g), rng.integers(0, 200, q), rng.integers(0, 200, g), *cams)

run(100, 100)
before = status("VmRSS") + 4 * 800 * 20000 / 2**20
run(800, 20000)
print(status("VmHWM") - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 130


def test_equal_similarities_keep_gallery_order():
    s, qi, gi, qc, gc = problem(3, 40, 120, 15)
    s = np.round(s * 4) / 4
    check(regdb_metrics(s, qi, gi), naive(s, qi, gi))
    check(sysu_metrics(s.astype(np.float32), qi, gi, qc, gc), naive(s, qi, gi, qc, gc))


def test_chunks_do_not_change_results(monkeypatch):
    s, qi, gi, qc, gc = problem(4, 50, 40, 12)
    whole = sysu_metrics(s, qi, gi, qc, gc)
    monkeypatch.setattr(evaluation, "CHUNK", 120)                       # three queries at a time
    check(sysu_metrics(s, qi, gi, qc, gc), (whole.cmc, whole.mAP, whole.mINP))
    monkeypatch.setattr(evaluation, "CHUNK", 1)
    check(sysu_metrics(s, qi, gi, qc, gc), (whole.cmc, whole.mAP, whole.mINP))


def test_kinds_of_input():
    s, qi, gi, qc, gc = problem(5, 40, 60, 12)
    s = s.astype(np.float32)
    want = naive(s, qi, gi, qc, gc)
    strided, locked = np.repeat(s, 2, axis=1)[:, ::-2][:, ::-1], s.copy()
    locked.flags.writeable = False
    for kind in (strided, locked, torch.from_numpy(s).requires_grad_(), torch.from_numpy(s.T.copy()).T):
        check(sysu_metrics(kind, qi.astype(np.int16), torch.from_numpy(gi), qc.astype(np.uint8), gc.tolist()), want)
    whole = (s * 1000).astype(np.int32)                                 # integer similarities, ties included
    check(sysu_metrics(whole, qi, gi, qc, gc), naive(whole, qi, gi, qc, gc))
    half = torch.from_numpy(s).bfloat16()
    check(regdb_metrics(half, qi, gi), naive(half.float().numpy(), qi, gi))


# -- hand-computed cases -----------------------------------------------------------------------------------------------

def test_hand_computed():
    # ranked lists (identity/camera): 8/2 8/1 5/1 8/4 5/4 9/5, one query of identity 5
    s, gi, gc = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]], [8, 8, 5, 8, 5, 9], [2, 1, 1, 4, 4, 5]
    camera_6 = sysu_metrics(s, [5], gi, [6], gc)                        # hits at 3 and 5; identities 8, 5, 9
    check(camera_6, ([0] + [1] * 19, (1 / 3 + 2 / 5) / 2, 2 / 5))
    assert [camera_6.rank(k) for k in (1, 2, 20)] == [0, 1, 1]
    check(sysu_metrics(s, [5], gi, [3], gc), ([0] + [1] * 19, (1 / 2 + 2 / 4) / 2, 2 / 4))   # without the first image
    check(regdb_metrics(s, [5], gi), ([0, 0] + [1] * 18, (1 / 3 + 2 / 5) / 2, 2 / 5))


def test_queries_without_hit_are_left_out():
    s = np.array([[0.9, 0.1, 0.2], [0.9, 0.8, 0.7], [0.1, 0.2, 0.3]])
    check(regdb_metrics(s, [4, 77, 4], [4, 5, 5]), ([0.5, 0.5] + [1] * 18, (1 + 1 / 3) / 2, (1 + 1 / 3) / 2))
    # the only image of identity 4 is of camera 2: the query of camera 3 cannot hit it, that of camera 6 can
    check(sysu_metrics(s[[0, 2]], [4, 4], [4, 5, 5], [3, 6], [2, 1, 1]), ([0] + [1] * 19, 1 / 3, 1 / 3))


@pytest.mark.parametrize("barred", [0, 15])
def test_fewer_than_20_identities_continue_with_the_last_value(barred):
    """30 identities of one image each, `barred` of them seen by camera 2 alone: removal leaves half for camera 3."""
    gi, gc = np.arange(30), np.where(np.arange(30) < barred, 2, 1)
    s = np.tile(-np.arange(30.0), (2, 1))                               # ranked by identity
    got = sysu_metrics(s, [29, 17], gi, [3, 3], gc)
    want = [np.mean([r <= k for r in (30 - barred, 18 - barred)]) for k in range(1, 21)]
    np.testing.assert_array_equal(got.cmc, want)
    few = regdb_metrics(s[:, :3], [2, 1], gi[:3])
    np.testing.assert_array_equal(few.cmc, [0, 0.5] + [1] * 18)


def test_perfect_and_worst_ranking():
    gi = np.repeat(np.arange(25), 4)
    match = (np.arange(25)[:, None] == gi).astype(float)
    check(regdb_metrics(match, np.arange(25), gi), (np.ones(20), 1, 1))
    worst = sysu_metrics(-match, np.arange(25), gi, np.full(25, 6), np.ones(100, int))
    assert worst.rank(20) == 0 and worst.mINP == pytest.approx(0.04)


# -- bad input ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, message", [
    (([[1.0, 2.0]], [1], [2, 3]), "none of the 1 queries"),
    ((np.zeros((0, 3)), [], [1, 2, 3]), "nothing to evaluate: 0 query"),
    ((np.zeros((2, 0)), [1, 2], []), "nothing to evaluate: 2 query and 0 gallery"),
    ((np.zeros(3), [1], [1, 2, 3]), r"\[Q, G\]"),
    ((np.zeros((2, 3)), [1, 2, 3], [1, 2]), "2 query images, but 3 identities"),
    ((np.zeros((2, 3)), [1, 2], [1, 2]), "3 gallery images, but 2 identities"),
    ((np.zeros((1, 2)), [1.5], [1, 2]), "query_ids must be one-dimensional integers"),
    ((np.zeros((1, 2)), [1], [[1], [2]]), "gallery_ids must be one-dimensional integers"),
    (([[1.0, np.nan]], [1], [1, 2]), "NaN in rows 0"),
])
def test_metrics_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        regdb_metrics(*arguments)


def test_removed_and_ranks_are_checked():
    s, ids = np.zeros((2, 3)), ([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"removed must be bool \[2, 3\], but is torch.bool of shape \(3, 2\)"):
        retrieval_metrics(s, *ids, np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="removed must be bool .* but is torch.int64"):
        retrieval_metrics(s, *ids, np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="rank_on must be .* not 'cameras'"):
        retrieval_metrics(s, *ids, rank_on="cameras")
    with pytest.raises(ValueError, match="give no cameras"):
        chance(*ids, [3, 6], [1, 2, 4], rank_on="images")
    with pytest.raises(ValueError, match="after removal"):
        retrieval_metrics(s, *ids, np.ones((2, 3), bool))


def test_sysu_metrics_and_chance_refuse():
    with pytest.raises(ValueError, match="none of the 1 queries"):      # all that is left after removal is a stranger
        sysu_metrics([[1.0, 2.0]], [1], [1, 2], [3], [2, 1])
    with pytest.raises(ValueError, match="1 query images, but 1 identities and 2 cameras"):
        sysu_metrics([[1.0, 2.0]], [1], [1, 2], [3, 6], [2, 1])
    with pytest.raises(ValueError, match="query_cams must be one-dimensional integers"):
        sysu_metrics([[1.0, 2.0]], [1], [1, 2], None, None)
    with pytest.raises(ValueError, match="none of the 1 queries"):
        chance([1], [1, 2], [3], [2, 1])
    with pytest.raises(ValueError, match="of neither"):
        chance([1], [1, 2], [3])
    with pytest.raises(ValueError, match="2 gallery images, but 2 identities and 1 cameras"):
        chance([1], [1, 2], [3], [1])
    with pytest.raises(ValueError, match="Rank-21"):
        chance([1], [1, 2]).rank(21)


# -- chance ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("qi, gi, qc, gc", [
    ([1, 2], [1, 1, 2, 3, 3, 3], [3, 6], [1, 2, 2, 1, 2, 4]),           # one query cannot be hit without camera 2
    ([1], [1, 1, 1, 2], [6], [1, 1, 1, 1]),
    ([4, 4, 5], [4, 5], [6, 3, 6], [1, 2]),
    ([9], [9], [3], [1]),
])
@pytest.mark.slow
def test_chance_is_the_mean_over_all_orders(qi, gi, qc, gc):
    """Every order of the gallery once; the means over queries are over the same queries in each."""
    orders = np.array(list(itertools.permutations(range(len(gi)))), dtype=float)

    def check_mean(got, metrics):
        all_ = [metrics(np.tile(o, (len(qi), 1))) for o in orders]
        want = np.mean([m.cmc for m in all_], 0), np.mean([m.mAP for m in all_]), np.mean([m.mINP for m in all_])
        check(got, want)

    check_mean(chance(qi, gi), lambda s: regdb_metrics(s, qi, gi))
    check_mean(chance(qi, gi, qc, gc), lambda s: sysu_metrics(s, qi, gi, qc, gc))
    check_mean(chance(qi, gi, rank_on="identities"), lambda s: identity_metrics(s, qi, gi))
    removed = same_camera(qi, gi, np.array(qc) % 2 + 1, gc)             # cameras 2 and 1: some hits go
    if (~removed & (np.array(qi)[:, None] == gi)).any():
        check_mean(chance(qi, gi, removed=removed), lambda s: retrieval_metrics(s, qi, gi, removed))


@pytest.mark.slow
def test_chance_agrees_with_simulation_at_size():
    _, qi, gi, qc, gc = problem(7, 400, 301, 96)
    rng = np.random.default_rng(8)
    for cams in ((), (qc, gc)):
        metrics = sysu_metrics if cams else regdb_metrics
        drawn = np.array([flat(metrics(rng.random((400, 301)), qi, gi, *cams)) for _ in range(60)])
        error = drawn.std(0, ddof=1) / len(drawn) ** 0.5
        assert (np.abs(flat(chance(qi, gi, *cams)) - drawn.mean(0)) < 4.5 * error).all()


def test_chance_of_equal_identities_is_known():
    """96 identities of equally many images: the own one is as likely at every place among the identities."""
    for images in (1, 4, 30):
        got = chance(np.arange(96), np.repeat(np.arange(96), images), np.full(96, 6), np.ones(96 * images, int))
        np.testing.assert_allclose(got.cmc, np.arange(1, 21) / 96, atol=1e-9)


# -- test lists of SYSU-MM01 -------------------------------------------------------------------------------------------

IDS = (12, 3, 250, 41)
MISSING = {(3, 2), (3, 6), (250, 1), (41, 4)}


def folder(root: Path, identity: int, camera: int) -> Path:
    return root / f"cam{camera}" / f"{identity:04d}"


@pytest.fixture
def root(tmp_path) -> Path:
    """Four test identities in all cameras but MISSING, and one that is not for testing."""
    rng = random.Random(0)
    for identity in (*IDS, 7):
        for camera in range(1, 7):
            if (identity, camera) not in MISSING:
                images = folder(tmp_path, identity, camera)
                images.mkdir(parents=True)
                for n in rng.sample(range(1, 40), rng.randint(2, 15)):
                    (images / f"{n:04d}.jpg").touch()
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "test_id.txt").write_text(",".join(map(str, IDS)) + "\n")
    return tmp_path


def test_query_is_every_infrared_image_in_order(root):
    rows = sysu_query(root)
    assert rows == sorted(rows, key=lambda r: (r[1], r[2], Path(r[0]).name))
    assert {r[0] for r in rows} == {str(f) for c in (3, 6) for i in IDS for f in folder(root, i, c).glob("*")}
    assert all(isinstance(p, str) and Path(p).parent == folder(root, i, c) for p, i, c in rows)


@pytest.mark.parametrize("trial", range(10))
@pytest.mark.parametrize("mode, cameras", [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_gallery_makes_the_stated_picks(root, mode, cameras, trial):
    random.seed(trial)
    want = [(str(folder(root, i, c) / random.choice(sorted(os.listdir(folder(root, i, c))))), i, c)
            for i in sorted(IDS) for c in cameras if (i, c) not in MISSING]
    random.seed(99)
    state = random.getstate()
    assert sysu_gallery(str(root), mode, trial) == want
    assert sysu_gallery(root, mode, np.int64(trial)) == want            # again, from another integer type
    assert random.getstate() == state                                   # nobody else's random numbers are touched


def test_trials_differ(root):
    assert len({tuple(sysu_gallery(root, "all", t)) for t in range(10)}) > 5


def test_multi_shot(root):
    rows = sysu_gallery(root, "all", 4, shots=10)
    assert rows == sysu_gallery(root, "all", 4, shots=10) != sysu_gallery(root, "all", 5, shots=10)
    assert len(set(rows)) == len(rows)
    for i, c in {r[1:] for r in rows}:
        have = len(os.listdir(folder(root, i, c)))
        assert sum(r[1:] == (i, c) for r in rows) == min(10, have)
    assert {r[1:] for r in rows} == {r[1:] for r in sysu_gallery(root, "all", 0)}


# -- the official galleries --------------------------------------------------------------------------------------------

def orders_of(root: Path, seed: int = 0) -> dict:
    """A random order of every folder's images for each of ten trials: (identity, camera) -> [10, m], from 1."""
    rng = np.random.default_rng(seed)
    sizes = {(i, c): len(os.listdir(folder(root, i, c))) if folder(root, i, c).exists() else 0
             for i in range(1, 260) for c in range(1, 7)}
    return {key: np.array([rng.permutation(m) + 1 for _ in range(10)]).reshape(10, m) for key, m in sizes.items()}


def write_orders(root: Path, orders: dict) -> None:
    cells = np.empty((6, 1), object)
    for c in range(1, 7):
        cells[c - 1, 0] = np.empty((259, 1), object)
        for i in range(1, 260):
            cells[c - 1, 0][i - 1, 0] = orders[i, c].astype(np.uint8)
    scipy.io.savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})


@pytest.mark.parametrize("shots", [1, 4, 10])
@pytest.mark.parametrize("mode, cameras", [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_official_gallery_takes_the_first_of_the_listed_order(root, mode, cameras, shots):
    orders = orders_of(root)
    write_orders(root, orders)
    for trial in range(10):
        want = []
        for i in sorted(IDS):
            for c in cameras:
                if (i, c) not in MISSING:
                    names = sorted(os.listdir(folder(root, i, c)))
                    want += [(str(folder(root, i, c) / names[n - 1]), i, c) for n in orders[i, c][trial][:shots]]
        assert sysu_official_gallery(str(root), mode, np.int64(trial), shots) == want
    assert len(want) >= 4 * shots


def test_official_gallery_refuses(root):
    with pytest.raises(FileNotFoundError, match="no file .*rand_perm_cam.mat: the official galleries need it"):
        sysu_official_gallery(root, "all", 0)
    orders = orders_of(root)
    write_orders(root, orders)
    for arguments, message in ((("outdoor", 0), "mode 'outdoor'"), (("all", 10), "0…9, but trial is 10"),
                               (("all", -1), "trial is -1"), (("all", 0, 0), "shots must")):
        with pytest.raises(ValueError, match=message):
            sysu_official_gallery(root, *arguments)
    (folder(root, 12, 2) / "9999.jpg").touch()                          # another image than the list knows
    with pytest.raises(ValueError, match="cam2/0012 holds .* images, but .* orders"):
        sysu_official_gallery(root, "all", 3)
    for content in (b"", b"MATLAB 5.0 or not", b"\0" * 500):
        (root / "exp" / "rand_perm_cam.mat").write_bytes(content)
        with pytest.raises(ValueError, match="rand_perm_cam.mat is not the list that comes with"):
            sysu_official_gallery(root, "all", 0)
    scipy.io.savemat(root / "exp" / "rand_perm_cam.mat", {"other": np.zeros(3)})
    with pytest.raises(ValueError, match="KeyError: 'rand_perm_cam'"):
        sysu_official_gallery(root, "all", 0)


def test_stray_files_do_not_shift_picks(root):
    before = [sysu_gallery(root, "all", t) for t in range(10)], sysu_query(root)
    for camera in range(1, 7):
        for name in ("Thumbs.db", ".DS_Store", "._0001.jpg"):
            (root / f"cam{camera}" / "0012" / name).touch()
    assert ([sysu_gallery(root, "all", t) for t in range(10)], sysu_query(root)) == before


@pytest.mark.parametrize("text, message", [
    ("", "entry 1 reads ''"), ("1,2,x7", "entry 3 reads 'x7'"), ("3,,12", "entry 2 reads ''"),
    ("3,../../etc", "entry 2 reads '../../etc'"), ("3,-12", "entry 2 reads '-12'"), ("3;12", "entry 1 reads '3;12'"),
    ("3\n12", r"entry 1 reads '3\\n12'"), ("3,12345", "entry 2 reads '12345'"), ("3,12,3", "identity twice"),
    ("3,9999", "1 identities without a folder .* the first 9999"),
])
def test_malformed_ids(root, text, message):
    (root / "exp" / "test_id.txt").write_text(text)
    for read in (sysu_query, lambda r: sysu_gallery(r, "all", 0)):
        with pytest.raises(ValueError, match=message) as error:
            read(root)
        assert "test_id.txt" in str(error.value)


@pytest.mark.parametrize("text", ["3, 12,41 ,250", "\ufeff3,12,41,250\r\n", "3,12,41,250,\n\n"])
def test_harmless_spelling_of_ids(root, text):
    want = sysu_query(root)
    (root / "exp" / "test_id.txt").write_text(text, encoding="utf-8")
    assert sysu_query(root) == want


@pytest.mark.parametrize("mode, trial, shots, message", [
    ("outdoor", 0, 1, "mode 'outdoor' is unknown"), ("all", -1, 1, "trial must"), ("all", 0, 0, "shots must"),
])
def test_gallery_refuses(root, mode, trial, shots, message):
    with pytest.raises(ValueError, match=message):
        sysu_gallery(root, mode, trial, shots)


def test_missing_parts_are_named(root):
    with pytest.raises(FileNotFoundError, match="nowhere/exp/test_id.txt"):
        sysu_query(root / "nowhere")
    for f in (root / "cam5" / "0041").iterdir():
        f.unlink()
    with pytest.raises(FileNotFoundError, match="no image in .*cam5/0041"):
        sysu_gallery(root, "all", 0)
    assert sysu_gallery(root, "indoor", 0)                              # cameras 1 and 2 are whole
    (root / "cam5" / "0041").rmdir()
    (root / "cam5" / "0041").touch()
    with pytest.raises(ValueError, match="cam5/0041 is a file"):
        sysu_gallery(root, "all", 0)
    (root / "cam6").rename(root / "cam7")
    with pytest.raises(FileNotFoundError, match="no folder .*cam6"):
        sysu_query(root)
