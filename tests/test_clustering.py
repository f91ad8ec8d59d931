"""Clustering against the dense definition, in every combination of neighbour search and steps."""

import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from sdcl import clustering
from sdcl.clustering import cluster, dbscan_labels, jaccard_distance, neighbors, steps_for, steps_torch
from sdcl.clustering.compiled import compiled, usable
from sdcl.clustering.features import as_features, full_precision, inner_products, lifted
from sdcl.clustering.jaccard import SparseRows, distance_graph, neighbor_weights
from sdcl.clustering.neighbors import exact_search, nearest_neighbors
from sdcl.clustering.plain import plain_jaccard, plain_neighbors

GOLDEN = Path(os.environ.get("SDCL_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def identities(n: int, dim: int = 24, per_identity: int = 12, spread: float = 0.35, seed: int = 0) -> np.ndarray:
    """Shuffled rows around random centres; a tenth of them strangers."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(max(1, n // per_identity), dim)))
    rows = centres[rng.integers(len(centres), size=n)] + spread * rng.normal(size=(n, dim)) / dim**0.5 * 2
    strangers = rng.random(n) < 0.1
    rows[strangers] = rng.normal(size=(strangers.sum(), dim))
    return unit(rows)


def with_copies(n: int, copies: int, seed: int = 0) -> np.ndarray:
    """Every fifth row is a copy of one of `copies` rows, and one row has 40 copies: more than its k1 neighbours."""
    rng = np.random.default_rng(seed)
    x = identities(n, seed=seed)
    x[::5] = x[rng.integers(1, copies + 1, size=len(x[::5]))]
    x[rng.permutation(n)[:40]] = x[3]
    return x


def grid(n: int, seed: int = 0) -> np.ndarray:
    """Rows of four entries ±1/2 among zeros: a handful of similarities, exact in float32, so masses of ties."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 12), np.float32)
    for row in x:
        row[rng.choice(12, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return x


def module_name(module) -> str:
    return module.__name__.split(".")[-1]


DATA = {
    "identities": identities(240),
    "copies": with_copies(240, 12),
    "grid": grid(200),
    "one place": np.repeat(identities(1), 70, axis=0),
    "fewer than k1": identities(20, per_identity=5),
    "three": identities(3),
    "two": identities(2),
    "one": identities(1),
}
SETTINGS = [(30, 6), (15, 6), (20, 1), (7, 9), (1, 1), (2, 2)]  # k1, k2


@functools.cache
def definition(name: str, k1: int, k2: int) -> np.ndarray:
    """Dense distances of a data set."""
    return plain_jaccard(DATA[name], plain_neighbors(DATA[name], k1), k1, k2)


def dense(distance: sparse.csr_array) -> np.ndarray:
    """The dense matrix that the stored entries stand for."""
    entries = distance.tocoo()
    out = np.ones(distance.shape, np.float32)
    out[entries.row, entries.col] = entries.data
    return out


def modules(*names: tuple[str, str]) -> list:
    """Those of the modules (name, package that it needs) that can be imported here."""
    return [importlib.import_module(f"sdcl.clustering.{name}") for name, package in names if usable(package)]


SEARCHES = [neighbors.search_torch]
SEARCHES += [neighbors.search_faiss] * usable("faiss") + [neighbors.search_compiled] * usable("numba")


def distances(features, near, k1, k2, max_distance, steps, unit_length=True) -> sparse.csr_array:
    """The distances below 1, or those up to `max_distance`, by these steps."""
    return distance_graph(neighbor_weights(features, near, k1, k2, steps, unit_length), max_distance, steps)


STEPS = modules(("steps_numba", "numba"), ("steps_torch", "torch"))


@pytest.mark.parametrize("k1, k2", SETTINGS)
@pytest.mark.parametrize("name", DATA)
def test_distances_are_those_of_the_definition(name, k1, k2):
    x = DATA[name]
    got = jaccard_distance(x, k1, k2)
    want = definition(name, k1, k2)
    assert got.dtype == np.float32 and got.has_canonical_format
    np.testing.assert_allclose(dense(got), want, atol=1e-6)
    entries = got.tocoo()
    assert (entries.data < 1).all() and (entries.data >= 0).all()
    stored = np.zeros(want.shape, bool)
    stored[entries.row, entries.col] = True
    assert stored[want < 1 - 1e-6].all()
    assert (abs(got - got.T)).nnz == 0


@pytest.mark.parametrize("k1, k2", [(30, 6), (15, 6), (20, 1)])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("eps, min_samples", [(0.6, 4), (0.3, 4), (0.5, 2)])
def test_labels_are_those_of_scikit_learn_on_the_dense_matrix(name, k1, k2, eps, min_samples):
    dbscan = pytest.importorskip("sklearn.cluster").DBSCAN
    x = DATA[name]
    want = definition(name, k1, k2)
    labels = dbscan(eps=eps, min_samples=min_samples, metric="precomputed").fit(want).labels_
    got = cluster(x, eps, min_samples, k1, k2)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, labels)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
@pytest.mark.parametrize("k", [1, 6, 30])
@pytest.mark.parametrize("name", DATA)
def test_every_search_ranks_by_similarity_then_index(name, k, search):
    x = torch.from_numpy(DATA[name])
    rank, similarity = neighbors.settle(x, x, k, search)
    assert rank.dtype == torch.int32 and similarity.dtype == torch.float32
    np.testing.assert_array_equal(rank, plain_neighbors(DATA[name], k))
    want = (x.double() @ x.double().T).gather(1, rank.long())
    np.testing.assert_allclose(similarity, want, atol=1e-6)
    assert (similarity.diff(dim=1) <= 0).all()


def test_rows_whose_ties_exceed_the_search_are_searched_in_float64(monkeypatch):
    """70 copies of one row, 30 neighbours: the lowest indices, none of them found by the float32 search alone."""
    asked = []
    exact = neighbors.search_float64
    monkeypatch.setattr(neighbors, "search_float64", lambda x, y, k: asked.append(len(x)) or exact(x, y, k))
    rank, _ = nearest_neighbors(torch.from_numpy(DATA["one place"]), 30)
    assert asked == [70]
    np.testing.assert_array_equal(rank, np.tile(np.arange(30), (70, 1)))


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_search_by_many_small_tiles(name, bfloat16, monkeypatch):
    """Rows meet most others in tiles beside the diagonal, prune their candidates, or give up for copies."""
    tiles = pytest.importorskip("sdcl.clustering.search_tiles")
    monkeypatch.setattr(tiles, "TILE", 56)
    monkeypatch.setattr(tiles, "ROOM", 1)
    monkeypatch.setattr(tiles, "_native_bfloat16", lambda: bfloat16)
    given_up = []
    torch_search = neighbors.search_torch
    monkeypatch.setattr(neighbors, "search_torch", lambda x, y, k: given_up.extend(x) or torch_search(x, y, k))
    x = torch.from_numpy(DATA[name])
    rank, _ = neighbors.settle(x, x, 15, neighbors.search_compiled)
    np.testing.assert_array_equal(rank, plain_neighbors(DATA[name], 15))
    assert len(given_up) == 0 or name != "identities" or bfloat16
    assert len(given_up) == 70 or name != "one place"


def test_tiles_whose_products_exceed_the_error_bound_are_not_used(monkeypatch):
    tiles = pytest.importorskip("sdcl.clustering.search_tiles")
    x = torch.from_numpy(DATA["identities"])
    exact = tiles._rounded(x, x)[2]
    coarse = (x * 8).round() / 8
    monkeypatch.setattr(tiles, "_rounded", lambda *_: (coarse, coarse, exact))
    rank, _ = neighbors.settle(x, x, 15, neighbors.search_compiled)
    np.testing.assert_array_equal(rank, plain_neighbors(DATA["identities"], 15))


def test_compiled_code_is_chosen_by_size_and_changes_nothing(monkeypatch):
    pytest.importorskip("numba")
    x = torch.from_numpy(DATA["copies"])
    labels = []
    for least, is_compiled in ((10**9, False), (1, True)):
        monkeypatch.setattr(clustering, "COMPILED_FROM", least)
        monkeypatch.setattr(neighbors, "TILES_FROM", least)
        assert (exact_search(x) is neighbors.search_compiled) == is_compiled
        assert module_name(steps_for(x)) == ("steps_numba" if is_compiled else "steps_torch")
        labels.append(cluster(x))
    np.testing.assert_array_equal(*labels)


# -- the folder by itself, and packages that are broken ----------------------------------------------------------------

FOLDER = Path(clustering.__file__).parent
SCRIPT = """
import importlib, sys, warnings
import numpy as np
name, broken = sys.argv[1], sys.argv[2:]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    copy = importlib.import_module(name)
    importlib.import_module(name + ".neighbors").TILES_FROM = 1
    copy.COMPILED_FROM = 1 if broken else 10**9
    x = np.random.default_rng(0).normal(size=(6, 16))[np.arange(150) % 6]
    x += 0.2 * np.random.default_rng(1).normal(size=x.shape)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    labels = copy.cluster(x, k1=10, k2=3), copy.cluster(x, k1=10, k2=3)
print(len(set(labels[0].tolist())), (labels[0] == labels[1]).all(), [m for m in sys.modules if m.startswith("sdcl")])
for warning in caught:
    if issubclass(warning.category, RuntimeWarning):
        print(warning.message)
"""


def run_copy(folder: Path, name: str, *broken: str) -> list[str]:
    """What a program prints that has the folder `name` beside it, and nothing else of this project."""
    (folder / "use.py").write_text(SCRIPT)
    command = [sys.executable, "use.py", name, *broken]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_copy_of_the_folder_works_with_and_without_what_was_compiled_in_it(tmp_path):
    pytest.importorskip("numba")
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
    shutil.copytree(FOLDER, tmp_path / "first" / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    want = run_copy(tmp_path / "first", "mine")
    assert len(want) == 1 and want[0].endswith("True []")
    assert list((tmp_path / "first" / "mine" / "__pycache__").glob("*.nbi"))
    shutil.copytree(tmp_path / "first" / "mine", tmp_path / "second" / "yours")  # keeps the files' times
    assert run_copy(tmp_path / "second", "yours") == want


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_broken_packages_are_named_once_and_done_without(tmp_path, installed):
    shutil.copytree(FOLDER, tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    errors = {"numba": "ImportError('libomp.so: cannot open')", "faiss": "AttributeError('no _ARRAY_API')"}
    for package, error in errors.items():
        error = error if installed else f"ModuleNotFoundError('no', name={package!r})"
        (tmp_path / f"{package}.py").write_text(f"raise {error}")
    printed, *said = run_copy(tmp_path, "mine", "broken")
    assert printed.endswith("True []")
    if installed:
        assert said[0].startswith("numba is installed but cannot be used (ImportError: libomp.so: cannot open); ")
        assert said[1].startswith("faiss is installed but cannot be used (AttributeError: no _ARRAY_API); ")
        assert all(line.endswith(f"reinstall {line.split()[0]}") for line in said)
    assert len(said) == 2 * installed


def test_code_that_cannot_be_kept_on_disk_is_compiled_all_the_same(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])  # as where nothing can be written to
    with pytest.raises(RuntimeError, match="cannot cache"):
        importlib.import_module("numba").njit(cache=True)(lambda a: a + 1)
    assert compiled(lambda a: a + 1)(2) == 3


def test_float64_search_orders_negative_and_zero_similarities():
    x = as_features(np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [-0.6, 0.8], [0.8, -0.6]], np.float32))
    rank, similarity = neighbors.search_float64(x, x, 6)
    np.testing.assert_array_equal(rank[0], [0, 5, 1, 3, 4, 2])
    np.testing.assert_allclose(similarity[0], [1, 0.8, 0, 0, -0.6, -1], atol=1e-7)


def test_inner_products_of_copies_are_equal_to_the_bit():
    x = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(600, 1536))))
    x[1::2] = x[::2].clone()
    i, j = torch.arange(0, 600, 2), torch.arange(0, 600, 2).roll(7)
    first = inner_products(x, i, j)
    for products in [inner_products] + [steps.inner_products for steps in STEPS]:
        assert torch.equal(products(x, i, j), first)
        assert torch.equal(products(x, i + 1, j), first)
        assert torch.equal(products(x, j + 1, i + 1), first)
    assert torch.equal(first, (x[i].double() * x[j]).sum(1).float())


@functools.cache
def all_distances(name: str) -> sparse.csr_array:
    return jaccard_distance(DATA[name])


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.6, 0.999, 1.0, 7.0])
def test_max_distance_only_leaves_out(limit):
    for name in ("identities", "copies", "grid"):
        everything = all_distances(name).tocoo()
        got = jaccard_distance(DATA[name], max_distance=limit)
        kept = everything.data <= np.float32(limit)
        coordinates = (everything.row[kept], everything.col[kept])
        want = sparse.csr_array((everything.data[kept], coordinates), everything.shape)
        np.testing.assert_array_equal(got.indptr, want.indptr)
        np.testing.assert_array_equal(got.indices, want.indices)
        np.testing.assert_array_equal(got.data, want.data)


@pytest.mark.parametrize("steps", STEPS, ids=module_name)
@pytest.mark.parametrize("limit", [None, 0.0, 0.4])
def test_zeros_are_stored_on_and_off_the_diagonal(steps, limit):
    """Rows 0 and 1 have equal weights; rows 2 and 3 share half of theirs: 1 - 0.5/1.5; row 4 has none."""
    weights = np.zeros((5, 5), np.float32)
    weights[:2, :2] = 0.5
    weights[2, 2:4] = weights[3, 3:] = 0.5
    got = distance_graph(SparseRows.from_scipy(sparse.csr_array(weights)), limit, steps)
    assert got.indptr.tolist() == ([0, 2, 4, 6, 8, 8] if limit is None else [0, 2, 4, 5, 6, 6])
    entries = got.tocoo()
    zero = {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)}
    assert zero <= {(int(i), int(j)) for i, j, d in zip(entries.row, entries.col, entries.data, strict=True) if d == 0}


def test_a_row_behind_k1_copies_has_no_neighbours():
    x = np.concatenate([np.repeat(identities(1), 12, axis=0), identities(60, seed=2)])
    got = jaccard_distance(x, k1=5, k2=1)
    assert np.diff(got.indptr)[5:12].tolist() == [0] * 7  # ranked behind five copies: in nobody's list
    labels = cluster(x, 0.6, 4, k1=5, k2=1)
    assert (labels[5:12] == -1).all() and (labels[:5] == 0).all()
    assert (cluster(x, 0.6, 1, k1=5, k2=1) >= 0).all()  # a row counts itself, even so


def test_permuted_rows_give_permuted_distances():
    x = DATA["identities"]
    p = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(dense(jaccard_distance(x[p])), dense(jaccard_distance(x))[np.ix_(p, p)], atol=1e-6)


def test_clusters_of_separated_identities():
    centres = np.eye(6, dtype=np.float32)
    ids = np.random.default_rng(3).integers(0, 6, size=240)
    x = unit(centres[ids] + 0.01 * np.random.default_rng(4).normal(size=(240, 6)))
    first = {identity: number for number, identity in enumerate(dict.fromkeys(ids.tolist()))}
    np.testing.assert_array_equal(cluster(x, k1=20, k2=3), [first[i] for i in ids.tolist()])


@pytest.mark.parametrize("seed", range(20))
def test_dbscan_numbers_clusters_like_scikit_learn(seed):
    dbscan = pytest.importorskip("sklearn.cluster").DBSCAN
    rng = np.random.default_rng(seed)
    distance = rng.random((60, 60)).astype(np.float32)
    distance = np.minimum(distance, distance.T)
    np.fill_diagonal(distance, 0)
    eps = float(rng.uniform(0.01, 0.12))
    near = np.nonzero(distance <= np.float32(eps))
    graph = sparse.csr_array((np.ones(len(near[0])), near), (60, 60))
    for min_samples in (1, 2, 4, 6):
        want = dbscan(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance).labels_
        np.testing.assert_array_equal(dbscan_labels(graph, min_samples), want)


def test_torch_and_numpy_features_give_the_same_and_stay_untouched():
    x = DATA["copies"]
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = cluster(tensor)
    np.testing.assert_array_equal(labels, cluster(x))
    np.testing.assert_array_equal(tensor.detach().numpy(), x)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(labels, cluster(frozen))


def test_a_default_of_float64_changes_nothing():
    features = torch.from_numpy(DATA["copies"])

    def results():
        near = [neighbors.settle(features, features, 15, search) for search in SEARCHES]
        return [tensor for pair in near for tensor in pair] + [
            torch.from_numpy(distances(features, near[0], 15, 6, None, steps).data) for steps in STEPS
        ]

    want = results()
    torch.set_default_dtype(torch.float64)
    try:
        got = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want, strict=True))


def test_reduced_matmul_precision_is_lifted_and_put_back():
    x = torch.from_numpy(identities(512, dim=256))
    exact = (x.double() @ x.double().T).float()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision(x.device):
            assert (x @ x.T - exact).abs().max() < 1e-5
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_approximate_search_fills_its_lists_and_mostly_agrees():
    pytest.importorskip("faiss")
    x = identities(2000, dim=16)
    rank, similarity = nearest_neighbors(torch.from_numpy(x), 30, "ivf")
    assert rank.min() >= 0 and (similarity.diff(dim=1) <= 0).all()
    exact = plain_neighbors(x, 30)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, rank, strict=True)])
    assert recall > 0.9
    assert cluster(x, knn="ivf").shape == (2000,)


def test_unfilled_lists_of_the_approximate_search_are_searched_exactly():
    x = torch.from_numpy(DATA["identities"])

    def search(queries, targets, k):
        rank, similarity = neighbors.search_torch(queries, targets, k)
        rank[7, 3:], similarity[7, 3:] = -1, torch.finfo(torch.float32).min
        rank[9, 0:], similarity[9, 0:] = -1, torch.finfo(torch.float32).min
        return rank, similarity

    rank, _ = neighbors.settle(x, x, 30, search)
    np.testing.assert_array_equal(rank, plain_neighbors(DATA["identities"], 30))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x * 1.01, "L2-normalise"),
        (lambda x: x * np.float32(np.nan), "not finite"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.float32(np.inf), x), "row 3"),
        (lambda x: x[0], "matrix"),
        (lambda x: x[:0], "N >= 1"),
        (lambda x: x.astype(np.int64), "floating-point"),
    ],
)
def test_bad_features_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        cluster(change(DATA["identities"]))


@pytest.mark.parametrize(
    "name, value",
    [("k1", 0), ("k1", 2.5), ("k2", 0), ("eps", 0.0), ("eps", 1.0), ("eps", np.nan), ("min_samples", 0), ("knn", "x")],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        cluster(DATA["identities"], **{name: value})


@pytest.mark.parametrize("steps", STEPS, ids=module_name)
@pytest.mark.slow
def test_steps_agree(steps):
    for x in DATA.values():
        features = torch.from_numpy(x)
        near = nearest_neighbors(features, 20)
        for k2 in (1, 6):
            for limit in (None, 0.6):
                want = distances(features, near, 20, k2, limit, steps_torch)
                got = distances(features, near, 20, k2, limit, steps)
                np.testing.assert_array_equal(got.indptr, want.indptr)
                np.testing.assert_array_equal(got.indices, want.indices)
                np.testing.assert_array_equal(got.data, want.data)


@pytest.mark.slow
@pytest.mark.parametrize("block", [8_000, None])
@pytest.mark.parametrize("k1, k2", SETTINGS)
@pytest.mark.parametrize("name", DATA)
def test_torch_steps_in_blocks_give_the_labels_of_the_definition(name, k1, k2, block, monkeypatch):
    """What runs on a GPU, here on the CPU: many small blocks, or all at once."""
    dbscan = pytest.importorskip("sklearn.cluster").DBSCAN
    if block is not None:
        monkeypatch.setattr(steps_torch, "BLOCK", block)
    features = torch.from_numpy(DATA[name])
    near = neighbors.settle(features, features, k1, neighbors.search_torch)
    want = definition(name, k1, k2)
    np.testing.assert_allclose(dense(distances(features, near, k1, k2, None, steps_torch)), want, atol=1e-6)
    for eps, min_samples in ((0.6, 4), (0.3, 4), (0.5, 2)):
        got = dbscan_labels(distances(features, near, k1, k2, eps, steps_torch), min_samples)
        labels = dbscan(eps=eps, min_samples=min_samples, metric="precomputed").fit(want).labels_
        np.testing.assert_array_equal(got, labels)


def test_sums_in_order_are_those_of_a_loop():
    """float32 sums depend on the order: of these, 0 comes of no other one."""
    keys = torch.tensor([2, 2, 2, 5, 7, 7, 7, 7])
    values = torch.tensor([1e8, 1.0, -1e8, 4.0, 1e8, 1.0, -1e8, 1.0])
    unique, sums = steps_torch._sums_in_order(keys, values)
    assert unique.tolist() == [2, 5, 7] and sums.tolist() == [0.0, 4.0, 1.0]
    unique, sums = steps_torch._sums_in_order(keys[:0], values[:0])
    assert len(unique) == len(sums) == 0


@pytest.mark.parametrize("knn", ["exact", "ivf"])
def test_shares_of_the_rows_are_searched_as_the_whole(knn):
    if knn == "ivf":
        pytest.importorskip("faiss")
    x = with_copies(1500, 20)
    want = nearest_neighbors(x, 30, knn)
    parts = [nearest_neighbors(x, 30, knn, rows) for rows in (slice(0, 700), slice(700, 700), slice(700, 1500))]
    rank, similarity = (torch.cat(arrays) for arrays in zip(*parts, strict=True))
    assert torch.equal(rank, want[0])
    torch.testing.assert_close(similarity, want[1], rtol=0, atol=1e-6)
    labels = cluster(x, knn=knn)
    assert labels.max() > 10
    np.testing.assert_array_equal(cluster(x, neighbors=(rank, similarity)), labels)


def test_neighbors_among_other_rows():
    """Queries and targets of different numbers, copies of targets among the queries."""
    x, y = with_copies(300, 20), with_copies(450, 20, seed=1)
    x[::7] = y[:43]
    products = (x.astype(np.float64) @ y.T.astype(np.float64)).astype(np.float32)
    want = np.argsort(-products, axis=1, kind="stable")[:, :20]
    rank, similarity = nearest_neighbors(x, 20, targets=y)
    np.testing.assert_array_equal(rank, want)
    np.testing.assert_allclose(similarity, np.take_along_axis(products, want, 1), atol=1e-6)
    for search in SEARCHES:
        rank, _ = neighbors.settle(torch.from_numpy(x), torch.from_numpy(y), 20, search)
        np.testing.assert_array_equal(rank, want)
    share = nearest_neighbors(x, 20, rows=slice(100, 180), targets=y)[0]
    np.testing.assert_array_equal(share, want[100:180])
    assert nearest_neighbors(x, 1000, targets=y)[0].shape == (300, 450)
    with pytest.raises(ValueError, match=r"one width .* \[300, 24\] on cpu and \[450, 23\]"):
        nearest_neighbors(x, 20, targets=unit(y[:, 1:]))


@pytest.mark.parametrize("bfloat16", [True, False])
def test_tiles_of_other_rows(bfloat16, monkeypatch):
    tiles = pytest.importorskip("sdcl.clustering.search_tiles")
    monkeypatch.setattr(tiles, "TILE", 56)
    monkeypatch.setattr(tiles, "ROOM", 1)
    monkeypatch.setattr(tiles, "_native_bfloat16", lambda: bfloat16)
    x, y = with_copies(200, 20), DATA["identities"]
    rank, _ = neighbors.settle(torch.from_numpy(x), torch.from_numpy(y), 15, neighbors.search_compiled)
    want = np.argsort(-(x.astype(np.float64) @ y.T).astype(np.float32), axis=1, kind="stable")[:, :15]
    np.testing.assert_array_equal(rank, want)


# -- rows that are not of unit length ----------------------------------------------------------------------------------


def naive_jaccard(x: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Dense distances from the rows as they are: method page, section 3, in float64, one row after another."""
    x, n = x.astype(np.float64), len(x)
    squares = ((x[:, None] - x) ** 2).sum(2).astype(np.float32)
    rank = np.argsort(squares, axis=1, kind="stable")[:, :k1]
    lists = [[list(rank[i, : k + 1]) for i in range(n)] for k in (k1, round(k1 / 2))]
    full, half = [[{j for j in near[i] if i in near[j]} for i in range(n)] for near in lists]
    v = np.zeros((n, n))
    for i in range(n):
        expanded = set(full[i])
        for c in full[i]:
            if 3 * len(half[c] & full[i]) > 2 * len(half[c]):
                expanded |= half[c]
        columns = sorted(expanded)
        exponent = -(2 - 2 * x[columns] @ x[i])
        e = np.exp(exponent - exponent.max(initial=-np.inf))
        v[i, columns] = e / e.sum()
    if k2 > 1:
        v = np.stack([v[rank[i, :k2]].mean(0) for i in range(n)])
    m = np.minimum(v[:, None], v).sum(2)
    return np.maximum(1 - m / (2 - m), 0)


def unequal_lengths(n: int, scale: float, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    """Identities whose rows have lengths from half to twice `scale`, away from the origin by `offset` times that."""
    rng = np.random.default_rng(seed)
    x = identities(n, seed=seed) * rng.uniform(0.5, 2, (n, 1)) + offset * unit(rng.normal(size=(1, 24)))
    return (x * scale).astype(np.float32)


FREE_ROWS = {
    "short": unequal_lengths(200, 0.04),
    "long": unequal_lengths(200, 9.0),
    "so long that weights vanish": unequal_lengths(200, 60.0),
    "far away": unequal_lengths(200, 0.1, offset=30.0),
    "of unit length": DATA["identities"][:200],
    "copies": np.concatenate([unequal_lengths(150, 0.04), np.repeat(unequal_lengths(150, 0.04)[5:7], 20, axis=0)]),
    "zero": np.zeros((40, 3), np.float32),
    "one": np.full((1, 5), 0.3, np.float32),
}


@pytest.mark.parametrize("k1, k2", [(30, 6), (12, 1)])
@pytest.mark.parametrize("name", FREE_ROWS)
def test_rows_of_any_length_are_those_of_the_naive_loop(name, k1, k2):
    dbscan = pytest.importorskip("sklearn.cluster").DBSCAN
    x, eps = FREE_ROWS[name], 0.4
    want = naive_jaccard(x, k1, k2)
    np.testing.assert_allclose(dense(jaccard_distance(x, k1, k2, unit_length=False)), want, atol=1e-5)
    labels = dbscan(eps=eps, min_samples=4, metric="precomputed").fit(want).labels_
    np.testing.assert_array_equal(cluster(torch.from_numpy(x), eps, 4, k1, k2, unit_length=False), labels)


@pytest.mark.parametrize("steps", STEPS, ids=module_name)
@pytest.mark.parametrize("name", FREE_ROWS)
def test_every_way_agrees_on_rows_of_any_length(name, steps):
    x = FREE_ROWS[name]
    squares = ((x[:, None].astype(np.float64) - x) ** 2).sum(2).astype(np.float32)
    want = np.argsort(squares, axis=1, kind="stable")[:, :20]
    features = torch.from_numpy(x)
    near = nearest_neighbors(features, 20, unit_length=False)
    np.testing.assert_array_equal(near[0], want)
    size = 4 * (x**2).sum(1).max()
    np.testing.assert_allclose(-near[1], np.take_along_axis(squares, want, 1), rtol=1e-4, atol=1e-5 * size)
    for search in SEARCHES:
        np.testing.assert_array_equal(neighbors.settle(*lifted(features, features)[:2], 20, search)[0], want)
    got = distances(features, near, 20, 6, None, steps, unit_length=False)
    np.testing.assert_allclose(dense(got), naive_jaccard(x, 20, 6), atol=1e-5)


def test_unit_rows_give_the_same_whether_it_is_said_or_not():
    x = DATA["copies"]
    np.testing.assert_allclose(
        dense(jaccard_distance(x, unit_length=False)), dense(jaccard_distance(x)), atol=1e-6
    )
    np.testing.assert_array_equal(cluster(x, unit_length=False), cluster(x))


def test_rows_of_any_length_must_be_finite():
    x = FREE_ROWS["short"].copy()
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match="row 7, length nan.* are not finite: the embeddings have diverged"):
        cluster(x, unit_length=False)


def test_neighbors_of_another_number_are_refused():
    near = nearest_neighbors(DATA["identities"], 30)
    with pytest.raises(ValueError, match=r"\[240, 20\], not \[\[240, 30\], \[240, 30\]\]"):
        cluster(DATA["identities"], k1=20, neighbors=near)
    with pytest.raises(ValueError, match=r"\[200, 30\]"):
        cluster(DATA["grid"], neighbors=near)


@pytest.mark.skipif(not (GOLDEN / "G4_jaccard.npz").exists(), reason="no golden files; SDCL_GOLDEN names their folder")
def test_golden_vectors():
    sys.path.insert(0, str(GOLDEN))
    try:
        import recipe
    finally:
        sys.path.remove(str(GOLDEN))
    with np.load(GOLDEN / "G4_jaccard.npz") as golden:
        for name, p in json.loads(str(golden["meta"]))["variants"].items():
            x = recipe.g4(p)["features"]
            got = dense(jaccard_distance(x, p["k1"], p["k2"]))
            np.testing.assert_allclose(got, golden[f"{name}/distance"], atol=1e-5)
            for eps in p["eps"]:
                labels = cluster(x, eps, p["min_samples"], p["k1"], p["k2"])
                np.testing.assert_array_equal(labels, golden[f"{name}/labels_{eps}"])
