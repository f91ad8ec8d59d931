"""Finds the images of a folder that are nearest to one query image, with a trained network of any method.

    python scripts/search.py --checkpoint runs/demo/best.pth --query IMAGE --gallery data/demo/cam1
    python scripts/search.py … --query-modality visible --gallery-modality infrared

Prints a table, nearest first, and writes one picture: the query and what was found. Similarities are those of the
method's final test (SDCL on SYSU-MM01: the sum of two cosines); they order a gallery, and say nothing by themselves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from sdcl.data.images import open_image
from sdcl.data.records import MODALITIES
from sdcl.errors import UserError, run_program
from sdcl.files import check_writable, write_atomically
from sdcl.frame.search import nearest_images
from sdcl.report.figures import ranked_figure
from sdcl.tables import align_columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights, such as RUN/best.pth")
    parser.add_argument("--query", type=Path, required=True, help="an image")
    parser.add_argument("--gallery", type=Path, required=True, help="a folder of images, its subfolders included")
    parser.add_argument("--query-modality", choices=MODALITIES, default="infrared", help="(%(default)s)")
    parser.add_argument("--gallery-modality", choices=MODALITIES, default="visible", help="(%(default)s)")
    parser.add_argument("--top", type=int, default=10, help="how many images (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("search.png"), help="the picture, PNG (%(default)s)")
    a = parser.parse_args()
    if a.top < 1:
        raise UserError(f"--top is {a.top}: at least 1")
    check_writable(a.output)
    query = open_image(str(a.query))
    hits = nearest_images(a.checkpoint, a.query, a.gallery, (a.query_modality, a.gallery_modality), a.top)
    rows = [(str(rank), f"{hit.similarity:.4f}", hit.path) for rank, hit in enumerate(hits, 1)]
    print(align_columns([("rank", "similarity", "image"), *rows], left=3))
    figure = ranked_figure(query, [(open_image(hit.path), f"{hit.similarity:.3f}") for hit in hits])
    write_atomically(a.output, lambda path: figure.savefig(path, format="png", dpi=150))
    print(f"{a.output} shows them")


if __name__ == "__main__":
    run_program(main)
