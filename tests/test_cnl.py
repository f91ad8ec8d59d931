"""Neighbour masks and losses: against naive loops, and the live memory."""

import pytest
import torch
import torch.nn.functional as F

from sdcl import cnl
from sdcl.cnl import neighbor_loss, neighbor_mask
from sdcl.memory import InstanceMemory


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_mask_needs_both_levels():
    anchors, targets = (unit(5, 8), unit(5, 8)), (unit(20, 8), unit(20, 8))
    mask = neighbor_mask(*anchors, *targets, threshold=0.5)
    assert mask.dtype == torch.bool
    for i in range(5):
        for j in range(20):
            want = all(
                float(a[i] @ t[j]) > 0.5 * max(float(a[i] @ other) for other in t)
                for a, t in zip(anchors, targets, strict=True)
            )
            assert bool(mask[i, j]) == want
    assert mask.any() and not mask.all()


def test_mask_is_empty_where_every_target_is_opposite():
    anchor = unit(1, 8)
    assert not neighbor_mask(anchor, anchor, -anchor.repeat(3, 1), -anchor.repeat(3, 1)).any()


def test_an_anchor_among_its_own_targets_is_its_neighbor():
    memory = unit(9, 8)
    assert neighbor_mask(memory, memory, memory, memory).diagonal().all()


def test_loss_equals_the_loop():
    x, target, mask = torch.randn(4, 8) * 5, unit(11, 8), torch.rand(4, 11) < 0.3
    mask[0] = False
    total = 0.0
    for i in range(4):
        p = torch.softmax(F.normalize(x[i], dim=0) @ target.T / 0.05, dim=0)
        total += sum(-torch.log(p[j].clamp_min(1e-8)) for j in range(11) if mask[i, j]) / (int(mask[i].sum()) + 1)
    torch.testing.assert_close(neighbor_loss(x, target, mask), torch.as_tensor(total / 4))


def test_no_neighbors_no_loss():
    x = torch.randn(3, 8, requires_grad=True)
    loss = neighbor_loss(x, unit(5, 8), torch.zeros(3, 5, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0 and not x.grad.any()


def test_gradient_is_finite_for_the_farthest_neighbor():
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    neighbor_loss(x, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[False, True]])).backward()
    assert torch.isfinite(x.grad).all()


def test_backward_meets_the_memory_as_it_then_stands():
    x, mask = torch.randn(4, 8), torch.rand(4, 6) < 0.5
    memory, moving = InstanceMemory(torch.randn(6, 8)), x.clone().requires_grad_()
    before = memory.features.clone()
    loss = neighbor_loss(moving, memory.features, mask)
    memory.update(torch.randn(2, 8) * 4, torch.tensor([1, 3]))
    loss.backward()

    probe, q = x.clone().requires_grad_(), F.normalize(x, dim=1).requires_grad_()
    p = torch.softmax(q @ before.T / 0.05, dim=1)
    ((-(mask * p.clamp_min(1e-8).log()).sum(1)) / (mask.sum(1) + 1)).mean().backward()
    # dL/dsimilarity from the forward pass, times the memory after the update: solve it from the plain gradient's chain
    s = (q.detach() @ before.T / 0.05).requires_grad_()
    ((-(mask * torch.softmax(s, 1).clamp_min(1e-8).log()).sum(1)) / (mask.sum(1) + 1)).mean().backward()
    F.normalize(probe, dim=1).backward(s.grad / 0.05 @ memory.features)
    torch.testing.assert_close(moving.grad, probe.grad)
    assert not torch.allclose(memory.features, before)


@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_blocks_of_anchors_change_nothing(block, monkeypatch):
    """Mask, loss, and the gradient through a memory that moved: one anchor at a time, a few, or all at once."""
    deep, shallow, anchors = unit(37, 8), unit(37, 8), torch.arange(12)

    def results():
        mask = neighbor_mask(deep[anchors], shallow[anchors], deep, shallow, 0.3)
        memory, x = deep.clone(), (deep[anchors] * 3 + 0.1).requires_grad_()
        loss = neighbor_loss(x, memory, mask)
        memory[:9] = shallow[:9]
        (0.05 * loss).backward()
        return mask, loss.detach(), x.grad

    want = results()
    monkeypatch.setattr(cnl, "BLOCK", block)
    got = results()
    assert torch.equal(got[0], want[0]) and want[0].sum() > 20
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-6, atol=1e-8)


def test_only_the_similarities_are_kept_of_many_targets(monkeypatch):
    """And the mask. Of the formula as it is written autograd keeps several arrays of that size."""
    kept = []
    x, target, mask = torch.randn(6, 8, requires_grad=True), unit(50, 8), torch.rand(6, 50) < 0.2
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        neighbor_loss(x, target, mask)
        assert sum(kept) > 4 * 300 * 4
        kept.clear()
        monkeypatch.setattr(cnl, "BLOCK", 120)
        neighbor_loss(x, target, mask)
    assert sum(kept) < 300 * (4 + 1) + 1000


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((5, 8), (5, 8), (9, 7), (9, 8)), r"anchor_deep must be \[5, 7\] to fit the others, but is \[5, 8\]"),
        (((5, 8), (4, 8), (9, 8), (9, 8)), r"anchor_shallow must be \[5, 8\] .* \[4, 8\]"),
        (((5, 8), (5, 8), (9, 8), (7, 8)), r"target_shallow must be \[9, 8\] .* \[7, 8\]"),
        (((8,), (5, 8), (9, 8), (9, 8)), "anchor_deep"),
    ],
)
def test_masks_refuse_shapes_by_name(shapes, message):
    with pytest.raises(ValueError, match=message):
        neighbor_mask(*(torch.randn(s) for s in shapes))


@pytest.mark.parametrize(
    "x, target, mask, message",
    [
        ((5, 8), (9, 7), (5, 9), r"target must be \[9, 8\] to fit the others, but is \[9, 7\]"),
        ((5, 8), (9, 8), (9, 5), r"mask must be \[5, 9\] .* \[9, 5\]"),
        ((5, 8), (9, 8), (1, 9), r"mask must be \[5, 9\] .* \[1, 9\]"),
        ((8,), (9, 8), (8, 9), r"x must be \[8, 8\]"),
    ],
)
def test_losses_refuse_shapes_by_name(x, target, mask, message):
    with pytest.raises(ValueError, match=message):
        neighbor_loss(torch.randn(x), torch.randn(target), torch.rand(mask) < 0.5)
