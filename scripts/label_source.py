"""Pseudo-labels of AML's source from any trained network of this project: embeds the images, clusters, writes a file.

    python scripts/label_source.py runs/demo/best.pth --source-dir data/market1501_gen

The images of market1501_train and market1501_test are clustered together, as visible ones, by DBSCAN on the
k-reciprocal Jaccard distance. Outliers are left out. The file holds a line `name label` for each image that has one;
`train_aml.py` reads it by itself where the released labels are not there, or with --source-labels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import torch.nn.functional as F

from sdcl.clustering import cluster  # noqa: E402
from sdcl.data.readers.market_gen import LABEL_FILES, original_images, write_labels  # noqa: E402
from sdcl.errors import UserError, run_program  # noqa: E402
from sdcl.files import check_writable  # noqa: E402
from sdcl.frame.embedding import embed_paths  # noqa: E402
from sdcl.frame.export import load_trained  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="weights of any method, such as RUN/best.pth")
    parser.add_argument("--source-dir", type=Path, default=Path("data/market1501_gen"), help="(%(default)s)")
    parser.add_argument("--output", type=Path, help=f"file to write (SOURCE_DIR/{LABEL_FILES[-1]})")
    parser.add_argument("--eps", type=float, default=0.6, help="DBSCAN's radius (%(default)s)")
    parser.add_argument("--min-samples", type=int, default=4, help="neighbours that make a core row (%(default)s)")
    parser.add_argument("--k1", type=int, default=30, help="size of the neighbour lists (%(default)s)")
    parser.add_argument("--k2", type=int, default=6, help="rows of the query expansion (%(default)s)")
    a = parser.parse_args()
    output = a.output or a.source_dir / LABEL_FILES[-1]
    check_writable(output)
    method, network, config, _ = load_trained(a.checkpoint)
    records = original_images(a.source_dir)
    levels = embed_paths(
        method.embedding,
        network,
        [record.path for record in records],
        "visible",
        config.image_size,
        interpolation=method.interpolation,
        batch_size=config.embedding_batch,
        workers=config.workers,
    )
    features = next(iter(method.features(levels, config, True).values()))
    try:
        labels = cluster(F.normalize(features, dim=1), a.eps, a.min_samples, a.k1, a.k2)
    except ValueError as error:
        raise UserError(str(error)) from None
    named = {Path(r.path).name: int(y) for r, y in zip(records, labels, strict=True) if y >= 0}
    if not named:
        raise UserError(f"no cluster in {len(records):,} images: a larger --eps finds more")
    write_labels(output, named)
    found = f"{int(labels.max()) + 1:,} clusters of {len(named):,} images"
    print(f"{output}: {found}; {len(records) - len(named):,} outliers are left out")


if __name__ == "__main__":
    run_program(main)
