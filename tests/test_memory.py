"""Memories: against row-by-row loops and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from sdcl.memory import ClusterLogits, ClusterMemory, InstanceMemory, cluster_centers, move_rows_


def rows_one_by_one(memory, rows, x, momentum):
    memory = memory.clone()
    for row, new in zip(rows.tolist(), x, strict=True):
        moved = momentum * memory[row] + (1 - momentum) * new
        memory[row] = moved / moved.norm()
    return memory


@pytest.mark.parametrize("rows", [[0, 1, 2], [4, 4, 4, 4], [3, 0, 3, 1, 0, 3], [2], []])
def test_moving_rows_equals_the_loop(rows):
    memory = F.normalize(torch.randn(5, 8), dim=1)
    rows = torch.tensor(rows, dtype=torch.int64)
    x = torch.randn(len(rows), 8) * 3
    want = rows_one_by_one(memory, rows, x, 0.9)
    move_rows_(memory, rows, x, 0.9)
    torch.testing.assert_close(memory, want, rtol=0, atol=1e-7)


def test_moving_rows_is_the_loop_to_the_last_bit():
    memory, x = F.normalize(torch.randn(40, 24), dim=1), torch.randn(96, 24) * 3
    rows = torch.randint(0, 40, (96,)) // 2  # many several times
    want = memory.clone()
    for row, new in zip(rows.tolist(), x, strict=True):
        moved = 0.1 * want[row : row + 1] + (1 - 0.1) * new[None]
        want[row : row + 1] = moved / moved.norm(dim=1, keepdim=True)
    move_rows_(memory, rows, x, 0.1)
    assert torch.equal(memory, want)


def test_a_memory_on_a_device_is_not_read_when_rows_are_on_the_cpu():
    """A meta tensor has no values: whatever would fetch one from a device to the CPU fails on it."""
    rows = torch.tensor([3, 0, 3, 1, 0, 3])
    memory, x = torch.empty(5, 8, device="meta"), torch.empty(6, 8, device="meta")
    move_rows_(memory, rows, x, 0.9)
    with pytest.raises((RuntimeError, NotImplementedError)):
        move_rows_(memory, rows.to("meta"), x, 0.9)


def test_instance_memory_takes_embeddings_unnormalised():
    memory = InstanceMemory(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), momentum=0.5)
    memory.update(torch.tensor([[0.0, 3.0]]), torch.tensor([0]))
    torch.testing.assert_close(memory.features, torch.tensor([[1 / math.sqrt(10), 3 / math.sqrt(10)], [0.0, 1.0]]))


def test_cluster_loss_is_cross_entropy_of_cosines():
    x, centers, y = torch.randn(6, 8), torch.randn(3, 8), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = ClusterMemory(centers, 0.1, temperature=0.05)(x, y)
    torch.testing.assert_close(loss, F.cross_entropy(F.normalize(x, dim=1) @ F.normalize(centers, dim=1).T / 0.05, y))


def test_nothing_moves_without_backward():
    memory = ClusterMemory(torch.randn(3, 8), 0.1)
    before = memory.features.clone()
    memory(torch.randn(4, 8, requires_grad=True), torch.tensor([0, 1, 1, 2]))
    assert torch.equal(memory.features, before)


def test_a_single_loss_has_the_ordinary_gradient_and_moves_the_memory():
    x, centers, y = torch.randn(4, 8), torch.randn(3, 8), torch.tensor([0, 1, 1, 2])
    plain = x.clone().requires_grad_()
    F.cross_entropy(F.normalize(plain, dim=1) @ F.normalize(centers, dim=1).T / 0.05, y).backward()
    memory, live = ClusterMemory(centers, 0.1), x.clone().requires_grad_()
    memory(live, y).backward()
    torch.testing.assert_close(live.grad, plain.grad)
    torch.testing.assert_close(
        memory.features, rows_one_by_one(F.normalize(centers, dim=1), y, F.normalize(x, dim=1), 0.1)
    )


def test_of_two_losses_on_one_memory_the_later_one_goes_first():
    centers, first, last = (
        torch.randn(3, 8),
        torch.randn(4, 8, requires_grad=True),
        torch.randn(4, 8, requires_grad=True),
    )
    y = torch.tensor([0, 1, 1, 2])
    memory = ClusterMemory(centers, 0.1)
    loss_first, loss_last = memory(first, y), memory(last, y)
    (loss_last + loss_first).backward()  # the order of formation counts, not that of the sum

    start = F.normalize(centers, dim=1)
    moved = rows_one_by_one(start, y, F.normalize(last.detach(), dim=1), 0.1)
    for x, then in ((last, start), (first, moved)):
        probe = x.detach().clone().requires_grad_()
        q = F.normalize(probe, dim=1)
        p = torch.softmax(
            F.normalize(x.detach(), dim=1) @ start.T / 0.05, dim=1
        )  # of the forward pass: before any move
        q.backward((p - F.one_hot(y, 3)) / (len(y) * 0.05) @ then)
        torch.testing.assert_close(x.grad, probe.grad)
    torch.testing.assert_close(memory.features, rows_one_by_one(moved, y, F.normalize(first.detach(), dim=1), 0.1))


def test_two_losses_on_the_same_logits_make_one_gradient_and_one_move():
    """Cross-entropy and a divergence from other logits, as in mutual learning: the moved centres see neither twice."""
    x, centers, y, other = torch.randn(5, 8), torch.randn(3, 8), torch.tensor([0, 2, 1, 2, 2]), torch.randn(5, 3)

    def loss(logits):
        divergence = F.kl_div(other.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="sum")
        return F.cross_entropy(logits, y) + 0.01 * divergence

    plain, live = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = F.normalize(plain, dim=1) @ F.normalize(centers, dim=1).T / 0.07
    loss(want).backward()
    memory = ClusterLogits(centers, 0.2, temperature=0.07)
    logits = memory(live, y)
    torch.testing.assert_close(logits, want)
    loss(logits).backward()
    torch.testing.assert_close(live.grad, plain.grad)
    q = F.normalize(x, dim=1)
    torch.testing.assert_close(memory.features, rows_one_by_one(F.normalize(centers, dim=1), y, q, 0.2))


def test_the_loss_is_that_of_its_logits_to_the_last_bit():
    x, centers, y = torch.randn(40, 16), torch.randn(9, 16), torch.randint(0, 9, (40,))
    results = []
    for memory in (ClusterMemory(centers, 0.1), ClusterLogits(centers, 0.1)):
        live = x.clone().requires_grad_()
        out = memory(live, y)
        loss = out if out.ndim == 0 else F.cross_entropy(out, y)
        loss.backward()
        results.append((loss.detach(), live.grad, memory.features))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


BAD = [
    ([0, -1, 2], (3, 8), "{} must lie in 0 … 4, but one is -1: leave outliers"),
    ([0, 5, 2], (3, 8), "{} must lie in 0 … 4, but one is 5"),
    ([0, 9, -7], (3, 8), "{} must lie in 0 … 4, but one is -7"),
    ([0, 1], (3, 8), r"{} must be int64 \[3\], one for each embedding, not torch.int64 \[2\]"),
    ([[0], [1], [2]], (3, 8), r"{} must be int64 \[3\], .* \[3, 1\]"),
    ([0.0, 1.0, 2.0], (3, 8), r"{} must be int64 \[3\], .* torch.float32"),
    ([True, False, True], (3, 8), r"{} must be int64 \[3\], .* torch.bool"),
    ([0, 1, 2], (3, 7), r"embeddings must be \[B, 8\] for a memory \[5, 8\], not \[3, 7\]"),
    ([0, 1, 2], (3, 1), r"embeddings must be \[B, 8\]"),
    ([0], (8,), r"embeddings must be \[B, 8\]"),
]


@pytest.mark.parametrize("rows, shape, message", BAD)
def test_rows_and_shapes_that_do_not_fit_are_refused_by_name(rows, shape, message):
    rows, x, memory = torch.tensor(rows), torch.randn(shape), torch.randn(5, 8)
    instances = InstanceMemory(memory)
    before = instances.features.clone()
    with pytest.raises(ValueError, match=message.format("rows")):
        instances.update(x, rows)
    assert torch.equal(instances.features, before)
    for kind in (ClusterMemory, ClusterLogits):
        with pytest.raises(ValueError, match=message.format("targets")):
            kind(memory, 0.1)(x, rows)


def test_the_check_reads_nothing_from_a_device():
    memory, x = ClusterMemory(torch.randn(3, 8), 0.1).to("meta"), torch.empty(2, 8, device="meta", requires_grad=True)
    memory(x, torch.tensor([0, 2])).backward()
    with pytest.raises(ValueError, match="targets must lie in 0 … 2, but one is 3"):
        memory(x, torch.tensor([0, 3]))


def test_rows_stay_of_unit_length():
    memory = ClusterMemory(torch.randn(3, 8) * 9, 0.1)
    memory(torch.randn(32, 8, requires_grad=True), torch.arange(32) % 3).backward()
    torch.testing.assert_close(memory.features.norm(dim=1), torch.ones(3))


def test_centers_are_means_without_outliers():
    x, y = torch.arange(8.0).reshape(4, 2), torch.tensor([1, -1, 0, 1])
    torch.testing.assert_close(cluster_centers(x, y), torch.tensor([[4.0, 5.0], [3.0, 4.0]]))


@pytest.mark.parametrize("labels", [[-1, -1], [0, 2], [0, 1, 1]])
def test_centers_refuse_bad_labels(labels):
    with pytest.raises(ValueError):
        cluster_centers(torch.randn(2, 4), torch.tensor(labels))
