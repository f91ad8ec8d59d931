"""What `check_pic.py` calls: PIC's functions under the names that its cases use, weights under the published names."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import agw

from sdcl.data.transforms import evaluation_transform, resize
from sdcl.pic import (
    Outputs,
    PICModelConfig,
    PICNetwork,
    build_network,
    make_optimizer,
    pic_losses,
    train_step,
    views,
)
from sdcl.pic.presets import PRESETS
from sdcl.pic.sampler import IdentityBatches, epoch_steps
from sdcl.pic.weights import fill_published, published_names, published_state_dict

TERMS = ("identity", "triplet", "soft_identity", "soft_triplet", "total")
IMAGES = {"sysu": (22_258, 11_909), "regdb": (2_060, 2_060)}
"""Visible and infrared training images of the full data sets."""


def evaluate(
    state: dict[str, Tensor], batches: list[Tensor], modality: str, alpha: float, moving: bool
) -> tuple[Tensor, Tensor]:
    """P1: test features of all batches, the mean branch as it stands or moved before each batch."""
    network = _network(state, alpha, batches[0]).eval()
    embedded = []
    for images in batches:
        if moving:
            network.move_mean(modality)
        embedded.append(network.embed(images, modality))
    return tuple(torch.cat([e[kind] for e in embedded]) for kind in ("pooled", "normalised"))  # type: ignore[return-value]


def step(state: dict[str, Tensor], visible: Tensor, infrared: Tensor, labels: Tensor, alpha: float) -> dict[str, Any]:
    """P2: one forward and backward pass in training mode."""
    network = _network(state, alpha, visible).train()
    outputs = network(visible, infrared)
    found = pic_losses(*outputs, labels, PRESETS["sysu"])
    found["total"].backward()
    features, logits, mean_features, mean_logits = (torch.cat(pair) for pair in zip(*outputs, strict=True))
    names = published_names(network)
    return {
        "losses": {term: found[term].detach() for term in TERMS},
        "features": features.detach(),
        "logits": logits.detach(),
        "mean_features": mean_features,
        "mean_logits": mean_logits,
        "gradients": {names[own]: p.grad for own, p in network.named_parameters()},
        "state": published_state_dict(network),
    }


def losses(
    features: Tensor, logits: Tensor, mean_features: Tensor, mean_logits: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """P3: the losses of outputs [2m, …], visible rows first."""
    visible, infrared = zip(*(x.chunk(2) for x in (features, logits, mean_features, mean_logits)), strict=True)
    return pic_losses(Outputs(*visible), Outputs(*infrared), labels.chunk(2)[0], PRESETS["sysu"])


def batches(
    visible_labels: np.ndarray, infrared_labels: np.ndarray, seed: int, epochs: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """P4: rows of the batches of each epoch."""
    config = PRESETS["sysu"]
    drawn = IdentityBatches(visible_labels, infrared_labels, config.identities, config.instances, seed)
    return [rows for _, rows in drawn.epochs(0, epochs)]


def optimizer(parameters: Iterable[nn.Parameter], dataset: str, epoch: int) -> torch.optim.Optimizer:
    """P5: the same for both data sets and all epochs."""
    return make_optimizer(parameters, PRESETS[dataset])


def test_view(image: Image.Image) -> Tensor:
    """P6: the view of a test image."""
    return evaluation_transform(*PRESETS["sysu"].image_size, views.INTERPOLATION)(image)


def training_view(image: Image.Image) -> Tensor:
    """P6: a random view of a training image."""
    config = PRESETS["sysu"]
    pixels = resize(*config.image_size, views.INTERPOLATION)(image)
    return views.training_view(*config.image_size, config.crop_padding)(np.array(pixels))


def start(path: Path, classes: int, seed: int) -> dict[str, Tensor]:
    """P7: a fresh network from ImageNet weights."""
    torch.manual_seed(seed)
    config = replace(PRESETS["sysu"], model=PICModelConfig(pretrained=str(path)))
    return published_state_dict(build_network(config, classes))


def settings(dataset: str, epoch: int) -> dict[str, Any]:
    """P8: every setting of an epoch (from 0)."""
    config = PRESETS[dataset]
    return {
        "epochs": config.epochs,
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "beta1": config.adam_betas[0],
        "beta2": config.adam_betas[1],
        "eps": config.adam_eps,
        "steps": epoch_steps(IMAGES[dataset], config.batch_size),
        "identities": config.identities,
        "instances": config.instances,
        "height": config.model.image_height,
        "width": config.model.image_width,
        "crop_padding": config.crop_padding,
        "margin": config.margin,
        "weight_original": config.conventional_weight,
        "weight_soft_identity": config.soft_identity_weight,
        "weight_soft_triplet": config.soft_triplet_weight,
        "mean_alpha": config.mean_momentum,
        "test_after": int(config.test_follows(epoch)),
        "test_batch": config.test_batch,
        "seed": config.seed,
    }


def train(
    state: dict[str, Tensor], batches: list[tuple[Tensor, Tensor, Tensor]], dataset: str, epoch: int
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """P9: some steps with a fresh optimiser."""
    config = PRESETS[dataset]
    network = _network(state, config.mean_momentum, batches[0][0]).train()
    adam = make_optimizer(network.parameters(), config)
    return [train_step(network, adam, *batch, config) for batch in batches], published_state_dict(network)


def agw_weighted_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """A1."""
    return agw.weighted_triplet(features, labels)


@torch.no_grad()
def agw_evaluate(state: dict[str, Tensor], images: Tensor, modality: str) -> tuple[Tensor, Tensor]:
    """A2: test features of images of one modality."""
    network = agw.network_of(state, images).eval()
    pooled = network.pooled({modality: images})
    return F.normalize(pooled), F.normalize(network.bottleneck(pooled))


def agw_forward(
    state: dict[str, Tensor], visible: Tensor, infrared: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A2: a forward pass in training mode, and the state that it leaves."""
    network = agw.network_of(state, visible).train()
    features = network.pooled({"visible": visible, "infrared": infrared})
    logits = network.classifier(network.bottleneck(features))
    names = network.published_names()
    return features, logits, {names[own]: t for own, t in network.state_dict().items()}


def agw_settings(epoch: int) -> dict[str, float]:
    """A3."""
    return agw.learning_rates(epoch)


def _network(state: dict[str, Tensor], momentum: float, like: Tensor) -> PICNetwork:
    """A network with these weights on the device and in the dtype of the images."""
    network = PICNetwork(replace(PRESETS["sysu"], mean_momentum=momentum), len(state["classifier.weight"]))
    fill_published(network, state, "the given state")
    return network.to(like)

