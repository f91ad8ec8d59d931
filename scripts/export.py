"""Takes out of a run what other programs can use: embeddings, pseudo-labels, the network itself.

    python scripts/export.py embeddings --checkpoint runs/demo/best.pth --output test.npz
    python scripts/export.py embeddings --checkpoint runs/demo/best.pth --images DIR --modality visible --output my.npz
    python scripts/export.py labels runs/demo --output labels
    python scripts/export.py model --checkpoint runs/demo/best.pth --modality visible --output visible.pt2

embeddings: each level of the method's network by its name [N, d] float32, and `paths`; of a test set also
            `identities` and `cameras`, and all names once with `visible_`, once with `infrared_` before them.
labels:     what the run's next epoch would train with, of a method that clusters: visible.npy and infrared.npy (int64,
            -1 = none, rows as in visible.txt and infrared.txt), and what else the method has of them.
model:      normalised images [B, 3, H, W] to the levels, for any B: an exported program (.pt2), or ONNX (.onnx, which
            needs the packages onnx and onnxscript). The file is compared with the network before it is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np
import torch

from sdcl.data.records import MODALITIES  # noqa: E402
from sdcl.errors import UserError, run_program  # noqa: E402
from sdcl.files import check_writable, write_atomically  # noqa: E402
from sdcl.frame.export import export_model, folder_embeddings, test_set_embeddings  # noqa: E402
from sdcl.frame.method import method_of  # noqa: E402


def save_embeddings(a: argparse.Namespace) -> None:
    if a.images is None:
        arrays = test_set_embeddings(a.checkpoint, a.data_dir)
    else:
        arrays = folder_embeddings(a.checkpoint, a.images, a.modality)

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # an open file keeps its name, whatever its suffix
            np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes any name for an option

    write_atomically(a.output, save)
    print(f"{a.output}: {', '.join(f'{name} {list(array.shape)}' for name, array in arrays.items())}")


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}. Name another one as --output") from error


def save_labels(a: argparse.Namespace) -> None:
    method = method_of(a.run / "last.pth")
    if method.next_labels is None:
        raise UserError(f"{a.run} is a run of {method.title}, which has no pseudo-labels")
    labels, records, about = method.next_labels(a.run, a.data_dir)
    for name, array in labels.items():
        np.save(a.output / f"{name}.npy", array.cpu().numpy())
    for modality in MODALITIES:
        (a.output / f"{modality}.txt").write_text("".join(f"{record.path}\n" for record in records[modality]))
    print(f"{a.output}: {about}")


def save_model(a: argparse.Namespace) -> None:
    difference = export_model(a.checkpoint, a.modality, a.output)
    print(f"{a.output}: agrees with the network to {difference:.1e} (largest relative difference of an embedding)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    embeddings = commands.add_parser("embeddings", help="of the checkpoint's test set, or of a folder of images")
    labels = commands.add_parser("labels", help="pseudo-labels of a run's next epoch")
    model = commands.add_parser("model", help="the network of one modality")
    labels.add_argument("run", metavar="RUN", type=Path, help="a run folder (RegDB: that of a trial)")
    for command in (embeddings, model):
        command.add_argument("--checkpoint", type=Path, required=True, help="weights, such as RUN/best.pth")
        command.add_argument("--modality", choices=MODALITIES, default="visible", help="(%(default)s)")
    embeddings.add_argument("--images", type=Path, help="a folder of images, its subfolders included")
    for command in (embeddings, labels):
        command.add_argument("--data-dir", type=Path, help="the data set's folder, if it has moved since the training")
    for command, action in ((embeddings, save_embeddings), (labels, save_labels), (model, save_model)):
        command.add_argument("--output", type=Path, required=True, help="file to write (labels: folder)")
        command.set_defaults(action=action)
    a = parser.parse_args()
    if a.action is save_labels:
        make_folder(a.output)
    else:
        check_writable(a.output)
    with torch.no_grad():
        a.action(a)


if __name__ == "__main__":
    run_program(main)
