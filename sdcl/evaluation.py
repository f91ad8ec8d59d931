"""Retrieval metrics and test lists of SYSU-MM01, RegDB and similar sets (protocols page).

This file stands alone (NumPy, PyTorch, standard library; SciPy for the official lists), so that it can be copied into
other work. Similarities are "larger is more alike"; equal similarities keep the order of the gallery, so that results
are deterministic.

- `retrieval_metrics`: Rank-k, mAP and mINP of a similarity matrix, by any protocol. `sysu_metrics`, `regdb_metrics` and
  `identity_metrics` are the published ones; `same_place` and `same_camera` say which images a protocol removes.
- `chance`: what uniformly random rankings score on the same query and gallery, computed exactly.
- `sysu_query`, `sysu_gallery`, `sysu_official_gallery`: the images of the cross-modality test of SYSU-MM01, its
  numbered gallery draws, and those that the data set itself lists.
"""
import operator
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
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
    """Result of a test; shares are fractions in 0…1.

    cmc: float64 [20], Rank-1 … Rank-20. mAP: mean average precision. mINP: mean inverse negative penalty.
    ap: float64 [Q], each query's average precision, NaN where the query has no hit. first_hit: int64 [Q], the rank of
    its first hit, counted as Rank-k is (on identities or images), 0 where it has none. Both None where there is no
    single ranking (`chance`).
    """
    cmc: np.ndarray
    mAP: float
    mINP: float
    ap: np.ndarray | None = None
    first_hit: np.ndarray | None = None

    def rank(self, k: int) -> float:
        """Rank-k for k in 1…20; ValueError outside."""
        if not 1 <= k <= RANKS:
            raise ValueError(f"Rank-{k} is not on the curve: k must be in 1…{RANKS}")
        return float(self.cmc[k - 1])


# -- metrics -----------------------------------------------------------------------------------------------------------

def retrieval_metrics(similarity: Any, query_ids: Any, gallery_ids: Any, removed: Any = None,
                      rank_on: str = "identities") -> Metrics:
    """Metrics of any protocol: the gallery ranked for every query, without the images that are removed for it.

    Rank-k on "identities": the ranked list is reduced to each identity's first appearance, and the query's own must be
    among the first k; on "images": one of the first k images must be a hit. mAP and mINP are taken over all remaining
    images. A query without a hit among its remaining images is left out of all three means.

    Args:
        similarity: real [Q, G], NumPy or torch, larger = more alike; a torch tensor is ranked on its own device.
        query_ids: integers [Q], any integer type, NumPy, torch or list.
        gallery_ids: integers [G].
        removed: bool [Q, G], True where the gallery image does not count for the query (`same_place`, `same_camera`
            make it), NumPy or torch; None removes nothing.
        rank_on: "identities" or "images".
    Raises:
        ValueError: shapes do not fit, ids are not integers, a similarity is NaN, or no query has a hit.
    """
    if not isinstance(similarity, Tensor):
        similarity = np.asarray(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity must be [Q, G], but has shape {tuple(similarity.shape)}")
    device = similarity.device if isinstance(similarity, Tensor) else torch.device("cpu")
    q, g = similarity.shape
    query_ids, gallery_ids = (_integers(f"{side}_ids", ids).to(device) for side, ids in
                              (("query", query_ids), ("gallery", gallery_ids)))
    for side, images, ids in (("query", q, query_ids), ("gallery", g, gallery_ids)):
        if len(ids) != images:
            raise ValueError(f"{images} {side} images, but {len(ids)} identities for them")
    removed = _removed(removed, q, g)
    if q == 0 or g == 0:
        raise ValueError(f"nothing to evaluate: {q} query and {g} gallery images")
    groups = torch.unique(gallery_ids, return_inverse=True)[1] if _on_identities(rank_on) else None

    # Written into, not collected: small results kept between large temporaries would hold on to a heap of gigabytes.
    per_query = torch.empty(4, q, dtype=torch.float64, device=device)
    step = max(1, CHUNK // g)
    for i in range(0, q, step):
        rows = similarity[i:i + step]
        rows = rows.detach() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, order="C"))
        if rows.isnan().any():
            raise ValueError(f"similarity holds NaN in rows {i}…{i + len(rows) - 1}: check the embeddings")
        valid = None if removed is None else ~removed[i:i + step].to(device)
        _rank(rows, query_ids[i:i + step, None] == gallery_ids, valid, groups, out=per_query[:, i:i + step])
    hits, first, ap, inp = per_query.cpu().numpy()
    counted = hits > 0
    if not counted.any():
        raise ValueError(f"none of the {q} queries has an image of its identity among the {g} gallery images "
                         "(after removal): are query and gallery of the same test identities?")
    cmc = (first[counted, None] <= np.arange(1, RANKS + 1)).mean(0)     # a found query stays found: no end to run off
    return Metrics(cmc, float(ap[counted].mean()), float(inp[counted].mean()),
                   ap=np.where(counted, ap, np.nan), first_hit=np.where(counted, first, 0).astype(np.int64))


def sysu_metrics(similarity: Any, query_ids: Any, gallery_ids: Any, query_cams: Any, gallery_cams: Any) -> Metrics:
    """Metrics of the SYSU-MM01 test (protocols page, "SYSU-MM01"): Rank-k on identities, and gallery images of camera
    2 are removed for queries of camera 3. query_cams: integers [Q]; gallery_cams: integers [G]; the other arguments and
    the errors as in `retrieval_metrics`."""
    removed = same_place(query_ids, gallery_ids, query_cams, gallery_cams)
    return retrieval_metrics(similarity, query_ids, gallery_ids, removed)


def regdb_metrics(similarity: Any, query_ids: Any, gallery_ids: Any) -> Metrics:
    """Metrics of the RegDB test (protocols page, "RegDB"): no image is removed, Rank-k asks whether one of the first
    k *images* is a hit. Arguments and errors as in `retrieval_metrics`."""
    return retrieval_metrics(similarity, query_ids, gallery_ids, rank_on="images")


def identity_metrics(similarity: Any, query_ids: Any, gallery_ids: Any) -> Metrics:
    """Metrics of a test that removes no image and counts Rank-k on identities, as AML does on RegDB and SYSU-MM02:
    Rank-1, mAP and mINP are those of `regdb_metrics`, the other ranks are higher. Arguments and errors as in
    `retrieval_metrics`."""
    return retrieval_metrics(similarity, query_ids, gallery_ids)


def same_place(query_ids: Any, gallery_ids: Any, query_cams: Any, gallery_cams: Any) -> np.ndarray:
    """What SYSU-MM01 removes, bool [Q, G]: gallery images of camera 2 for queries of camera 3, which look at one room.

    Takes the identities, which it does not need, so that all removal rules are called alike. ids and cams: integers
    [Q] and [G]; ValueError where they are not, or their numbers differ.
    """
    _, query_cams = _ids_and_cams("query", query_ids, query_cams)
    _, gallery_cams = _ids_and_cams("gallery", gallery_ids, gallery_cams)
    infrared, visible = SAME_PLACE
    return (query_cams == infrared)[:, None] & (gallery_cams == visible)


def same_camera(query_ids: Any, gallery_ids: Any, query_cams: Any, gallery_cams: Any) -> np.ndarray:
    """What LLCM removes, bool [Q, G]: gallery images of the query's own identity *and* camera number, which both
    modalities share. Arguments as in `same_place`."""
    query_ids, query_cams = _ids_and_cams("query", query_ids, query_cams)
    gallery_ids, gallery_cams = _ids_and_cams("gallery", gallery_ids, gallery_cams)
    return (query_ids[:, None] == gallery_ids) & (query_cams[:, None] == gallery_cams)


def _rank(similarity: Tensor, match: Tensor, valid: Tensor | None, groups: Tensor | None, out: Tensor) -> None:
    """Writes per query: number of hits, rank of the first one (on identities where their numbers `groups` [G] are
    given), average precision and inverse negative penalty; out [4, Q], meaningless in queries without a hit.

    similarity, match (same identity) and valid (not removed; None: all are): [Q, G].
    """
    g = similarity.shape[1]
    order = similarity.argsort(dim=1, descending=True, stable=True)     # [Q, G] place in the list -> gallery image
    place = torch.arange(g, dtype=torch.int32, device=order.device).expand_as(order)
    match = match.gather(1, order)
    if valid is None:
        rank = place + 1
    else:
        valid = valid.gather(1, order)
        match &= valid
        rank = valid.cumsum(1, dtype=torch.int32)                       # of every place, removed images not counted
    found = match.cumsum(1, dtype=torch.int32)
    hits = found[:, -1]
    ap = (found.double().div_(rank.clamp(min=1)).mul_(match)).sum(1) / hits
    inp = hits.double() / (rank * match).amax(1)

    first = place.masked_fill(~match, g).amin(1, keepdim=True)          # place of the first hit
    if groups is None:
        first_rank = rank.gather(1, first.clamp(max=g - 1).long())[:, 0]
    else:
        appears = torch.full((len(order), int(groups.max()) + 1), g, dtype=torch.int32, device=order.device)
        appears.scatter_reduce_(1, groups[order], place if valid is None else place.masked_fill(~valid, g), "amin")
        first_rank = (appears <= first).sum(1)                          # identities seen by then, its own included
    for row, values in zip(out, (hits, first_rank, ap, inp), strict=True):
        row.copy_(values)


def _on_identities(rank_on: str) -> bool:
    if rank_on not in ("identities", "images"):
        raise ValueError(f'rank_on must be "identities" or "images", not {rank_on!r}')
    return rank_on == "identities"


def _integers(name: str, values: Any) -> Tensor:
    """int64 [n] on the CPU, from any one-dimensional integers."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be one-dimensional integers, but is {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def _ids_and_cams(side: str, ids: Any, cams: Any) -> tuple[np.ndarray, np.ndarray]:
    """Identities and cameras of one side, both int64 [n]."""
    ids, cams = _integers(f"{side}_ids", ids).numpy(), _integers(f"{side}_cams", cams).numpy()
    if len(ids) != len(cams):
        raise ValueError(f"{len(ids)} {side} images, but {len(ids)} identities and {len(cams)} cameras for them")
    return ids, cams


def _removed(removed: Any, q: int, g: int) -> Tensor | None:
    """The images that do not count, as a bool tensor [q, g], without a copy."""
    if removed is None:
        return None
    removed = removed if isinstance(removed, Tensor) else torch.from_numpy(np.require(removed, requirements=["C", "W"]))
    if removed.dtype != torch.bool or removed.shape != (q, g):
        raise ValueError(f"removed must be bool [{q}, {g}], but is {removed.dtype} of shape {tuple(removed.shape)}")
    return removed


# -- chance level ------------------------------------------------------------------------------------------------------

def chance(query_ids: Any, gallery_ids: Any, query_cams: Any = None, gallery_cams: Any = None, *,
           removed: Any = None, rank_on: str | None = None) -> Metrics:
    """Expected metrics of uniformly random rankings: `sysu_metrics` if cameras are given, else `regdb_metrics`; any
    other protocol with `removed` or `rank_on`, as in `retrieval_metrics`, and no cameras.

    Exact but for rounding, no simulation. Arguments and errors as there.
    """
    if (query_cams is None) != (gallery_cams is None):
        raise ValueError("give the cameras of both query and gallery (SYSU-MM01), or of neither (RegDB)")
    if query_cams is not None:
        if removed is not None or rank_on is not None:
            raise ValueError("cameras stand for SYSU-MM01's protocol: with removed or rank_on give no cameras")
        removed, rank_on = same_place(query_ids, gallery_ids, query_cams, gallery_cams), "identities"
    on_identities = _on_identities(rank_on or ("images" if removed is None else "identities"))
    q, g = _integers("query_ids", query_ids).numpy(), _integers("gallery_ids", gallery_ids).numpy()
    removed = _removed(removed, len(q), len(g))

    # Queries of one identity that keep the same gallery have the same expectation.
    gone = [b""] * len(q) if removed is None else [row.tobytes() for row in removed.cpu().numpy()]
    rows, weights = [], []
    for (identity, flags), count in sorted(Counter(zip(q.tolist(), gone, strict=True)).items()):
        rest = g[~np.frombuffer(flags, bool)] if flags else g
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
    _check_shots(shots)
    if trial < 0:                                # Python seeds with the absolute value: -3 would silently repeat 3
        raise ValueError(f"trial must be at least 0, but is {trial}")
    draw = random.Random(operator.index(trial))
    images = []
    for identity, camera, paths in _folders(Path(root), _visible_cameras(mode)):
        picks = [draw.choice(paths)] if shots == 1 else draw.sample(paths, min(shots, len(paths)))
        images += [(path, identity, camera) for path in picks]
    return images


def sysu_official_gallery(root: str | os.PathLike[str], mode: str, trial: int, shots: int = 1) -> list[Image]:
    """The visible gallery of a trial 0…9 by the lists of the data set itself, in the form and order of `sysu_gallery`.

    `exp/rand_perm_cam.mat` holds ten random orders of every folder's sorted images; the first `shots` of the trial's
    order are in the gallery (all of a smaller folder). Same sizes and expected results as `sysu_gallery`, other images:
    say in a table which picks were used. Needs SciPy.

    Raises FileNotFoundError where the file is missing, ValueError where it cannot be read or does not fit the folders.
    """
    _check_shots(shots)
    if operator.index(trial) not in range(10):
        raise ValueError(f"the official galleries have the trials 0…9, but trial is {trial}")
    cameras = _visible_cameras(mode)
    orders = official_orders(Path(root) / "exp" / "rand_perm_cam.mat")
    images = []
    for identity, camera, paths in _folders(Path(root), cameras):
        order = orders(identity, camera, trial)
        if sorted(order) != list(range(1, len(paths) + 1)):
            raise ValueError(f"{Path(paths[0]).parent} holds {len(paths)} images, but exp/rand_perm_cam.mat orders "
                             f"{len(order)}: the copy of SYSU-MM01 is not the released one")
        images += [(paths[position - 1], identity, camera) for position in order[:shots]]
    return images


def official_orders(file: Path) -> Callable[[int, int, int], list[int]]:
    """(identity, camera, trial) -> the images of a folder in the trial's order, as positions from 1 in the sorted list;
    none where the file has no such folder."""
    from scipy.io import loadmat  # here, so that the other functions do not need SciPy

    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: the official galleries need it, it comes with SYSU-MM01; the seeded "
                                "ones (sysu_gallery) do not")
    try:
        cameras = [cell[0] for cell in loadmat(file)["rand_perm_cam"]]
        orders = [[np.asarray(cell[0], dtype=np.int64).reshape(10, -1) for cell in camera] for camera in cameras]
    except Exception as error:                   # a damaged file can raise nearly anything
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is not the list that comes with SYSU-MM01: {problem}") from error

    def order(identity: int, camera: int, trial: int) -> list[int]:
        known = 1 <= camera <= len(orders) and 1 <= identity <= len(orders[camera - 1])
        return orders[camera - 1][identity - 1][trial].tolist() if known else []

    return order


def _visible_cameras(mode: str) -> tuple[int, ...]:
    if mode not in VISIBLE_CAMERAS:
        raise ValueError(f"mode {mode!r} is unknown: choose one of {', '.join(VISIBLE_CAMERAS)}")
    return VISIBLE_CAMERAS[mode]


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise ValueError(f"shots must be at least 1, but is {shots}")


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
