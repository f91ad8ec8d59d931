"""A whole step: terms, weights, order of effects, against one written out by hand from the method page."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from sdcl.config import PRESETS
from sdcl.memory import InstanceMemory
from sdcl.models import Embeddings
from sdcl.training import PseudoLabels, build_memories, sdcl_losses

CONFIG = dataclasses.replace(PRESETS["sysu"], heterogeneous_from=0)
N, M, B, D = 30, 20, 6, 16


def population():
    visible = Embeddings(torch.randn(N, D) * 2, torch.randn(N, D) * 2)
    infrared = Embeddings(torch.randn(M, D) * 2, torch.randn(M, D) * 2)
    return visible, infrared


def labels(stage):
    own, ir = torch.arange(N) % 6 - 1, torch.arange(M) % 5 - 1
    associated = torch.arange(N) % 4 if stage == 2 else own
    return PseudoLabels(own, ir, associated, stage)


def batch():
    rows = torch.arange(1, B + 1)
    return torch.cat([rows, rows]), torch.arange(1, B + 1)


def step(epoch, config=CONFIG, stage=1):
    settings = dataclasses.replace(config.at(epoch), stage=stage)
    visible, infrared = population()
    y = labels(stage)
    memories = build_memories(visible, infrared, y, settings, config)
    rv, ri = batch()
    xv = Embeddings(*(torch.randn(2 * B, D, requires_grad=True) for _ in range(2)))
    xi = Embeddings(*(torch.randn(B, D, requires_grad=True) for _ in range(2)))
    yv, yi = y.visible[rv].clamp_min(0), y.infrared[ri].clamp_min(0)
    return sdcl_losses(xv, xi, yv, yi, rv, ri, memories, settings, config), memories, xv, xi, (yv, yi, rv, ri), settings


@pytest.mark.parametrize(
    "epoch, pair, weight", [(0, "neighbor_visible_infrared", 0.05), (1, "neighbor_infrared_visible", 0.5)]
)
def test_total_is_the_weighted_sum_of_its_terms(epoch, pair, weight):
    losses, *_ = step(epoch)
    clusters = sum(v for k, v in losses.terms.items() if k.startswith("cluster_"))
    homogeneous = losses.terms["neighbor_visible_visible"] + losses.terms["neighbor_infrared_infrared"]
    torch.testing.assert_close(losses.total.detach(), clusters + homogeneous + weight * losses.terms[pair])
    assert len(losses.terms) == 7


def test_cluster_terms_are_formed_in_the_published_order():
    losses, *_ = step(0)
    assert [k for k in losses.terms if k.startswith("cluster")] == [
        "cluster_infrared_shallow",
        "cluster_visible_shallow",
        "cluster_infrared_deep",
        "cluster_visible_deep",
    ]


def test_forming_losses_changes_no_memory():
    _, memories, *_ = step(0)
    before = {k: m.features.clone() for k, m in memories.instances.items()}
    xv, xi = (Embeddings(*(torch.randn(n, D) for _ in range(2))) for n in (2 * B, B))
    rv, ri = batch()
    sdcl_losses(xv, xi, rv % 5, ri % 4, rv, ri, memories, CONFIG.at(0), CONFIG)
    assert all(torch.equal(m.features, before[k]) for k, m in memories.instances.items())


def test_stage_2_shares_one_memory_and_visible_goes_first():
    losses, memories, xv, xi, (yv, yi, rv, ri), _ = step(0, dataclasses.replace(CONFIG, cnl=False), stage=2)
    assert memories.clusters["visible", "deep"] is memories.clusters["infrared", "deep"]
    start = memories.clusters["visible", "deep"].features.clone()
    losses.total.backward()

    def gradient(x, y, then):
        probe = x.detach().clone().requires_grad_()
        q = F.normalize(probe, dim=1)
        p = torch.softmax(q.detach() @ start.T / 0.05, dim=1)
        q.backward((p - F.one_hot(y, len(start))) / (len(y) * 0.05) @ then)
        return probe.grad

    moved = start.clone()
    for row, q in zip(yv.tolist(), F.normalize(xv.deep.detach(), dim=1), strict=True):
        m = 0.1 * moved[row] + 0.9 * q
        moved[row] = m / m.norm()
    torch.testing.assert_close(xv.deep.grad, gradient(xv.deep, yv, start))
    torch.testing.assert_close(xi.deep.grad, gradient(xi.deep, yi, moved))


def test_instances_move_view_by_view_before_backward():
    losses, memories, xv, xi, (_, _, rv, ri), _ = step(0)
    naive = InstanceMemory(memories.instances["visible", "deep"].features.clone())
    memories.update_instances(xv, xi, rv, ri)
    for row, x in zip(rv, xv.deep, strict=True):
        naive.update(x[None], row[None])
    torch.testing.assert_close(memories.instances["visible", "deep"].features, naive.features)
    losses.total.backward()
    assert torch.isfinite(xv.deep.grad).all()


def test_centers_of_stage_2_count_visible_outliers_with_an_associated_label():
    visible, infrared = population()
    y = labels(2)
    memories = build_memories(visible, infrared, y, dataclasses.replace(CONFIG.at(30), stage=2), CONFIG)
    assert bool(((y.visible_clusters < 0) & (y.visible == 2)).any())
    mean = torch.cat([visible.deep[y.visible == 2], infrared.deep[y.infrared == 2]]).mean(0)
    torch.testing.assert_close(memories.clusters["visible", "deep"].features[2], F.normalize(mean, dim=0))
    assert not ((y.visible_training >= 0) & (y.visible_clusters < 0)).any()


def test_without_the_shallow_level_only_the_deep_one_counts():
    losses, memories, xv, _, _, _ = step(0, dataclasses.replace(CONFIG, shallow=False))
    losses.total.backward()
    assert xv.shallow.grad is None and xv.deep.grad is not None
    assert sorted(memories.instances) == [("infrared", "deep"), ("visible", "deep")]
