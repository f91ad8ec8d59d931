"""Time and memory of clustering against its plain dense form, in the same run.

    python scripts/bench_clustering.py                               # 3,000 … 22,258 rows; the plain form up to 6,000
    python scripts/bench_clustering.py --rows 22258 --plain-up-to 22258     # SYSU-MM01 visible; plain: 6 GB, a minute
    python scripts/bench_clustering.py --rows 100000 --rounds 1 --ways fast

Each measurement has a process of its own, where everything is loaded and compiled before the clock starts; the rounds
of all ways alternate, and medians are printed. Memory is the peak above what was held with the features loaded: the
process's, or, of what runs on a GPU, the GPU's. Where the GPU's is not enough, the row says so. Rows are synthetic
identities of several camera modes, shuffled, with about a tenth of outliers.
"""

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np
import torch

from sdcl.clustering import dbscan_labels, neighbors
from sdcl.clustering.compiled import usable
from sdcl.clustering.jaccard import distance_graph, neighbor_weights
from sdcl.clustering.plain import plain_jaccard

CLOCKS = {"wall": perf_counter, "cpu": process_time}
K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
FLOAT_SEARCH = neighbors.search_faiss if usable("faiss") else neighbors.search_torch
WAYS = {
    "plain": "float32 search, dense distance, dense DBSCAN of scikit-learn",
    "numba": "float32 search, compiled steps",
    "fast": "search by tiles, compiled steps: what runs with numba",
    "torch": "float32 search, torch steps on the CPU: what runs on few rows and without numba",
    "cuda": "torch search, torch steps on the GPU; DBSCAN on the CPU: what runs with features there",
}


def synthetic_features(n: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [n, width] unit rows: an identity for every 56 rows, two to four camera modes each, shuffled."""
    rng = np.random.default_rng(seed)
    ids, hidden = max(2, n // 56), 48  # what tells people apart has fewer dimensions than the embedding
    who = rng.integers(ids, size=n)
    mode = rng.integers(0, 4, size=n) % rng.integers(2, 5, size=ids)[who]
    centres = rng.normal(size=(ids, 1, hidden)) + 0.9 * rng.normal(size=(ids, 4, hidden))
    latent = centres[who, mode] + 1.0 * rng.lognormal(0, 0.35, size=(n, 1)) * rng.normal(size=(n, hidden))
    spread = rng.normal(size=(hidden, width)).astype(np.float32)
    features = np.empty((n, width), np.float32)
    for part in range(0, n, 4096):
        rows = latent[part : part + 4096].astype(np.float32) @ spread
        rows += rng.standard_normal(rows.shape, np.float32) * 2
        features[part : part + 4096] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return features


def run_plain(x: np.ndarray, now: Callable[[], float]) -> tuple[np.ndarray, dict[str, float]]:
    """Labels, and seconds by phase."""
    from sklearn.cluster import DBSCAN

    clock = [now()]
    features = torch.from_numpy(x)
    rank, _ = FLOAT_SEARCH(features, features, min(K1, len(x)))
    clock.append(now())
    distance = plain_jaccard(x, rank.numpy(), K1, K2)
    clock.append(now())
    labels = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed", n_jobs=-1).fit(distance).labels_
    clock.append(now())
    return labels, {"search": clock[1] - clock[0], "distance": clock[2] - clock[1], "dbscan": clock[3] - clock[2]}


def run_sparse(x: np.ndarray, way: str, timer: Callable[[], float]) -> tuple[np.ndarray, dict[str, float]]:
    """Labels, and seconds by phase."""
    features = torch.from_numpy(x).to("cuda" if way == "cuda" else "cpu")
    kind = "torch" if way in ("torch", "cuda") else "numba"
    steps = import_module(f"sdcl.clustering.steps_{kind}")
    search = neighbors.search_torch if way == "cuda" else FLOAT_SEARCH
    if way == "fast":
        search = neighbors.search_compiled

    def now() -> float:
        if way == "cuda":
            torch.cuda.synchronize()
        return timer()

    clock = [now()]
    near = neighbors.settle(features, features, K1, search)
    clock.append(now())
    graph = distance_graph(neighbor_weights(features, near, K1, K2, steps), EPS, steps)
    clock.append(now())
    labels = dbscan_labels(graph, MIN_SAMPLES)
    clock.append(now())
    return labels, {"search": clock[1] - clock[0], "distance": clock[2] - clock[1], "dbscan": clock[3] - clock[2]}


def peak_above(run: Callable[[], object]) -> float:
    """Bytes by which the process grew while it ran (Linux; elsewhere not a number)."""

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        before = status("VmRSS")
    except OSError:
        run()
        return float("nan")
    run()
    return status("VmHWM") - before


def gpu_peak(run: Callable[[], object]) -> float:
    """Bytes of the GPU's memory that torch took at most while it ran."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_reserved()


def measure(way: str, path: str, clock: str) -> dict:
    """One run in this process: labels, seconds by phase, peak memory."""

    def run(x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        return run_plain(x, CLOCKS[clock]) if way == "plain" else run_sparse(x, way, CLOCKS[clock])

    run(synthetic_features(600, 64))  # loads, compiles
    x = np.load(path)
    out: list = []
    try:
        peak = (gpu_peak if way == "cuda" else peak_above)(lambda: out.append(run(x)))
    except torch.cuda.OutOfMemoryError:
        return {"labels": None, "seconds": {}, "peak": float("nan")}
    labels, seconds = out[0]
    return {"labels": labels, "seconds": seconds, "peak": peak}


def measured(n: int, width: int, ways: list[str], rounds: int, clock: str) -> dict[str, dict]:
    """Median seconds and largest peak of each way; labels of its first round."""
    results: dict[str, list[dict]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "features.npy")
        np.save(path, synthetic_features(n, width))
        for _ in range(rounds):
            for way in ways:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    results[way].append(process.submit(measure, way, path, clock).result())
    return {
        way: {
            "labels": runs[0]["labels"],
            "peak": max(r["peak"] for r in runs),
            "seconds": {phase: median(r["seconds"][phase] for r in runs) for phase in runs[0]["seconds"]},
        }
        for way, runs in results.items()
    }


def totals(result: dict) -> tuple[float, float]:
    """Seconds of everything after the search, and of everything."""
    seconds = result["seconds"]
    return seconds["distance"] + seconds["dbscan"], sum(seconds.values())


def main() -> None:
    compiled = ["numba", "fast"] if usable("numba") else ["torch"]
    usual = ["plain", *compiled, *["cuda"] * torch.cuda.is_available()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[3000, 6000, 11909, 22258])
    parser.add_argument("--width", type=int, default=1536, help="columns: deep and shallow embedding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-up-to", type=int, default=6000, help="most rows for the plain form (N² memory)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: all threads', steadier when others work")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=usual)
    args = parser.parse_args()

    settings = f"k1 {K1}, k2 {K2}, eps {EPS}, min_samples {MIN_SAMPLES}, width {args.width}"
    print(f"{settings}, {torch.get_num_threads()} threads, {args.clock} seconds")
    for way in args.ways:
        print(f"  {way:6} {WAYS[way]}")
    heads = ("search s", "distance s", "DBSCAN s", "total s", "peak MB", "after search", "whole", "labels")
    print(("\n" + "{:>7} {:6}" + " {:>12}" * 8).format("rows", "way", *heads))
    for n in args.rows:
        ways = [way for way in args.ways if way != "plain" or n <= args.plain_up_to]
        results = measured(n, args.width, ways, args.rounds, args.clock)
        base = next((r for r in results.values() if r["labels"] is not None), None)
        if base is None:
            print(f"{n:7} {', '.join(ways)}: out of memory\n", flush=True)
            continue
        for way, r in results.items():
            if r["labels"] is None:
                print(f"{n:7} {way:6} out of memory", flush=True)
                continue
            s, (later, whole), (base_later, base_whole) = r["seconds"], totals(r), totals(base)
            same = "equal" if np.array_equal(r["labels"], base["labels"]) else "DIFFER"
            print(
                f"{n:7} {way:6} {s['search']:12.2f} {s['distance']:12.3f} {s['dbscan']:12.3f} {whole:12.2f}"
                f" {r['peak'] / 1e6:12.0f} {base_later / later:11.1f}x {base_whole / whole:11.1f}x {same:>12}",
                flush=True,
            )
        labels = base["labels"]
        print(f"{'':7} {labels.max() + 1} clusters, {(labels < 0).mean():.1%} outliers; ratios are to {ways[0]!r}\n")


if __name__ == "__main__":
    main()
