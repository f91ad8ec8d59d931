"""SDCL's cases: the project's public functions on the inputs of each vector file (`vectors.py` says what it holds)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdcl.clustering import cluster, jaccard_distance
from sdcl.cnl import neighbor_loss, neighbor_mask
from sdcl.config import ModelConfig
from sdcl.cra import associate
from sdcl.evaluation import regdb_metrics, sysu_gallery, sysu_metrics, sysu_query
from sdcl.memory import ClusterMemory, InstanceMemory, cluster_centers
from sdcl.models import (
    SDCLModel,
    build_model,
    load_backbone,
    load_checkpoint,
    published_state_dict,
    save_published_format,
)
from verification import seeded
from verification.vectors import Case, Variant

__all__ = ["CASES"]

MODALITIES, LEVELS = ("visible", "infrared"), ("deep", "shallow")
NEARLY_CANCELLING = 5e-5
"""For gradients of neighbour losses: small differences of larger numbers."""
METRICS = 1e-6
"""For metrics, which are means of fractions."""
NEVER_READ = ("base.fc.", "base.decoder_norm.", "base.blocks.11.", "base.norm.")
"""What the published program saves and never uses."""


def published_checkpoint(case: Case) -> None:
    """G1: a checkpoint of the published program gives its embeddings, and is written back as it was."""
    for v in case.variants():
        model, seed = new_model(case), v.settings["seed"]
        shapes = {name: tuple(t.shape) for name, t in published_state_dict(model).items()}
        state = seeded.weights(shapes, seed)
        stored = {f"module.{name}": t for name, t in state.items()}
        with weight_file({"state_dict": stored, "epoch": 17, "best_mAP": 0.5}) as path:
            load_checkpoint(model, path)
            compare_embeddings(v, model)
            save_published_format(model, path, epoch=17, rank1=0.5)
            written = torch.load(path, weights_only=True)
        v.check((written["epoch"], written["best_mAP"]) == (17, 0.5), "epoch and Rank-1 are written otherwise")
        v.check(written["state_dict"].keys() == stored.keys(), "other names are written")
        for name, t in state.items():
            same = torch.equal(written["state_dict"][f"module.{name}"], t)
            v.check(same or name.startswith(NEVER_READ), f"{name} is written otherwise")


def backbone(case: Case) -> None:
    """G2: pre-trained weights go where the published program puts them; the position embedding is resampled alike."""
    for v in case.variants():
        model, (rows, columns) = new_model(case), v.settings["grid"]
        fresh = published_state_dict(model)
        names = [n.removeprefix("base.") for n in fresh if n.startswith("base.")]
        names = [n for n in names if not n.startswith(("patch_embed2.", "fc.", "decoder_norm."))]
        shapes = {n: tuple(fresh[f"base.{n}"].shape) for n in names} | {"pos_embed": (1, 1 + rows * columns, model.dim)}
        source = seeded.weights(shapes, v.settings["seed"], "ics.")
        with weight_file({"teacher": {f"module.backbone.{n}": t for n, t in source.items()}}) as path:
            report = load_backbone(model, path)
        v.check(len(report.loaded) == int(v.wanted("loaded")), f"{len(report.loaded)} tensors are loaded")
        state = published_state_dict(model)
        v.close("pos_embed", state["base.pos_embed"])
        for name, t in source.items():
            copies = [f"base.{name}"] * (name != "pos_embed")
            for part, places in (
                ("patch_embed.", ("base.patch_embed2.",)),
                ("blocks.11.", ("b1.0.", "b2.0.")),
                ("norm.", ("b1.1.", "b2.1.")),
            ):
                copies += [place + name.removeprefix(part) for place in places if name.startswith(part)]
            for copy in copies:
                v.check(torch.equal(state[copy], t), f"{copy} is not the file's {name}")
        compare_embeddings(v, model)


def distances_and_labels(case: Case) -> None:
    """G4: the k-reciprocal Jaccard distance, which of its entries are stored, and DBSCAN's labels."""
    features = next(case.variants()).given("features")[0]  # of all variants
    for v in case.variants():
        p, wanted = v.settings, v.wanted("distance")
        distance = jaccard_distance(features, k1=p["k1"], k2=p["k2"]).tocoo()
        dense, stored = np.ones(distance.shape), np.zeros(distance.shape, bool)
        dense[distance.row, distance.col], stored[distance.row, distance.col] = distance.data, True
        v.close("distance", dense)
        v.equal("stored entries", stored, wanted=wanted < 1, where=(wanted == 1) | (wanted < 1 - 1e-6))
        for eps in p["eps"]:
            labels = cluster(features, eps=eps, min_samples=p["min_samples"], k1=p["k1"], k2=p["k2"])
            v.equal(f"labels_{eps}", labels)


def cluster_memory(case: Case) -> None:
    """G5: loss, gradient and moved centres; two losses on one memory, in the published order; means of clusters."""
    for v in case.variants():
        q, p = v.given(), v.settings
        if "labels" in q:
            v.close("centers", cluster_centers(q["features"], q["labels"]))
            continue
        memory = ClusterMemory(q["centers"], p["momentum"], p["temperature"])
        batches = [q[f"x{i}"].requires_grad_() for i in range(p["batches"])]
        losses = [memory(x, q[f"y{i}"]) for i, x in enumerate(batches)]
        torch.stack([loss.reshape(()) for loss in losses]).sum().backward()
        for i, (x, loss) in enumerate(zip(batches, losses, strict=True)):
            v.close(f"loss{i}", loss.reshape(()))
            v.close(f"grad{i}", x.grad)
        v.close("memory", memory.features)


def instance_memory(case: Case) -> None:
    """G6: rows that come twice in a batch move twice."""
    for v in case.variants():
        features, x, rows = v.given("features x rows")
        memory = InstanceMemory(features, momentum=v.settings["momentum"])
        memory.update(x, rows)
        v.close("memory", memory.features)


def neighbors(case: Case) -> None:
    """G7: masks of both directions and modalities, losses, and gradients before and after the memory has moved."""
    for v in case.variants():
        q = v.given()
        for own in MODALITIES:
            rows = q[f"{own}_rows"]
            anchors = [q[f"memory_{own}_{level}"][rows] for level in LEVELS]
            for target in MODALITIES:
                pair, memories = f"{own}.{target}", [q[f"memory_{target}_{level}"] for level in LEVELS]
                shape = tuple(v.wanted(f"{pair}/shape"))
                bits = np.unpackbits(v.wanted(f"{pair}/mask"), count=shape[0] * shape[1])
                mask = torch.from_numpy(bits.reshape(shape).astype(bool)).to(case.device)
                v.equal(f"{pair}/mask", neighbor_mask(*anchors, *memories), wanted=mask.cpu())
                for level, memory in zip(LEVELS, memories, strict=True):
                    x = q[f"x_{own}_{level}"].clone().requires_grad_()
                    loss = neighbor_loss(x, memory, mask)
                    loss.backward()
                    v.close(f"{pair}/loss_{level}", loss.reshape(()))
                    v.close(f"{pair}/grad_{level}", x.grad, NEARLY_CANCELLING)
                    moving, x = InstanceMemory(memory), x.detach().clone().requires_grad_()
                    loss = neighbor_loss(x, moving.features, mask)
                    moving.update(q[f"x_{target}_{level}"], q[f"{target}_rows"])  # between loss and gradient
                    loss.backward()
                    v.close(f"{pair}/live_{level}", x.grad, NEARLY_CANCELLING)


def association(case: Case) -> None:
    """G8: labels that visible rows are given; rows whose vote is a tie somewhere on the way are left out."""
    for v in case.variants():
        labels = associate(**v.given(), top_k=v.settings["top_k"], smooth_k=v.settings["smooth_k"])
        v.equal("labels", labels, where=~v.wanted("flagged"))


def metrics(case: Case) -> None:
    """G9: CMC, mAP and mINP of both protocols, from tensors and from NumPy arrays."""
    for v in case.variants():
        sysu = v.settings["protocol"] == "sysu"
        cameras = " query_cams gallery_cams" if sysu else ""
        tensors = v.given("similarity query_ids gallery_ids" + cameras)
        measure: Callable[..., Any] = sysu_metrics if sysu else regdb_metrics
        for inputs in (tensors, [t.cpu().numpy() for t in tensors]):
            found = measure(*inputs)
            for name in ("cmc", "mAP", "mINP"):
                v.close(name, getattr(found, name), METRICS)


def test_lists(case: Case) -> None:
    """G10: queries and the ten galleries of both modes, of a SYSU-MM01 with folders missing."""
    for v in case.variants():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for file in v.text("files"):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).touch()
            (root / "exp").mkdir()
            for part in ("train", "val", "test"):
                listed_ids = ",".join(str(int(i)) for i in v.given(f"{part}_ids")[0])
                (root / "exp" / f"{part}_id.txt").write_text(f"{listed_ids}\n")
            lists = {"query": sysu_query(root)}
            for mode in ("all", "indoor"):
                lists |= {f"{mode}/{trial}": sysu_gallery(root, mode, trial) for trial in range(10)}
            for listed, entries in lists.items():
                paths, ids, cameras = zip(*entries, strict=True)
                v.equal(f"{listed}/path", [(root / file).relative_to(root).as_posix() for file in paths])
                v.equal(f"{listed}/id", [int(i) for i in ids])
                v.equal(f"{listed}/camera", [int(c) for c in cameras])


def new_model(case: Case) -> SDCLModel:
    """The published architecture, untrained."""
    return build_model(ModelConfig()).to(case.device)


def compare_embeddings(v: Variant, model: SDCLModel) -> None:
    """Each modality by itself and both in one pass, in evaluation mode."""
    height, width = model.config.image_height, model.config.image_width
    pictures = {m: seeded.images(m, v.settings["seed"], v.settings[m], height, width) for m in MODALITIES}
    drawn = seeded.checksums(*(pictures[m] for m in sorted(MODALITIES)))
    v.close("the images drawn from their seed", drawn, wanted=v.given("sums")[0].cpu())
    on_device = {m: x.to(v.case.device) for m, x in pictures.items()}
    first = len(pictures["visible"])
    places = {"visible": slice(0, first), "infrared": slice(first, None)}
    passes: list[tuple[dict[str, Tensor], slice]] = [(on_device, slice(None))]
    passes += [({m: x}, places[m]) for m, x in on_device.items()]
    model.eval()
    for images, rows in passes:
        with torch.no_grad():
            embeddings = model(**images)
        for level in LEVELS:
            v.close(f"{level} of {' and '.join(images)}", getattr(embeddings, level), wanted=v.wanted(level)[rows])


@contextmanager
def weight_file(content: dict[str, Any]) -> Iterator[Path]:
    """A file of weights that lives as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(content, path)
        yield path


CASES: dict[str, Callable[[Case], None]] = {
    "G1": published_checkpoint,
    "G2": backbone,
    "G4": distances_and_labels,
    "G5": cluster_memory,
    "G6": instance_memory,
    "G7": neighbors,
    "G8": association,
    "G9": metrics,
    "G10": test_lists,
}
"""How a vector file's name begins → what compares it."""
