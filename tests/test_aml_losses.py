"""AML's losses: against loops over rows and classes, and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from sdcl.aml.losses import (
    circle_logits,
    distance_gap,
    divergence,
    hard_triplet,
    mutual_divergence,
    similarity_gap,
    smoothed_cross_entropy,
    stage1_losses,
    stage2_losses,
)
from sdcl.memory import ClusterLogits

Y = torch.tensor([0, 2, 2, 1, 0, 1])


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def test_circle_logits_entry_by_entry():
    x, w = leaf(6, 5), leaf(3, 5)
    got, m = circle_logits(x, w, Y).detach(), 0.35
    x, w = x.detach(), w.detach()
    for i in range(6):
        for k in range(3):
            s = float(x[i] @ w[k] / (x[i].norm() * w[k].norm()))
            own, other = 64 * max(0, 1 + m - s) * (s - (1 - m)), 64 * max(0, s + m) * (s - m)
            want = own if k == Y[i] else other
            assert float(got[i, k]) == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_circle_weights_are_constants_in_the_gradient():
    x, w = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    circle_logits(x, w, torch.tensor([0]))[0, 0].backward()
    # d(cosine)/dx at unit x is w − s·x = (0, 0.8); times 64·(1 + 0.35 − 0.6)
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 64 * 0.75 * 0.8]]))


def test_smoothing_shares_epsilon_among_the_other_classes():
    z = torch.randn(6, 3)
    p = torch.softmax(z, 1)
    want = -sum((0.9 if k == y else 0.05) * math.log(p[i, k]) for i, y in enumerate(Y.tolist()) for k in range(3)) / 6
    assert float(smoothed_cross_entropy(z, Y)) == pytest.approx(want, rel=1e-5)


def test_triplet_against_loops():
    x = torch.randn(6, 4)
    total = 0.0
    for i in range(6):
        own = max(float((x[i] - x[j]).norm()) for j in range(6) if Y[j] == Y[i])
        other = min(float((x[i] - x[j]).norm()) for j in range(6) if Y[j] != Y[i])
        total += math.log1p(math.exp(own - other))
    assert float(hard_triplet(x, Y)) == pytest.approx(total / 6, rel=1e-5)


def test_equal_rows_leave_finite_gradients():
    x = torch.ones(4, 3, requires_grad=True)
    (hard_triplet(x, torch.tensor([0, 0, 1, 1])) + distance_gap(x, leaf(4, 3))).backward()
    assert torch.isfinite(x.grad).all()


def kl(p, q):
    return float((p * (p / q).log()).sum())


def test_divergences_against_the_definition_and_a_sum_over_the_batch():
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    p, q = torch.softmax(a, 1), torch.softmax(b, 1)
    assert float(mutual_divergence(a, b)) == pytest.approx(kl(p, q) + kl(q, p), rel=1e-4)
    assert float(divergence(a, b)) == pytest.approx((kl(p, q) + kl(q, p)) / 2, rel=1e-4)
    assert float(divergence(torch.cat([a, a]), torch.cat([b, b]))) == pytest.approx(2 * float(divergence(a, b)))


def test_similarity_and_distance_gaps_against_loops():
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    u, v = F.normalize(a, dim=1), F.normalize(b, dim=1)
    pairs = [(i, j) for i in range(5) for j in range(5)]
    want = sum(float(u[i] @ u[j] - v[i] @ v[j]) ** 2 for i, j in pairs)
    assert float(similarity_gap(a, b)) == pytest.approx(want, rel=1e-4)
    want = sum(float((u[i] - u[j]).norm() - (v[i] - v[j]).norm()) ** 2 for i, j in pairs)
    assert float(distance_gap(a, b)) == pytest.approx(want, rel=1e-4)
    assert float(distance_gap(a, 3 * a)) == pytest.approx(0, abs=1e-9)


def test_the_chain_of_stage_1_teaches_one_way():
    """A teaches C, C teaches B: with only those terms A has no gradient, and C none from B."""
    a, b, c, w = leaf(6, 8), leaf(6, 8), leaf(6, 8), torch.randn(3, 8)
    for name, learner in (("12", c), ("21", b)):
        features = {"12": (c, a), "21": (b, c)}[name]
        terms = divergence(circle_logits(features[0], w, Y), circle_logits(features[1], w, Y))
        grads = torch.autograd.grad(terms + similarity_gap(*features), [a, b, c], allow_unused=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in grads] == [x is learner for x in (a, b, c)]


def test_stage_1_total_is_its_weighted_terms():
    a, b, c, w1, w2 = leaf(6, 8), leaf(6, 8), leaf(6, 8), leaf(3, 8), leaf(3, 8)
    got = stage1_losses(a, b, c, w1, w2, Y, kl_weight=0.1)
    assert float(got.total.detach()) == pytest.approx(sum(float(t) for t in got.terms.values()), rel=1e-5)
    z = [circle_logits(*p, Y) for p in ((a, w1), (b, w1), (c, w2))]
    assert float(got.terms["kl_12"]) == pytest.approx(0.1 * float(divergence(z[2], z[0])), rel=1e-5)
    assert float(got.terms["kl_21"]) == pytest.approx(0.1 * float(divergence(z[1], z[2])), rel=1e-5)
    assert float(got.terms["sim_21"]) == pytest.approx(0.5 * float(similarity_gap(b, c)), rel=1e-5)
    first_pass = stage1_losses(a, b, c, w1, w2, Y, kl_weight=0.0)
    assert float(first_pass.terms["kl_12"]) == float(first_pass.terms["kl_21"]) == 0
    assert list(got.terms) == list(first_pass.terms)


def test_one_step_of_stage_2_moves_both_memories_once():
    x1, x2, y = leaf(6, 8), leaf(6, 8), torch.tensor([0, 2, 2, 1, 0, 3])
    memories = [ClusterLogits(torch.randn(4, 8), 0.2), ClusterLogits(torch.randn(4, 8), 0.2)]
    before = [m.features.clone() for m in memories]
    got = stage2_losses(x1, x2, y, memories)
    z = [F.normalize(x, dim=1) @ m.T / 0.05 for x, m in zip((x1, x2), before, strict=True)]
    for k in (0, 1):
        assert float(got.terms[f"cross_entropy_{k + 1}"]) == pytest.approx(float(F.cross_entropy(z[k], y)), rel=1e-4)
    want = F.cross_entropy(z[0], y) + F.cross_entropy(z[1], y)
    want = want + 0.01 * mutual_divergence(*z) + 0.05 * distance_gap(x1, x2)
    gradients = torch.autograd.grad(want, [x1, x2])  # of the KL too, through the memories as they were
    got.total.backward()
    for x, gradient, memory, start in zip((x1, x2), gradients, memories, before, strict=True):
        torch.testing.assert_close(x.grad, gradient, rtol=1e-4, atol=1e-5)
        moved = start.clone()
        for row, q in zip(y.tolist(), F.normalize(x.detach(), dim=1), strict=True):
            moved[row] = F.normalize(0.2 * moved[row] + 0.8 * q, dim=0)
        torch.testing.assert_close(memory.features, moved)
