"""A whole training step against one written out row by row in float64, without automatic differentiation.

The inputs have the names of the golden vectors' G11, so that the same function is checked by both.
"""

import importlib.util

import golden_adapters
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdcl.config import PRESETS

MODALITIES, LEVELS = ("visible", "infrared"), ("deep", "shallow")


def unit(x):
    return x / np.linalg.norm(x)


def move(memory, rows, x, momentum):
    for row, value in zip(rows, x, strict=True):
        memory[row] = unit(momentum * memory[row] + (1 - momentum) * value)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def through_normalisation(gradient, x):
    """From the gradient with respect to x/‖x‖ to that with respect to x."""
    q = unit(x)
    return (gradient - q * (q @ gradient)) / np.linalg.norm(x)


class NaiveStep:
    """Sections 4 and 5 of the method page as they are written there."""

    def __init__(self, inputs, stage, at):
        self.n = {k: v.double().numpy().copy() if v.is_floating_point() else v.numpy() for k, v in inputs.items()}
        self.stage, self.at, self.loss = stage, at, 0.0
        self.gradient = {(m, level): np.zeros_like(self.x(m, level)) for m in MODALITIES for level in LEVELS}

    def x(self, modality, level):
        return self.n[f"x_{modality}_{level}"]

    def centers(self, modality, level):
        return self.n[f"centers_{modality if self.stage == 1 else 'shared'}_{level}"]

    def instances(self, modality, level):
        return self.n[f"instances_{modality}_{level}"]

    def run(self):
        # Forward: everything that later effects must not touch.
        cluster = [
            (m, level, self.cluster_forward(m, level)) for level in ("shallow", "deep") for m in ("infrared", "visible")
        ]
        pairs = [
            ("visible", "visible", self.at.homogeneous_weight),
            ("infrared", "infrared", self.at.homogeneous_weight),
            ("visible", "infrared", self.at.visible_to_infrared_weight),
            ("infrared", "visible", self.at.infrared_to_visible_weight),
        ]
        neighbor = [
            (a, t, level, self.neighbor_forward(a, t, level, weight * share))
            for a, t, weight in pairs
            if weight
            for level, share in (("deep", 1.0), ("shallow", 0.5))
        ]
        # Instance memories move before the backward pass, view 1 before view 2.
        for m in MODALITIES:
            for level in LEVELS:
                move(self.instances(m, level), self.n[f"{m}_rows"], self.x(m, level), 0.9)
        # Backward: neighbour losses with the moved memories, cluster losses last formed first, each moving its own.
        for a, t, level, by_logit in neighbor:
            self.gradient[a, level] += self.to_x(by_logit @ self.instances(t, level), a, level)
        for m, level, by_logit in reversed(cluster):
            memory = self.centers(m, level)
            self.gradient[m, level] += self.to_x(by_logit @ memory, m, level)
            move(memory, self.n[f"y_{m}"], [unit(x) for x in self.x(m, level)], self.at.cluster_momentum)
        return self

    def to_x(self, by_q, modality, level):
        return np.stack([through_normalisation(g, x) for g, x in zip(by_q, self.x(modality, level), strict=True)])

    def cluster_forward(self, modality, level):
        """Adds the loss; returns its gradient with respect to q·M."""
        x, memory, by_logit = self.x(modality, level), self.centers(modality, level), []
        for row, target in zip(x, self.n[f"y_{modality}"], strict=True):
            p = softmax(memory @ unit(row) / 0.05)
            self.loss -= np.log(p[target]) / len(x)
            p[target] -= 1
            by_logit.append(p / (len(x) * 0.05))
        return np.stack(by_logit)

    def neighbor_forward(self, anchor, target, level, weight):
        x, memory, by_logit = self.x(anchor, level), self.instances(target, level), []
        for i, row in zip(self.n[f"{anchor}_rows"], x, strict=True):
            mask = np.ones(len(memory), bool)
            for each in LEVELS:
                similarity = self.instances(target, each) @ self.instances(anchor, each)[i]
                mask &= similarity > 0.9 * similarity.max()
            p = softmax(memory @ unit(row) / 0.05)
            share = weight / len(x) / (mask.sum() + 1)
            gradient = np.zeros(len(memory))
            for j in np.flatnonzero(mask):
                self.loss -= share * np.log(max(p[j], 1e-8))
                if p[j] >= 1e-8:
                    gradient += share * p / 0.05
                    gradient[j] -= share / 0.05
            by_logit.append(gradient)
        return np.stack(by_logit)


def own_inputs(stage):
    """Embeddings around a common direction an identity, labels with outliers, a batch with repeated rows."""
    centres = {level: torch.randn(6, 24) for level in LEVELS}
    ids = {"visible": torch.arange(50) % 6, "infrared": torch.arange(30) % 6}
    labels = {m: torch.where(torch.arange(len(y)) % 7 == 0, -1, (y * 5 + 1) % 6) for m, y in ids.items()}
    rows = {"visible": torch.arange(1, 13).repeat(2), "infrared": torch.tensor([1, 2, 3, 1, 4, 5, 6, 8, 2, 9, 10, 11])}
    inputs = {f"{m}_rows": r for m, r in rows.items()} | {f"y_{m}": labels[m][r].clamp_min(0) for m, r in rows.items()}
    for m in MODALITIES:
        for level in LEVELS:
            population = F.normalize(centres[level][ids[m]] + 0.4 * torch.randn(len(ids[m]), 24), dim=1)
            inputs[f"instances_{m}_{level}"] = population
            inputs[f"x_{m}_{level}"] = (population[rows[m]] + 0.1 * torch.randn(len(rows[m]), 24)) * 24**0.5
            if stage == 1 or m == "visible":
                inputs[f"centers_{m if stage == 1 else 'shared'}_{level}"] = F.normalize(torch.randn(6, 24), dim=1)
    return inputs


def golden_inputs(golden, stage, seed):
    spec = importlib.util.spec_from_file_location("recipe", golden / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.g11(
        {
            "seed": seed,
            "stage": stage,
            "dim": 32,
            "ids": 12,
            "visible_sizes": [4, 9],
            "infrared_sizes": [3, 7],
            "strangers": 3,
            "spread": 0.8,
            "shift": 0.5,
            "outliers": 0.1,
            "groups": 4,
            "instances": 4,
            "jitter": 1.5,
        }
    )


def check(inputs, stage, epoch, dataset="sysu"):
    config = PRESETS[dataset]
    at = config.at(epoch)
    assert at.stage == stage
    got = golden_adapters.training_step(inputs, {"stage": stage, "epoch": epoch, "dataset": dataset})
    naive = NaiveStep(inputs, stage, at).run()
    want = {"loss": np.array(naive.loss)}
    want |= {f"grad/{m}_{level}": g for (m, level), g in naive.gradient.items()}
    want |= {k: v for k, v in naive.n.items() if k.startswith(("centers_", "instances_"))}
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = np.abs(value).max()
        assert np.abs(got[name].detach().double().numpy() - value).max() <= 1e-5 * scale, name
    return got


CASES = [
    ("sysu", 1, 0),
    ("sysu", 1, 10),
    ("sysu", 1, 11),
    ("sysu", 2, 30),
    ("sysu", 2, 31),
    ("regdb", 1, 0),
    ("regdb", 2, 21),
]


@pytest.mark.parametrize("dataset, stage, epoch", CASES)
def test_step_equals_the_one_written_out(dataset, stage, epoch):
    inputs = own_inputs(stage)
    got = check(inputs, stage, epoch, dataset)
    for name in inputs:
        if name.startswith(("centers_", "instances_")):
            assert float((got[name] - inputs[name]).abs().max()) > 1e-2, f"{name} has not moved"


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dataset, stage, epoch", CASES)
def test_step_on_the_golden_recipe(golden, dataset, stage, epoch, seed):
    check(golden_inputs(golden, stage, seed), stage, epoch, dataset)


SETTINGS = {
    ("sysu", 0): {"stage": 1, "eps": 0.6, "k1_visible": 30, "lr": 3.5e-4, "steps": 200, "homogeneous": 1},
    ("sysu", 30): {"stage": 2, "k1_visible": 15, "lr": 3.5e-5, "steps": 100, "w_hetero": 0.1, "visible_to_infrared": 1},
    ("regdb", 0): {"stage": 1, "eps": 0.3, "mu": 0.99, "steps": 50, "top_k": 10, "homogeneous": 0},
}


@pytest.mark.parametrize("dataset, epoch", SETTINGS)
def test_settings_by_name(dataset, epoch):
    got, expected = golden_adapters.settings(dataset, epoch), SETTINGS[dataset, epoch]
    assert {k: got[k] for k in expected} == pytest.approx(expected)
