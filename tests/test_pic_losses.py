"""PIC's losses against loops over rows, closed forms, and where gradients may flow."""

import math

import pytest
import torch

from sdcl.pic import Outputs, pic_losses
from sdcl.pic.losses import distances, hardest_rows, soft_identity_loss, soft_triplet_loss, triplet_loss
from sdcl.pic.presets import PRESETS

CONFIG = PRESETS["sysu"]
LABELS = torch.tensor([4, 4, 7, 7, 7, 1])


def _features(seed: int, rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _hardest(x, labels, r):
    """Places of the farthest row of r's identity and of the nearest other, by plain loops."""
    d = [(x[r] - x[s]).norm() if s != r else torch.tensor(0.0) for s in range(len(x))]
    same = [s for s in range(len(x)) if labels[s] == labels[r]]
    others = [s for s in range(len(x)) if labels[s] != labels[r]]
    return max(same, key=lambda s: d[s]), min(others, key=lambda s: d[s])


def test_distances_are_those_of_the_rows():
    a, b = _features(1), _features(2, 4)
    torch.testing.assert_close(distances(a, b), torch.cdist(a, b))


def test_equal_rows_are_at_the_smallest_distance_and_give_no_gradient():
    x = torch.ones(3, 4, requires_grad=True)
    d = distances(x, x)
    d.sum().backward()
    assert torch.equal(d, torch.full((3, 3), 1e-6))
    assert torch.equal(x.grad, torch.zeros(3, 4))


def test_triplet_loss_is_the_loop_over_rows():
    x, y = torch.cat([_features(3), _features(4)]), torch.cat([LABELS, LABELS])
    expected = 0.0
    for r in range(len(x)):
        p, n = _hardest(x, y, r)
        expected += max(0.0, float((x[r] - x[p]).norm() - (x[r] - x[n]).norm() + 0.3)) / len(x)
    assert float(triplet_loss(x, y, 0.3)) == pytest.approx(expected, rel=1e-9)


def test_triplet_loss_of_a_line_by_hand():
    x, y = torch.tensor([[0.0], [1.0], [3.0], [3.5]]), torch.tensor([0, 0, 1, 1])
    # d(positive), d(negative): (1, 3), (1, 2), (0.5, 2), (0.5, 2.5); margin 1.2 reaches the second alone
    assert float(triplet_loss(x, y, 1.2)) == pytest.approx(0.2 / 4, rel=1e-5)


def test_triplet_gradient_goes_through_both_ends():
    x = torch.tensor([[0.0], [1.0], [1.5]], requires_grad=True)  # row 2 alone in its identity, negative of rows 0 and 1
    triplet_loss(x, torch.tensor([0, 0, 1]), 0.3).backward()
    # row 0: 1 - 1.5 + 0.3 < 0; row 1: d(1, 0) - d(1, 2) + 0.3 = 0.8; row 2: 0 - 0.5 + 0.3 < 0
    assert x.grad[:, 0].tolist() == pytest.approx([-1 / 3, 2 / 3, -1 / 3], abs=1e-5)


def test_soft_identity_loss_is_cross_entropy_with_the_teachers_probabilities():
    z, teacher = _features(5).requires_grad_(), _features(6).requires_grad_()
    p, q = teacher.detach().softmax(1), z.detach().softmax(1)
    loss = soft_identity_loss(z, teacher)
    assert float(loss.detach()) == pytest.approx(float(-(p * q.log()).sum(1).mean()), rel=1e-12)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(z.grad, (q - p) / len(z))


def test_soft_identity_loss_of_an_equal_teacher_is_its_entropy_and_has_no_gradient():
    z = torch.zeros(3, 8, requires_grad=True)
    loss = soft_identity_loss(z, torch.zeros(3, 8))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(8))
    assert torch.allclose(z.grad, torch.zeros(3, 8), atol=1e-7)


def test_soft_triplet_loss_is_the_loop_over_rows():
    x, teacher = _features(7), _features(8)
    expected = 0.0
    for r in range(len(x)):
        p, n = _hardest(x, LABELS, r)  # found among the students, looked up in the teacher
        mine = torch.stack([(x[r] - x[s]).norm() if s != r else torch.tensor(1e-6).double() for s in (p, n)])
        theirs = torch.stack([(teacher[r] - teacher[s]).norm() if s != r else mine[0] for s in (p, n)])
        expected -= float((theirs.softmax(0) * mine.log_softmax(0)).sum()) / len(x)
    assert float(soft_triplet_loss(x, teacher, LABELS)) == pytest.approx(expected, rel=1e-6)


def test_soft_triplet_gradient_goes_to_the_anchor_alone():
    x = torch.tensor([[0.0], [1.0], [3.0], [5.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0], [2.0], [2.5], [9.0]], dtype=torch.float64, requires_grad=True)
    soft_triplet_loss(x, teacher, torch.tensor([0, 0, 1, 1])).backward()
    assert teacher.grad is None
    # (prediction - target) of [positive, negative] times the slope of each distance in the anchor
    pairs = {0: (1, 2), 1: (0, 2), 2: (3, 1), 3: (2, 1)}
    with torch.no_grad():
        for r, (p, n) in pairs.items():
            error = (x[r] - x[[p, n]]).abs()[:, 0].softmax(0) - (teacher[r] - teacher[[p, n]]).abs()[:, 0].softmax(0)
            assert float(x.grad[r]) == pytest.approx(float((error * (x[r] - x[[p, n]]).sign()[:, 0]).sum() / 4))


def test_equal_distances_take_the_first_row():
    d = torch.tensor([[0.0, 2.0, 2.0, 3.0, 3.0], [2.0, 0.0, 2.0, 5.0, 4.0]])
    d = torch.cat([d, torch.ones(3, 5)])
    farthest, nearest = hardest_rows(d, torch.tensor([0, 0, 0, 1, 1]))
    assert farthest[:, 0].tolist() == [1, 0, 0, 3, 3]
    assert nearest[:, 0].tolist() == [3, 4, 3, 0, 0]


def _outputs(seed: int) -> Outputs:
    g = torch.Generator().manual_seed(seed)
    return Outputs(*(torch.randn(6, n, generator=g, dtype=torch.float64).requires_grad_() for n in (5, 9, 5, 9)))


def test_total_is_the_weighted_sum_of_crossed_terms():
    v, i = _outputs(1), _outputs(2)
    found = pic_losses(v, i, LABELS, CONFIG)
    assert list(found) == ["identity", "triplet", "soft_identity", "soft_triplet", "total"]
    crossed = soft_identity_loss(v.logits, i.mean_logits) + soft_identity_loss(i.logits, v.mean_logits)
    torch.testing.assert_close(found["soft_identity"], crossed)
    crossed = soft_triplet_loss(v.features, i.mean_features, LABELS)
    crossed += soft_triplet_loss(i.features, v.mean_features, LABELS)
    torch.testing.assert_close(found["soft_triplet"], crossed)
    expected = 0.5 * (found["identity"] + found["triplet"])
    expected += 0.5 * found["soft_identity"] + 0.8 * found["soft_triplet"]
    torch.testing.assert_close(found["total"], expected)
    found["total"].backward()
    assert all(x.grad is None for o in (v, i) for x in (o.mean_features, o.mean_logits))
    assert all(x.grad.abs().sum() > 0 for o in (v, i) for x in (o.features, o.logits))


def test_losses_do_not_depend_on_the_order_of_pairs_nor_on_which_modality_is_which():
    v, i = _outputs(3), _outputs(4)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    moved = pic_losses(*(Outputs(*(x[order] for x in o)) for o in (v, i)), LABELS[order], CONFIG)
    swapped = pic_losses(i, v, LABELS, CONFIG)
    for name, value in pic_losses(v, i, LABELS, CONFIG).items():
        torch.testing.assert_close(moved[name], value)
        torch.testing.assert_close(swapped[name], value)


def test_without_mean_branches_two_losses_with_weight_one():
    v, i = (Outputs(o.features, o.logits) for o in (_outputs(5), _outputs(6)))
    found = pic_losses(v, i, LABELS, CONFIG)
    assert list(found) == ["identity", "triplet", "total"]
    torch.testing.assert_close(found["total"], found["identity"] + found["triplet"])


def test_unequal_modalities_are_refused():
    v, i = _outputs(7), _outputs(8)
    short = Outputs(*(x[:5] for x in i))
    with pytest.raises(ValueError, match="6 visible rows, 5 infrared rows and 6 labels"):
        pic_losses(v, short, LABELS, CONFIG)
