"""PIC's cases of losses and optimiser; `tests/pic_adapters.py` has the project's functions under the vectors' names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from verification.vectors import Case, leaf

__all__ = ["CASES"]

pic: Any = import_module("tests.pic_adapters")

TERMS = ("identity", "triplet", "soft_identity", "soft_triplet", "total")


def losses(case: Case) -> None:
    """P3: each loss and the sum, with gradients, in float64 and float32; the mean networks' outputs get none."""
    for v in case.variants():
        q = v.given()
        for dtype, value, gradient in ((torch.float64, 1e-6, 5e-6), (torch.float32, 2e-5, 1e-3)):
            for term in TERMS:
                names = ("features", "logits", "mean_features", "mean_logits")
                x = {name: leaf(q[name].to(dtype)) for name in names}
                loss = pic.losses(*x.values(), q["labels"])[term]
                loss.backward()
                v.close(term, loss.reshape(()), value)
                for name in ("features", "logits"):
                    if v.holds(f"{term}/{name}"):
                        grad = x[name].grad
                        v.close(f"{term}/{name}", torch.zeros_like(x[name]) if grad is None else grad, gradient)
                of_mean = [x[name].grad for name in ("mean_features", "mean_logits")]
                untouched = all(grad is None or not grad.any() for grad in of_mean)
                v.check(untouched, f"{term} has a gradient with respect to the mean networks' outputs")


def optimizer(case: Case) -> None:
    """P5: how parameters move on given gradients; moves are small beside the parameters, and float32 rounds these."""
    for v in case.variants():
        q, steps = v.given(), v.settings["steps"]
        count = len([name for name in q if name.startswith("w")])
        parameters = [torch.nn.Parameter(q[f"w{i}"].clone()) for i in range(count)]
        made = pic.optimizer(parameters, "sysu", 0)
        for step in range(steps):
            for i, parameter in enumerate(parameters):
                parameter.grad = q[f"g{i}.{step}"].clone()
            made.step()
        for i, parameter in enumerate(parameters):
            before = q[f"w{i}"].cpu().numpy().astype("float64")
            v.close(f"w{i}", parameter.detach().cpu().numpy() - before, 2e-3, v.wanted(f"w{i}") - before)


CASES: dict[str, Callable[[Case], None]] = {"P3": losses, "P5": optimizer}
