"""What `check_aml.py` calls: AML's golden cases by the project's names. Weights come as {name: tensor}."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# isort: split
from sdcl.aml import losses
from sdcl.aml.labels import centers, kmeans, unify
from sdcl.aml.losses import circle_logits, hard_triplet, smoothed_cross_entropy
from sdcl.aml.network import Classifiers, Network
from sdcl.aml.presets import PRESETS
from sdcl.aml.schedule import make_optimizer
from sdcl.aml.settings import Phase
from sdcl.aml.views import one_channel, views
from sdcl.clustering import cluster, jaccard_distance
from sdcl.evaluation import identity_metrics, sysu_metrics, sysu_official_gallery
from sdcl.memory import ClusterLogits

__all__ = ["centers", "circle_logits", "hard_triplet", "kmeans", "smoothed_cross_entropy", "unify", "views"]

Weights = dict[str, Tensor]

TERMS1 = (
    "m1_rgbloss_cls", "m1_rgbloss_triplet", "m1_transformedloss_cls", "m1_transformedloss_triplet",
    "m2_transformedloss_cls", "m2_transformedloss_triplet", "kl_loss12", "kl_loss21", "sim_loss12", "sim_loss21",
)  # fmt: skip
TERMS2 = ("m1_cls_loss", "m2_cls_loss", "kl_loss", "sim_loss")


def network(stage: int, weights: Weights) -> Network:
    net = Network()
    if stage == 1:
        net.classifier = Classifiers(net.dim, len(weights["classifier.weight"]))[0]
    state = dict(net.state_dict())
    for name, value in weights.items():
        if name in state:
            state[name] = value
        elif name != "classifier.weight":
            raise KeyError(f"the network has no tensor {name}")
    net.load_state_dict(state)
    net.stage.fill_(stage)
    return net.to(weights["conv1.weight"].device)


def test_features(
    stage: int, first: Weights, second: Weights, images: Tensor, channels: Tensor
) -> tuple[Tensor, Tensor]:
    """A1: of the image alone, without its mirror image."""
    nets = [network(stage, w).eval() for w in (first, second)]
    with torch.no_grad():
        seen = images, one_channel(images, channels)
        p1, p2 = (net.test_features(x) for net, x in zip(nets, seen, strict=True))
    return p1, p2


def train_forward(
    stage: int,
    weights: Weights,
    images: Tensor,
    targets: Tensor,
    weight_features: Tensor,
    weight_logits: Tensor | None,
    gradients: list[str],
    stats: list[str],
) -> dict[str, Any]:
    """A2."""
    net = network(stage, weights).train()
    out = net(images)
    loss, result = (out * weight_features).sum(), {"features": out}
    if stage == 1:
        result["logits"] = circle_logits(out, net.classifier.weight, targets)
        loss = loss + (result["logits"] * weight_logits).sum()
    loss.backward()
    parameters, state = dict(net.named_parameters()), net.state_dict()
    return result | {"gradients": {n: parameters[n].grad for n in gradients}, "stats": {n: state[n] for n in stats}}


stage1_divergence = losses.divergence
stage1_similarity = losses.similarity_gap
stage2_divergence = losses.mutual_divergence
stage2_distance = losses.distance_gap


def stage1_losses(*arguments: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A4: features of A, B and C, classifiers of networks 1 and 2, targets, weight of the KL terms."""
    got = losses.stage1_losses(*arguments)
    return got.total, dict(zip(TERMS1, got.terms.values(), strict=True))


def stage2_step(
    first: Tensor, second: Tensor, first_centers: Tensor, second_centers: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """A5."""
    memories = [ClusterLogits(c, 0.2, 0.05) for c in (first_centers, second_centers)]
    got = losses.stage2_losses(first, second, targets, memories)
    got.total.backward()
    terms = dict(zip(TERMS2, got.terms.values(), strict=True))
    return got.total.detach(), terms, memories[0].features, memories[1].features


def learning_rate(stage: int, iteration: int) -> float:
    """A6."""
    return PRESETS["sysu"].at("source" if stage == 1 else "target_dbscan").schedule.rate(iteration)


official_gallery = sysu_official_gallery


def sysu_test(
    query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, query_cams: Tensor, gallery_cams: Tensor
) -> tuple[np.ndarray, float]:
    """A8."""
    similarity = -torch.cdist(query.double(), gallery.double())
    got = sysu_metrics(similarity, query_ids, gallery_ids, query_cams, gallery_cams)
    return got.cmc, got.mAP


def two_set_test(
    query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor
) -> tuple[np.ndarray, float]:
    """A8."""
    got = identity_metrics(-torch.cdist(query.double(), gallery.double()), query_ids, gallery_ids)
    return got.cmc, got.mAP


def jaccard(features: Tensor, k1: int, k2: int) -> sparse.csr_array:
    """A9."""
    return jaccard_distance(features, k1, k2, unit_length=False)


def dbscan(features: Tensor, eps: float, k1: int, k2: int) -> Tensor:
    """A9."""
    return torch.as_tensor(cluster(features, eps, k1=k1, k2=k2, unit_length=False))


def step(
    stage: int,
    first: Weights,
    second: Weights,
    pixels: Tensor,
    generated: Tensor | None,
    channels: Tensor,
    targets: Tensor,
    first_centers: Tensor | None,
    second_centers: Tensor | None,
    kl_weight: float,
    learning_rate: float,
    gradients: list[str],
    after: list[str],
) -> dict[str, Any]:
    """A11: one whole optimiser step of both networks, float32."""
    nets = {"first": network(stage, first).train(), "second": network(stage, second).train()}
    optimizer = make_optimizer([p for net in nets.values() for p in net.parameters()], learning_rate)
    visible, transformed = views(pixels, generated, channels)
    result: dict[str, Any] = {}
    if stage == 1:
        out = nets["first"](visible), nets["first"](transformed), nets["second"](transformed)
        classifiers = (net.classifier.weight for net in nets.values())
        got, names = losses.stage1_losses(*out, *classifiers, targets, kl_weight), TERMS1
        got.total.backward()
    else:
        memories = [ClusterLogits(c, 0.2, 0.05) for c in (first_centers, second_centers)]
        f = nets["first"](visible), nets["second"](transformed)
        got, names = losses.stage2_losses(*f, targets, memories), TERMS2
        got.total.backward()
        result["memories"] = [m.features for m in memories]
    grads = {f"{k}/{n}": dict(net.named_parameters())[n].grad.clone() for k, net in nets.items() for n in gradients}
    optimizer.step()
    return result | {
        "total": got.total.detach(),
        "terms": dict(zip(names, got.terms.values(), strict=True)),
        "gradients": grads,
        "after": {f"{k}/{n}": net.state_dict()[n] for k, net in nets.items() for n in after},
    }


def settings(dataset: str, phase: Phase) -> dict[str, Any]:
    """A12."""
    return vars(PRESETS[dataset].at(phase))
