"""Time of a SYSU-MM01 test against its plain form, in the same run.

    python scripts/bench_test.py                                       drawn people, the demo's network, random weights
    python scripts/bench_test.py --data-dir data/sysu --preset sysu    the real images and the published network
    python scripts/bench_test.py --identities 0                        the metrics alone

Two parts, each computed in both ways in turn; medians over the rounds are printed, and what the plain way takes as a
multiple of the other.

embedding: plain embeds the queries once and each of the ten galleries of both modes by itself, as the published runs
           embed galleries; the other way embeds every image once and takes rows of it.
metrics:   plain ranks, removes, counts and averages in a loop over the queries (NumPy within a query); the other way is
           sysu_metrics. Random features, with SYSU-MM01's numbers of queries, gallery images, identities and trials.

On a CPU, seconds are CPU seconds of the process, which others on the machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np
import torch

from sdcl.config import PRESETS, Config  # noqa: E402
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout  # noqa: E402
from sdcl.errors import run_program  # noqa: E402
from sdcl.evaluation import SAME_PLACE, Metrics, sysu_metrics  # noqa: E402
from sdcl.frame.retrieval import TestSet, embed_test_set, load_test_set  # noqa: E402
from sdcl.models import Embeddings, SDCLModel, build_model, embed  # noqa: E402
from sdcl.tables import align_columns  # noqa: E402
from sdcl.training.method import METHOD  # noqa: E402

IDENTITIES = 96
"""Test identities of SYSU-MM01."""


# -- embedding ---------------------------------------------------------------------------------------------------------


def embed_each_gallery(model: SDCLModel, test: TestSet, config: Config) -> list[Embeddings]:
    """The queries' embeddings, then those of each gallery of each mode, each by a pass of its own."""
    sides = [test.tasks[0].query, *(gallery for task in test.tasks for gallery in task.galleries)]
    return [
        embed(
            model,
            [test.images[modality][r].path for r in rows],
            modality,  # type: ignore[arg-type]
            batch_size=config.embedding_batch,
            workers=config.workers,
            precision=config.precision,
        )
        for modality, rows in sides
    ]


def bench_embedding(config: Config, rounds: int) -> list[str]:
    """Times both ways on the test set in `config.data_dir`; a row of the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(config.model, pretrained=None)).to(device)
    test = load_test_set(config)
    found: dict[str, list] = {"plain": [], "once": []}
    plain, once = alternate(
        lambda: found["plain"].append(embed_each_gallery(model, test, config)),
        lambda: found["once"].append(embed_test_set(METHOD, model, test, config)),
        rounds,
        wall=device.type == "cuda",
    )
    sides = [test.tasks[0].query, *(gallery for task in test.tasks for gallery in task.galleries)]
    difference = max(
        float((level - found["once"][0][modality][name][rows]).abs().max())
        for (modality, rows), passed in zip(sides, found["plain"][0], strict=True)
        for name, level in passed._asdict().items()
    )
    images = sum(len(rows) for _, rows in sides), sum(map(len, test.images.values()))
    what = f"embedding, {images[0]:,} images in passes, {images[1]:,} once"
    return row(what, plain, once, f"differ by {difference:.0e}")


# -- metrics -----------------------------------------------------------------------------------------------------------


def loop_metrics(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, query_cams: np.ndarray,
    gallery_cams: np.ndarray,
) -> Metrics:  # fmt: skip
    """`sysu_metrics` as it is usually written, one query after the other."""
    curves, precisions, penalties = [], [], []
    for scores, identity, camera in zip(similarity, query_ids, query_cams, strict=True):
        order = np.argsort(-scores, kind="stable")
        if camera == SAME_PLACE[0]:
            order = order[gallery_cams[order] != SAME_PLACE[1]]
        ids = gallery_ids[order]
        match = ids == identity
        if not match.any():
            continue
        places = np.flatnonzero(match) + 1
        precisions.append((np.arange(1, len(places) + 1) / places).mean())
        penalties.append(len(places) / places[-1])
        listed = ids[np.sort(np.unique(ids, return_index=True)[1])]  # each identity's first appearance
        curve = np.cumsum(listed == identity)
        curves.append(np.pad(curve, (0, max(0, 20 - len(curve))), mode="edge")[:20])
    return Metrics(np.mean(curves, axis=0), float(np.mean(precisions)), float(np.mean(penalties)))


def bench_metrics(queries: int, gallery: int, trials: int, rounds: int) -> list[str]:
    """Times both ways on random features; a row of the table."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(IDENTITIES, 64))
    query_ids, gallery_ids = np.arange(queries) % IDENTITIES, np.arange(gallery) % IDENTITIES
    query_cams, gallery_cams = rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], gallery)
    query = people[query_ids] + 2 * rng.normal(size=(queries, 64))
    similarities = [
        (query @ (people[gallery_ids] + 2 * rng.normal(size=(gallery, 64))).T).astype(np.float32) for _ in range(trials)
    ]
    found: dict[Callable[..., Metrics], list[list[Metrics]]] = {loop_metrics: [], sysu_metrics: []}

    def compute(way: Callable[..., Metrics]) -> None:
        found[way].append([way(s, query_ids, gallery_ids, query_cams, gallery_cams) for s in similarities])

    plain, fast = alternate(lambda: compute(loop_metrics), lambda: compute(sysu_metrics), rounds)
    difference = max(
        float(np.abs(np.array([*a.cmc, a.mAP, a.mINP]) - np.array([*b.cmc, b.mAP, b.mINP])).max())
        for a, b in zip(found[loop_metrics][0], found[sysu_metrics][0], strict=True)
    )
    what = f"metrics, {queries:,} queries x {gallery:,} gallery images x {trials} trials"
    return row(what, plain, fast, f"differ by {difference:.0e}")


# -- both --------------------------------------------------------------------------------------------------------------


def alternate(
    plain: Callable[[], object], fast: Callable[[], object], rounds: int, wall: bool = False
) -> tuple[float, float]:
    """Median seconds of each, run in turn."""
    clock = time.perf_counter if wall else time.process_time
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for way, taken in zip((plain, fast), seconds, strict=True):
            start = clock()
            way()
            taken.append(clock() - start)
    return median(seconds[0]), median(seconds[1])


def row(what: str, plain: float, fast: float, results: str) -> list[str]:
    return [what, f"{plain:.2f}", f"{fast:.2f}", f"{plain / fast:.1f}x", results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="demo", help="network and batch of the embedding (%(default)s)")
    add("--data-dir", type=Path, help="a set in the layout of SYSU-MM01 (default: people are drawn)")
    add("--identities", type=int, default=16, help="test identities that are drawn; 0: no embedding (%(default)s)")
    add("--queries", type=int, default=3803, help="of the metrics (%(default)s)")
    add("--gallery", type=int, default=301, help="of the metrics: images in a trial (%(default)s)")
    add("--trials", type=int, default=10, help="of the metrics (%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    a = parser.parse_args()

    rows = [["", "plain s", "here s", "ratio", "results"]]
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(PRESETS[a.preset], data_dir=a.data_dir or Path(folder), workers=0)
        if a.data_dir is None and a.identities:
            size = config.model.image_height, config.model.image_width
            people = SyntheticConfig(2, a.identities, height=size[0], width=size[1])
            write_sysu_layout(Path(folder), people, progress=False)
        if a.data_dir is not None or a.identities:
            rows.append(bench_embedding(config, a.rounds))
    rows.append(bench_metrics(a.queries, a.gallery, a.trials, a.rounds))
    print(f"threads: {torch.get_num_threads()}, network: {a.preset}, rounds: {a.rounds}\n")
    print(align_columns(rows, left=1))


if __name__ == "__main__":
    run_program(main)
