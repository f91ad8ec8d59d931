"""Retrieval metrics and test lists of SYSU-MM01 and RegDB (protocols page).

This file stands alone (NumPy, PyTorch, standard library), so that it can be copied into other work. Similarities are
"larger is more alike"; equal similarities keep the order of the gallery, so that results are deterministic.

- `sysu_metrics`, `regdb_metrics`: Rank-k, mAP and mINP of a similarity matrix.
- `chance`: what uniformly random rankings score on the same query and gallery, computed exactly.
- `sysu_query`, `sysu_gallery`: the images of the cross-modality test of SYSU-MM01 and its numbered gallery draws.
"""
import operator
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Image = tuple[str, int, int]                     # path, identity, camera

RANKS = 20                                       # length of the CMC curve
INFRARED_CAMERAS = (3, 6)
VISIBLE_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
SAME_PLACE = (3, 2)                              # infrared camera 3 and visible camera 2 look at the same room
# Gauss-Legendre nodes and weights: exact up to 512 gallery images, to 1e-11 for 3,000, to 1e-5 for 20,000
NODES = np.polynomial.legendre.leggauss(256)
CHUNK = 1 << 20                                  # similarities ranked at a time: about 100 MB of working memory


@dataclass(frozen=True, eq=False)
class Metrics:
    """Result of a test, all values fractions in 0…1.

    cmc: float64 [20], Rank-1 … Rank-20. mAP: mean average precision. mINP: mean inverse negative penalty.
    """
    cmc: np.ndarray
    mAP: float
    mINP: float

    def rank(self, k: int) -> float:
        """Rank-k for k in 1…20; ValueError outside."""
        if not 1 <= k <= RANKS:
            raise ValueError(f"Rank-{k} is not on the curve: k must be in 1…{RANKS}")
        return float(self.cmc[k - 1])


# -- metrics -----------------------------------------------------------------------------------------------------------

def sysu_metrics(similarity: Any, query_ids: Any, gallery_ids: Any, query_cams: Any, gallery_cams: Any) -> Metrics:
    """Metrics of the SYSU-MM01 test (protocols page, "SYSU-MM01").

    Gallery images of camera 2 are removed for queries of camera 3. Rank-k is counted on identities: the ranked list
    is reduced to each identity's first appearance. mAP and mINP are taken over all remaining images.
    A query without a hit among its remaining images is left out of all three means.

    Args:
        similarity: real [Q, G], NumPy or torch, larger = more alike; a torch tensor is ranked on its own device.
        query_ids, query_cams: integers [Q], any integer type, NumPy, torch or list.
        gallery_ids, gallery_cams: integers [G].
    Raises:
        ValueError: shapes do not fit, ids are not integers, a similarity is NaN, or no query has a hit.
    """
    return _metrics(similarity, query_ids, gallery_ids, query_cams, gallery_cams, on_identities=True)


def regdb_metrics(similarity: Any, query_ids: Any, gallery_ids: Any) -> Metrics:
    """Metrics of the RegDB test (protocols page, "RegDB"): no image is removed, Rank-k asks whether one of the first
    k *images* is a hit. Otherwise, arguments and errors included, like `sysu_metrics`."""
    return _metrics(similarity, query_ids, gallery_ids, _no_camera(query_ids), _no_camera(gallery_ids),
                    on_identities=False)


def _metrics(similarity: Any, query_ids: Any, gallery_ids: Any, query_cams: Any, gallery_cams: Any,
             on_identities: bool) -> Metrics:
    if not isinstance(similarity, Tensor):
        similarity = np.asarray(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity must be [Q, G], but has shape {tuple(similarity.shape)}")
    device = similarity.device if isinstance(similarity, Tensor) else torch.device("cpu")
    q, g = similarity.shape
    query_ids, query_barred = _ids_and_barred("query", query_ids, query_cams, q, device)
    gallery_ids, gallery_barred = _ids_and_barred("gallery", gallery_ids, gallery_cams, g, device)
    if q == 0 or g == 0:
        raise ValueError(f"nothing to evaluate: {q} query and {g} gallery images")

    groups = torch.unique(gallery_ids, return_inverse=True)[1] if on_identities else None
    step = max(1, CHUNK // g)
    parts = []
    for i in range(0, q, step):
        rows = similarity[i:i + step]
        rows = rows.detach() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, order="C"))
        if rows.isnan().any():
            raise ValueError(f"similarity holds NaN in rows {i}…{i + len(rows) - 1}: check the embeddings")
        removed = query_barred[i:i + step, None] & gallery_barred
        parts.append(_rank(rows, query_ids[i:i + step, None] == gallery_ids, ~removed, groups))
    hits, first, ap, inp = (torch.cat(x).cpu().numpy() for x in zip(*parts, strict=True))
    counted = hits > 0
    if not counted.any():
        raise ValueError(f"none of the {q} queries has an image of its identity among the {g} gallery images "
                         "(after removal of the same place): are query and gallery of the same test identities?")
    cmc = (first[counted, None] <= np.arange(1, RANKS + 1)).mean(0)     # a found query stays found: no end to run off
    return Metrics(cmc, float(ap[counted].mean()), float(inp[counted].mean()))


def _rank(similarity: Tensor, match: Tensor, valid: Tensor, groups: Tensor | None) -> tuple[Tensor, ...]:
    """Per query: number of hits, rank of the first one (on identities where their numbers `groups` [G] are given),
    average precision and inverse negative penalty; all [Q], meaningless in queries without a hit.

    similarity, match (same identity) and valid (not removed): [Q, G].
    """
    g = similarity.shape[1]
    order = similarity.argsort(dim=1, descending=True, stable=True)     # [Q, G] place in the list -> gallery image
    valid = valid.gather(1, order)
    match = match.gather(1, order) & valid
    rank = valid.cumsum(1)                                              # of every place, removed images not counted
    found = match.cumsum(1)
    hits = found[:, -1]
    ap = (found.double() / rank.clamp(min=1) * match).sum(1) / hits
    inp = hits.double() / (rank * match).amax(1)

    place = torch.arange(g, device=order.device).expand_as(order)
    first = place.masked_fill(~match, g).amin(1, keepdim=True)          # place of the first hit
    if groups is None:
        first_rank = rank.gather(1, first.clamp(max=g - 1))[:, 0]
    else:
        appears = torch.full((len(order), int(groups.max()) + 1), g, device=order.device)
        appears.scatter_reduce_(1, groups[order], place.masked_fill(~valid, g), "amin")
        first_rank = (appears <= first).sum(1)                          # identities seen by then, its own included
    return hits, first_rank, ap, inp


def _integers(name: str, values: Any, device: torch.device) -> Tensor:
    """int64 [n] on the device, from any one-dimensional integers."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be one-dimensional integers, but is {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64)).to(device)


def _ids_and_barred(side: str, ids: Any, cams: Any, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Identities, int64 [n], and whether the camera is this side's of SAME_PLACE, bool [n]."""
    ids, cams = _integers(f"{side}_ids", ids, device), _integers(f"{side}_cams", cams, device)
    if len(ids) != n or len(cams) != n:
        raise ValueError(f"{n} {side} images, but {len(ids)} identities and {len(cams)} cameras for them")
    return ids, cams == SAME_PLACE[side == "gallery"]


def _no_camera(ids: Any) -> np.ndarray:
    """Cameras of which none is in SAME_PLACE."""
    return np.zeros(len(ids), dtype=np.int64)


# -- chance level ------------------------------------------------------------------------------------------------------

def chance(query_ids: Any, gallery_ids: Any, query_cams: Any = None, gallery_cams: Any = None) -> Metrics:
    """Expected metrics of uniformly random rankings: `sysu_metrics` if cameras are given, else `regdb_metrics`.

    Exact but for rounding, no simulation. Arguments and errors as there.
    """
    if (query_cams is None) != (gallery_cams is None):
        raise ValueError("give the cameras of both query and gallery (SYSU-MM01), or of neither (RegDB)")
    on_identities, cpu = query_cams is not None, torch.device("cpu")
    sides = []
    for side, ids, cams in (("query", query_ids, query_cams), ("gallery", gallery_ids, gallery_cams)):
        cams = cams if on_identities else _no_camera(ids)
        sides += [x.numpy() for x in _ids_and_barred(side, ids, cams, len(ids), cpu)]
    q, q_barred, g, g_barred = sides

    # Queries of one identity that keep the same gallery have the same expectation.
    kinds, counts = np.unique(np.stack([q, q_barred]), axis=1, return_counts=True)
    rows, weights = [], []
    for (identity, bars), count in zip(kinds.T, counts, strict=True):
        rest = g[~g_barred] if bars else g
        hits = int((rest == identity).sum())
        if hits:
            sizes = np.unique(rest[rest != identity], return_counts=True)[1]
            cmc = _chance_cmc_identities(hits, sizes) if on_identities else _chance_cmc_images(hits, len(rest))
            rows.append([*cmc, *_chance_ap_inp(hits, len(rest))])
            weights.append(count)
    if not rows:
        raise ValueError(f"none of the {len(q)} queries has an image of its identity among the {len(g)} gallery images")
    mean = np.average(rows, axis=0, weights=weights)
    return Metrics(mean[:RANKS], float(mean[-2]), float(mean[-1]))


def _chance_ap_inp(m: int, n: int) -> tuple[float, float]:
    """Expected AP and INP of m hits in random order among n images.

    A hit at rank k has (k − 1)(m − 1)/(n − 1) hits before it on average, and every rank is equally likely. The last
    hit is at rank l with probability C(l − 1, m − 1) / C(n, m).
    """
    k = np.arange(1, n + 1)
    before = (k - 1) * (m - 1) / max(n - 1, 1)
    ap = ((1 + before) / k).mean()
    # P(last = n) = m/n, and P(last = l) / P(last = l + 1) = (l − m + 1) / l: going down from n there is no overflow
    down = np.arange(n - 1, m - 1, -1)
    last = m / n * np.concatenate([[1.0], np.cumprod((down - m + 1) / down)])
    return float(ap), float((last * m / np.arange(n, m - 1, -1)).sum())


def _chance_cmc_images(m: int, n: int) -> np.ndarray:
    """P(a hit among the first k images), k = 1…20: each further image misses with its share of misses in the rest."""
    drawn = np.arange(RANKS)
    return 1 - np.cumprod(np.clip(n - m - drawn, 0, None) / np.clip(n - drawn, 1, None))


def _chance_cmc_identities(m: int, others: np.ndarray) -> np.ndarray:
    """P(own identity among the first k identities), k = 1…20; m own images, others [I]: images of the other ones.

    A random order is that of independent uniform numbers, largest first. An identity of s images has not appeared
    above level u with probability u^s, and ours first appears at u with density m·u^(m − 1). Integrated over u is
    the probability that fewer than k others have appeared: a polynomial in u, so Gauss-Legendre nodes give it exactly.
    """
    node, weight = (NODES[0] + 1) / 2, NODES[1] / 2                     # from -1…1 to 0…1
    seen = np.zeros((RANKS, len(node)))                                 # P(exactly c others have appeared), c < 20
    seen[0] = 1.0
    for size in others:
        unseen = node ** size
        arrives = seen[:-1] * (1 - unseen)
        seen *= unseen
        seen[1:] += arrives
    return seen.cumsum(0) @ (weight * m * node ** (m - 1))


# -- test lists of SYSU-MM01 -------------------------------------------------------------------------------------------

def sysu_query(root: str | os.PathLike[str]) -> list[Image]:
    """Every infrared image (cameras 3 and 6) of the test identities, sorted by identity, camera, file name.

    root: the data set's folder with cam1 … cam6 and exp/test_id.txt. Returns (path, identity, camera), path = root
    joined with `cam<c>/<4-digit id>/<name>`. FileNotFoundError or ValueError where data are missing or malformed.
    """
    return [(path, identity, camera) for identity, camera, paths in _folders(Path(root), INFRARED_CAMERAS)
            for path in paths]


def sysu_gallery(root: str | os.PathLike[str], mode: str, trial: int, shots: int = 1) -> list[Image]:
    """The visible gallery of a trial (0…9 in published tables), in the form of `sysu_query`.

    With Python's generator seeded by the trial, in sorted order of identities and, for each, over the cameras in
    ascending order (mode "all": 1, 2, 4, 5; "indoor": 1, 2), one `choice` from the sorted file names of the folder,
    if it exists. These exact picks make results comparable with published tables.
    With shots > 1 (the multi-shot variant, usually 10), `sample` takes that many images, or all of a smaller folder.
    """
    if mode not in VISIBLE_CAMERAS:
        raise ValueError(f"mode {mode!r} is unknown: choose one of {', '.join(VISIBLE_CAMERAS)}")
    if shots < 1:
        raise ValueError(f"shots must be at least 1, but is {shots}")
    if trial < 0:                                # Python seeds with the absolute value: -3 would silently repeat 3
        raise ValueError(f"trial must be at least 0, but is {trial}")
    draw = random.Random(operator.index(trial))
    images = []
    for identity, camera, paths in _folders(Path(root), VISIBLE_CAMERAS[mode]):
        picks = [draw.choice(paths)] if shots == 1 else draw.sample(paths, min(shots, len(paths)))
        images += [(path, identity, camera) for path in picks]
    return images


def _folders(root: Path, cameras: Sequence[int]) -> list[tuple[int, int, list[str]]]:
    """Identity, camera and sorted image paths of every test folder that exists, by identity, then camera."""
    identities = _test_ids(root)
    for camera in cameras:
        if not (root / f"cam{camera}").is_dir():
            raise FileNotFoundError(f"no folder {root / f'cam{camera}'}: the copy of SYSU-MM01 is incomplete")
    folders = [(identity, camera, _images(folder)) for identity in identities for camera in cameras
               if (folder := root / f"cam{camera}" / f"{identity:04d}").exists()]
    if not folders:
        raise FileNotFoundError(f"no test identity of {root} has a folder in cameras {', '.join(map(str, cameras))}")
    return folders


def _images(folder: Path) -> list[str]:
    """Paths of the folder's images, sorted by name. Hidden files and those that file managers leave are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file where a folder of images should be")
    names = sorted(name for name in os.listdir(folder)
                   if name.lower().endswith((".jpg", ".jpeg", ".png", ".bmp")) and not name.startswith("."))
    if not names:                                # skipping it would shift every later pick of the trial, unnoticed
        raise FileNotFoundError(f"no image in {folder}: the copy of SYSU-MM01 is incomplete")
    return [str(folder / name) for name in names]


def _test_ids(root: Path) -> list[int]:
    """Sorted test identities. Digits alone are taken, so that no entry can name a path outside the root."""
    file = root / "exp" / "test_id.txt"
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: {root} should be SYSU-MM01 with exp/ and cam1 … cam6")
    text = file.read_bytes().decode("utf-8-sig", errors="replace").strip().rstrip(",")
    entries = [entry.strip(" \t") for entry in text.split(",")]
    for place, entry in enumerate(entries, 1):
        if not re.fullmatch("[0-9]{1,4}", entry):
            raise ValueError(f"{file} must be one line of comma-separated identities (0…9999), "
                             f"but entry {place} reads {entry[:60]!r}")
    identities = sorted(map(int, entries))
    if len(set(identities)) < len(identities):
        raise ValueError(f"{file} names an identity twice; it starts {text[:60]!r}")
    absent = [i for i in identities if not any((root / f"cam{c}" / f"{i:04d}").exists() for c in range(1, 7))]
    if absent:
        raise ValueError(f"{file} names {len(absent)} identities without a folder below {root}/cam1 … cam6, "
                         f"the first {absent[0]:04d}: the copy of SYSU-MM01 is incomplete")
    return identities
