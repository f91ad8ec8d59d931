"""CCLNet's cases of memories, losses and pseudo-labels; `tests/cclnet_adapters.py` has the project's functions under
the vectors' names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from verification.vectors import Case, Variant, leaf

__all__ = ["CASES"]

cclnet: Any = import_module("tests.cclnet_adapters")

MODALITIES = ("visible", "infrared")
NEAR_ZERO = 1e-4
"""For losses near 1e-3 and what follows from them: float32's rounding of cosines times 20 is that large a share."""


def memories(case: Case) -> None:
    """C5: losses, gradients, moves, and the mixing of matched centres, step after step."""
    for v in case.variants():
        q = v.given()
        memory = memory_of(v, q)
        for step in range(v.settings["steps"]):
            x = [leaf(q[f"x{step}_{m}"]) for m in MODALITIES]
            losses = cclnet.memory_losses(memory, *x, *(q[f"y{step}_{m}"] for m in MODALITIES))
            (losses[0] + losses[1]).backward()
            for m, loss, features, rows in zip(MODALITIES, losses, x, cclnet.memory_rows(memory), strict=True):
                v.close(f"loss{step}_{m}", loss.reshape(()), NEAR_ZERO)
                v.close(f"grad{step}_{m}", features.grad, NEAR_ZERO)
                v.close(f"memory{step}_{m}", rows)


def prompts(case: Case) -> None:
    """C6: the loss of prompt learning, both directions, and the gradient of the texts."""
    for v in case.variants():
        images, texts, labels = v.given("images texts labels")
        texts = leaf(texts)
        loss = cclnet.prompt_loss(images, texts, labels)
        loss.backward()
        v.close("loss", loss.reshape(()))
        v.close("grad", texts.grad)


def texts(case: Case) -> None:
    """C7: images against the texts of all clusters; images without a label are left out, and nothing may be left."""
    for v in case.variants():
        images, of_clusters, labels = v.given("images texts labels")
        images = leaf(images)
        loss = cclnet.text_loss(images, of_clusters, labels)
        if loss.requires_grad:
            loss.backward()
        v.close("loss", loss.reshape(()))
        v.close("grad", torch.zeros_like(images) if images.grad is None else images.grad)


def step(case: Case) -> None:
    """C8: a whole step of the second training, from the network's outputs on."""
    for v in case.variants():
        q = v.given()
        memory = memory_of(v, q)
        leaves = {f"{kind}_{m}": leaf(q[f"{kind}_{m}"]) for kind in ("features", "projections") for m in MODALITIES}
        loss = cclnet.step_loss(memory, {**q, **leaves})
        loss.backward()
        v.close("loss", loss.reshape(()), NEAR_ZERO)
        for name, x in leaves.items():
            v.close(f"grad_{name}", x.grad, NEAR_ZERO)
        for m, rows in zip(MODALITIES, cclnet.memory_rows(memory), strict=True):
            v.close(f"memory_{m}", rows)


def pseudo_labels(case: Case) -> None:
    """C9: labels of a modality, and the centres that its memory starts from."""
    for v in case.variants():
        p = v.settings
        labels, centers = cclnet.pseudo_labels(*v.given("features"), p["eps"], 4, p["k1"], p["k2"])
        v.equal("labels", labels)
        v.close("centers", centers)


def memory_of(v: Variant, q: dict[str, Any]) -> Any:
    """Both modalities' memories, as the variant has them."""
    centers = [q[f"centers_{m}"] for m in MODALITIES]
    memory = cclnet.memory(*centers, *(v.settings[name] for name in ("momentum", "temperature", "scale")))
    return memory.to(v.case.device)


CASES: dict[str, Callable[[Case], None]] = {
    "C5": memories,
    "C6": prompts,
    "C7": texts,
    "C8": step,
    "C9": pseudo_labels,
}
