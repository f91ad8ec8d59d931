"""AML's cases of losses, memories, pseudo-labels, views and metrics; `tests/aml_adapters.py` has the project's
functions under the vectors' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verification.vectors import Case, Variant, leaf

__all__ = ["CASES"]

aml: Any = import_module("tests.aml_adapters")

NETWORKS = ("first", "second")
FLOAT32 = 1e-4
"""Sums over rows and classes in another order."""
GRADIENT = 1e-3
"""Their gradients, which are differences of such sums."""


def single_losses(case: Case) -> None:
    """A3: each loss by itself, and its gradient."""
    for v in case.variants():
        q = v.given()
        y, coefficients = q["targets"], q["coefficients"]
        x, weight = leaf(q["first_visible"]), leaf(q["first_classifier"])
        logits = aml.circle_logits(x, weight, y)
        v.close("circle", logits, FLOAT32)
        (logits * coefficients).sum().backward()
        v.close("circle_grad_x", x.grad, GRADIENT)
        v.close("circle_grad_w", weight.grad, GRADIENT)
        circle = torch.from_numpy(v.wanted("circle")).to(case.device)
        other = aml.circle_logits(q["second_transformed"], q["second_classifier"], y) * 0.2
        z, a, b, c, d = leaf(circle), leaf(other), leaf(circle * 0.2), leaf(other), leaf(q["second_transformed"])
        e, f, g = leaf(q["first_visible"]), leaf(q["first_visible"]), leaf(q["second_transformed"])
        for name, loss, leaves in (
            ("ce", aml.smoothed_cross_entropy(z, y), {"ce_grad": z}),
            ("triplet", aml.hard_triplet(e, y), {"triplet_grad": e}),
            ("kl1", aml.stage1_divergence(a, circle * 0.2), {"kl1_grad": a}),
            ("sim1", aml.stage1_similarity(d, q["first_visible"]), {"sim1_grad": d}),
            ("kl2", aml.stage2_divergence(b, c), {"kl2_grad_a": b, "kl2_grad_b": c}),
            ("sim2", aml.stage2_distance(f, g), {"sim2_grad_a": f, "sim2_grad_b": g}),
        ):
            v.close(name, loss.reshape(()), FLOAT32)
            loss.backward()
            for gradient, x in leaves.items():
                v.close(gradient, x.grad, GRADIENT)


def stage1(case: Case) -> None:
    """A4: all losses of a stage-1 step, with and without the divergence."""
    names = ("first_visible", "first_transformed", "second_transformed", "first_classifier", "second_classifier")
    for v in case.variants():
        q = v.given()
        leaves = {name: leaf(q[name]) for name in names}
        total, terms = aml.stage1_losses(*leaves.values(), q["targets"], v.settings["kl_weight"])
        total.backward()
        v.close("total", total.reshape(()), FLOAT32)
        compare_terms(v, terms)
        for name, x in leaves.items():
            v.close(f"grad/{name}", x.grad, GRADIENT)


def stage2(case: Case) -> None:
    """A5: all losses of a stage-2 step, and the memories after it."""
    for v in case.variants():
        q = v.given()
        x = [leaf(q[name]) for name in NETWORKS]
        total, terms, *memories = aml.stage2_step(*x, *(q[f"{n}_centers"] for n in NETWORKS), q["targets"])
        v.close("total", total.reshape(()), FLOAT32)
        compare_terms(v, terms)
        for name, features, memory in zip(NETWORKS, x, memories, strict=True):
            v.close(f"grad/{name}", features.grad, GRADIENT)
            v.close(f"memory/{name}", memory, FLOAT32)


def metrics(case: Case) -> None:
    """A8: CMC and mAP of its two protocols."""
    for v in case.variants():
        rows = v.given("query gallery query_ids gallery_ids")
        sysu = v.settings["protocol"] == "sysu"
        cmc, mean = aml.sysu_test(*rows, *v.given("query_cams gallery_cams")) if sysu else aml.two_set_test(*rows)
        v.close("cmc", cmc, 1e-6)
        v.close("mAP", mean, 1e-6)


def pseudo_labels(case: Case) -> None:
    """A9: DBSCAN, k-means, and one numbering for both modalities."""
    for v in case.variants():
        q, p = v.given(), v.settings
        if p["what"] == "kmeans":
            v.equal("labels", aml.kmeans(q["features"], q["initial"]))
            continue
        features, labels = [q[m] for m in ("visible", "infrared")], [q["visible_labels"], q["infrared_labels"]]
        if p["what"] == "dbscan":
            labels = [aml.dbscan(x, p["eps"], p["k1"], p["k2"]) for x in features]
            for m, x in zip(("visible", "infrared"), features, strict=True):
                distance = aml.jaccard(x, p["k1"], p["k2"]).tocoo()
                dense = np.ones(distance.shape)
                dense[distance.row, distance.col] = distance.data
                v.close(f"distance/{m}", dense[tuple(q[f"sample_{m}"].cpu().numpy().T)])
        unified = [torch.as_tensor(x) for x in aml.unify(*features, *labels)]
        for m, x in zip(("visible", "infrared"), unified, strict=True):
            v.equal(m, x)
        if p["what"] == "unify":
            for name, x in zip(NETWORKS, aml.centers(torch.cat(features), torch.cat(unified)), strict=True):
                v.close(f"centers_{name}", x, FLOAT32)


def views(case: Case) -> None:
    """A10: what the networks see of a batch's pixels."""
    for v in case.variants():
        q = v.given()
        generated = q["generated"].float() if "generated" in q else None
        visible, transformed = aml.views(q["pixels"].float(), generated, q["channels"])
        v.close("visible", visible)
        v.close("transformed", transformed)


def compare_terms(v: Variant, terms: Mapping[str, Tensor]) -> None:
    """Terms of a loss by name; one that the vectors have not must be 0."""
    for name, value in terms.items():
        v.close(f"term/{name}", value.reshape(()), FLOAT32, None if v.holds(f"term/{name}") else 0.0)


CASES: dict[str, Callable[[Case], None]] = {
    "A3": single_losses,
    "A4": stage1,
    "A5": stage2,
    "A8": metrics,
    "A9": pseudo_labels,
    "A10": views,
}
