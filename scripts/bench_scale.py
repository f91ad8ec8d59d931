"""Seconds and memory of every phase outside the network by the number of images.

    OMP_NUM_THREADS=1 python scripts/bench_scale.py                                # 3,000, 10,000 and 30,000 images
    OMP_NUM_THREADS=1 python scripts/bench_scale.py --rows 100000 --width 64 --phases clustering association
    OMP_NUM_THREADS=1 python scripts/bench_scale.py --rows 300000 --phases "neighbour losses" metrics --device cuda

N images are drawn in each modality, embeddings of two levels of `--width` columns each. The phases, as an epoch of
training or a test has them:

- clustering: search of the neighbours, then distances and labels, of one modality's N images (rows of twice the width);
- association: labels of N visible images from N infrared ones;
- neighbour losses: mask and the two levels' losses of `--batch` anchors among N images, with their backward pass;
- metrics: N queries against a tenth as many gallery images, from their similarities on.

Each number is of a process of its own, where everything was loaded and compiled before. Seconds are processor time
(all threads'; on a GPU the clock's). Memory is the peak of the process, or of the GPU, above what it held before with
its input. "exponent" tells how seconds grew since the row above: 1 is linear in N, 2 is quadratic.
"""

import argparse
import math
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from bench_clustering import peak_above, synthetic_features
from torch import Tensor

from sdcl.clustering import cluster, nearest_neighbors
from sdcl.cnl import neighbor_loss, neighbor_mask
from sdcl.cra import associate
from sdcl.evaluation import sysu_metrics

Inputs = tuple[Tensor, ...]
K1, TOP_K = 30, 20


def levels(n: int, width: int, seed: int = 0) -> Inputs:
    """Unit rows [n, width] of two levels that agree on most neighbours."""
    deep = torch.from_numpy(synthetic_features(n, width, seed))
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 0.3 / width**0.5
    return deep, F.normalize(deep + noise, dim=1)


def clustering_inputs(n: int, width: int, batch: int) -> Inputs:
    return (F.normalize(torch.cat(levels(n, width), 1), dim=1),)


def search(features: Tensor) -> None:
    nearest_neighbors(features, K1)


def clustering(features: Tensor) -> None:
    cluster(features, k1=K1)


def association_inputs(n: int, width: int, batch: int) -> Inputs:
    (vd, rd), (vs, rs) = (x.split(n) for x in levels(2 * n, width))
    return vd, vs, rd, rs, torch.arange(n) // 30


def association(vd: Tensor, vs: Tensor, rd: Tensor, rs: Tensor, labels: Tensor) -> None:
    associate(vd, vs, rd, rs, labels, TOP_K, search=nearest_neighbors)


def plain_association(vd: Tensor, vs: Tensor, rd: Tensor, rs: Tensor, labels: Tensor) -> None:
    associate(vd, vs, rd, rs, labels, TOP_K)


def loss_inputs(n: int, width: int, batch: int) -> Inputs:
    return *levels(n, width), torch.arange(batch) % n


def neighbor_losses(deep: Tensor, shallow: Tensor, anchors: Tensor) -> None:
    mask = neighbor_mask(deep[anchors], shallow[anchors], deep, shallow)
    x, y = (level[anchors].clone().requires_grad_() for level in (deep, shallow))
    (neighbor_loss(x, deep, mask) + 0.5 * neighbor_loss(y, shallow, mask)).backward()


def metric_inputs(n: int, width: int, batch: int) -> Inputs:
    rng, gallery = np.random.default_rng(0), max(1, n // 10)
    ids = torch.from_numpy(rng.integers(max(1, n // 50), size=n + gallery))
    cams = torch.from_numpy(np.concatenate([rng.choice([3, 6], n), rng.choice([1, 2, 4, 5], gallery)]))
    return torch.rand(n, gallery), ids[:n], ids[n:], cams[:n], cams[n:]


def metrics(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor, *cams: Tensor) -> None:
    sysu_metrics(similarity, query_ids, gallery_ids, *cams)


PHASES: dict[str, tuple[Callable[[int, int, int], Inputs], Callable[..., None]]] = {
    "search": (clustering_inputs, search),
    "clustering": (clustering_inputs, clustering),
    "association": (association_inputs, association),
    "plain association": (association_inputs, plain_association),
    "neighbour losses": (loss_inputs, neighbor_losses),
    "metrics": (metric_inputs, metrics),
}


def measure(phase: str, n: int, width: int, batch: int, device: str) -> tuple[float, float]:
    """Seconds and bytes of one phase, in this process."""
    make, run = PHASES[phase]
    warm = 9000 if phase in ("search", "clustering", "association") else 200  # enough for all compiled code
    run(*(x.to(device) for x in make(min(warm, n), 8, min(batch, 8))))
    inputs = [x.to(device) for x in make(n, width, batch)]
    seconds: list[float] = []

    def timed() -> None:
        clock = perf_counter if device == "cuda" else process_time
        start = clock()
        run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)

    if device != "cuda":
        peak = peak_above(timed)
        return seconds[0], peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    timed()
    return seconds[0], torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[3000, 10000, 30000], help="images of a modality, N")
    parser.add_argument("--width", type=int, default=768, help="columns of a level's embedding")
    parser.add_argument("--batch", type=int, default=256, help="anchors of the neighbour losses")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=[p for p in PHASES if p != "plain association"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()

    kind = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{kind}, width {args.width} a level, k1 {K1}, top_k {TOP_K}, {args.batch} anchors")
    print(f"{'phase':18} {'N':>9} {'seconds':>9} {'peak MB':>9} {'exponent':>9}")
    for phase in args.phases:
        before: tuple[int, float] | None = None
        for n in sorted(args.rows):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                try:
                    seconds, peak = process.submit(measure, phase, n, args.width, args.batch, args.device).result()
                except (RuntimeError, MemoryError) as error:  # out of memory, or the process was killed for it
                    print(f"{phase:18} {n:9,} {type(error).__name__}: {str(error).splitlines()[0][:60]}", flush=True)
                    break
            exponent = f"{math.log(seconds / before[1]) / math.log(n / before[0]):9.1f}" if before else ""
            print(f"{phase:18} {n:9,} {seconds:9.2f} {peak / 1e6:9.0f} {exponent}", flush=True)
            before = n, seconds


if __name__ == "__main__":
    main()
