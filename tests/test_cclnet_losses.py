"""CCLNet's memories and losses against loops and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from sdcl.cclnet.losses import prompt_loss, step_losses, text_loss
from sdcl.cclnet.memory import MatchedMemories, match_clusters
from sdcl.memory import ClusterMemory


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def batch(k, n, d=8):
    return torch.randn(n, d, requires_grad=True), torch.randint(k, (n,))


# -- memories -----------------------------------------------------------------------------------------------------


def test_without_mixing_two_cluster_memories():
    centers = {"visible": torch.randn(5, 8), "infrared": torch.randn(4, 8)}
    both = MatchedMemories(*centers.values(), momentum=0.1, temperature=0.05)
    alone = [ClusterMemory(c, 0.1, 0.05) for c in centers.values()]
    for _ in range(2):
        (xv, yv), (xi, yi) = batch(5, 6), batch(4, 6)
        sum(both(xv, xi, yv, yi)).backward()
        copies = [x.detach().clone().requires_grad_() for x in (xv, xi)]
        for memory, x, y in zip(alone, copies, (yv, yi), strict=True):
            memory(x, y).backward()
        assert torch.equal(xv.grad, copies[0].grad) and torch.equal(xi.grad, copies[1].grad)
        assert torch.equal(both.visible.features, alone[0].features)
        assert torch.equal(both.infrared.features, alone[1].features)
    assert both.pairs is None and not both.mixed["visible"].any()


def mixed_by_a_loop(visible, infrared, yv, yi, s):
    """Section 5, step by step, on rows that have moved."""
    visible, infrared = visible.clone(), infrared.clone()
    for a, b in zip(*(x.tolist() for x in match_clusters(visible, infrared)), strict=True):
        if a in yv:
            visible[a] = F.normalize(s * visible[a] + (1 - s) * infrared[b], dim=0)
        if b in yi:
            infrared[b] = F.normalize(s * infrared[b] + (1 - s) * visible[a], dim=0)
    return visible, infrared


@pytest.mark.parametrize("sizes", [(7, 5), (4, 9), (6, 6)])
def test_mixing_follows_the_moves_of_both(sizes):
    centers = torch.randn(sizes[0], 8), torch.randn(sizes[1], 8)
    mixing = MatchedMemories(*centers, momentum=0.1, temperature=0.05, mix_share=0.1)
    plain = MatchedMemories(*centers, momentum=0.1, temperature=0.05)
    (xv, yv), (xi, yi) = batch(sizes[0], 4), batch(sizes[1], 4)
    before = mixing.visible.features.clone()
    losses = mixing(xv, xi, yv, yi)
    assert torch.equal(mixing.visible.features, before)  # nothing moves before backward
    sum(losses).backward()

    copies = [x.detach().clone().requires_grad_() for x in (xv, xi)]
    same = plain(*copies, yv, yi)
    sum(same).backward()
    assert losses[0] == same[0] and losses[1] == same[1]
    # the gradient of a step sees neither its moves nor its mixing
    assert torch.equal(xv.grad, copies[0].grad) and torch.equal(xi.grad, copies[1].grad)
    want = mixed_by_a_loop(plain.visible.features, plain.infrared.features, yv.tolist(), yi.tolist(), 0.1)
    torch.testing.assert_close(mixing.visible.features, want[0])
    torch.testing.assert_close(mixing.infrared.features, want[1])
    moved = (mixing.visible.features != plain.visible.features).any(1)
    assert torch.equal(moved, mixing.mixed["visible"]) and moved.any()


def test_mixing_is_no_swap():
    """With both clusters in the batch both end near the infrared centre; with the infrared one alone, it moves."""
    v, i = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    both = MatchedMemories(v.clone(), i.clone(), 0.1, 0.05, 0.1)
    both.mix_(torch.tensor([0]), torch.tensor([0]))
    assert (both.visible.features @ i.t()).item() > 0.99 and (both.infrared.features @ i.t()).item() > 0.99
    alone = MatchedMemories(v.clone(), i.clone(), 0.1, 0.05, 0.1)
    alone.mix_(torch.tensor([], dtype=torch.long), torch.tensor([0]))
    assert torch.equal(alone.visible.features, v) and (alone.infrared.features @ v.t()).item() > 0.99


def test_matches_have_the_largest_sum_and_no_negative_pair():
    v = torch.eye(3)
    i = F.normalize(torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.1, 0.0]]), dim=1)
    first, second = match_clusters(v, i)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (1, 0)]  # not the best of row 0
    first, _ = match_clusters(torch.eye(2), -torch.eye(2))
    similarity = (torch.eye(2) @ -torch.eye(2))[first, match_clusters(torch.eye(2), -torch.eye(2))[1]]
    assert (similarity >= 0).all()
    assert len(match_clusters(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))[0]) == 0


# -- losses -------------------------------------------------------------------------------------------------------


def one_direction(u, w, y):
    total = 0.0
    for i in range(len(u)):
        log_p = [float(u[i] @ w[j]) for j in range(len(w))]
        norm = math.log(sum(math.exp(z) for z in log_p))
        positives = [log_p[j] - norm for j in range(len(w)) if y[i] == y[j]]
        total -= sum(positives) / len(positives)
    return total / len(u)


def test_prompt_loss_by_a_loop():
    images, labels = torch.randn(7, 5), torch.tensor([0, 1, 0, 2, 3, 0, 1])
    texts = torch.randn(4, 5)[labels]
    want = one_direction(images, texts, labels) + one_direction(texts, images, labels)
    assert prompt_loss(images, texts, labels).item() == pytest.approx(want, rel=1e-5)


def test_prompt_loss_closed_forms():
    assert prompt_loss(torch.randn(1, 4), torch.randn(1, 4), torch.tensor([3])).item() == 0  # the last batch may be one
    y = torch.zeros(6, dtype=torch.long)  # one cluster: uniform over its 6 rows is the best that there is
    texts = torch.randn(1, 4).expand(6, 4)
    images = torch.randn(1, 4).expand(6, 4)
    assert prompt_loss(images, texts, y).item() == pytest.approx(2 * math.log(6), rel=1e-5)


def test_text_loss_by_hand():
    p, texts, labels = torch.randn(5, 3), torch.randn(4, 3), torch.tensor([2, -1, 0, 3, -1])
    rows = []
    for x, y in zip(p, labels.tolist(), strict=True):
        if y >= 0:
            log_q = (texts @ x).log_softmax(0)
            target = torch.full((4,), 0.1 / 4)
            target[y] += 0.9
            rows.append(-(target * log_q).sum())
    assert text_loss(p, texts, labels).item() == pytest.approx(float(torch.stack(rows).mean()), rel=1e-5)


def test_text_loss_without_any_label_is_zero_and_has_a_gradient():
    p = torch.randn(3, 4, requires_grad=True)
    loss = text_loss(p, torch.randn(2, 4), torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0 and p.grad.abs().max() == 0


def test_unlabelled_images_get_no_text_gradient():
    p = torch.randn(3, 4, requires_grad=True)
    text_loss(p, torch.randn(2, 4), torch.tensor([1, -1, 0])).backward()
    assert p.grad[1].abs().max() == 0 and (p.grad[[0, 2]].abs().amax(1) > 0).all()


def test_terms_of_a_step():
    memories = MatchedMemories(unit(5, 8), unit(4, 8), 0.1, 0.05)
    features = {"visible": torch.randn(4, 8), "infrared": torch.randn(4, 8)}
    labels = {m: torch.tensor([0, 0, 1, 1]) for m in features}
    assert list(step_losses(memories, features, labels)) == ["contrast_visible", "contrast_infrared"]
    projections = {m: torch.randn(4, 3) for m in features}
    texts = {m: torch.randn(6, 3) for m in features}
    stored = {"visible": torch.tensor([5, -1, 2, 0]), "infrared": torch.full((4,), -1)}
    terms = step_losses(memories, features, labels, projections, texts, stored)
    assert list(terms)[2:] == ["text_visible", "text_infrared"]
    assert terms["text_visible"] > 0 and terms["text_infrared"] == 0
