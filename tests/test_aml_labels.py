"""AML's pseudo-labels: k-means, Ward merge, matching; against plain loops and cases worked out by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from sdcl.aml.labels import centers, kmeans, match, merge, number, unify


def groups(sizes, dim=6, spread=0.02, seed=0):
    g = torch.Generator().manual_seed(seed)
    centre = F.normalize(torch.randn(len(sizes), dim, generator=g), dim=1)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = centre[y] + spread * torch.randn(len(y), dim, generator=g)
    return x / x.abs().sum(1, keepdim=True), y


def plain_kmeans(x, initial):
    centroids = x[initial].clone()
    for _ in range(100):
        labels = torch.tensor([int(torch.stack([F.cosine_similarity(r, c, dim=0) if c.any() else torch.tensor(0.0)
                                                for c in centroids]).argmax()) for r in x])  # fmt: skip
        new = torch.stack([x[labels == k].mean(0) if (labels == k).any() else torch.zeros(x.shape[1])
                           for k in range(len(initial))])  # fmt: skip
        moved = float(((new - centroids) ** 2).sum())
        centroids = new
        if moved <= 1e-4:
            break
    return labels


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_against_loops(seed):
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed))  # far from unit length: several rounds
    initial = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:6]
    assert torch.equal(kmeans(x, initial), plain_kmeans(x, initial))


def test_kmeans_finds_separate_groups_whatever_their_lengths():
    x, y = groups([5, 7, 3])
    labels = kmeans(x * torch.rand(15, 1).add(0.5), torch.tensor([0, 5, 12]))
    assert torch.equal(labels, y)


@pytest.mark.parametrize("initial", [[0, 1, 2, 3], [0, 0], [0, 3], [-1, 0]])
def test_kmeans_refuses_more_clusters_than_rows_and_start_rows_that_are_none(initial):
    with pytest.raises(ValueError, match="k-means"):
        kmeans(torch.randn(3, 4), torch.tensor(initial))


def test_numbers_in_use():
    assert number(torch.tensor([7, -1, 3, 7, 9])).tolist() == [1, -1, 0, 1, 2]
    assert number(torch.tensor([4, 4])).tolist() == [0, 0]
    assert number(torch.tensor([-1, -1])).tolist() == [-1, -1]


def test_merge_joins_the_nearest_clusters():
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.1, 0.0], [10.0, 0.2], [0.0, 20.0]])
    y = torch.tensor([0, 1, 2, 3, 4, -1, 0])
    got = merge(means[y.clamp(min=0)], y, 3)
    assert got[5] == -1 and got[0] == got[2] == got[6] and got[1] == got[3]
    assert sorted(set(got.tolist())) == [-1, 0, 1, 2]


def test_ties_can_leave_fewer_groups_than_asked():
    """Four clusters at the corners of a square: the cut cannot tell one pair from the other."""
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert len(set(merge(x, torch.arange(4), 3).tolist())) < 3


def test_match_is_the_best_of_all_assignments():
    a, b = torch.randn(4, 6), torch.randn(5, 6)
    rows, columns, distance = match(a, b)
    u, v = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    cost = (u[:, None] - v).square().sum(2).tolist()
    best = min(sum(cost[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(5), 4))
    assert float(distance.sum()) == pytest.approx(best)
    assert sorted(rows.tolist()) == [0, 1, 2, 3] and len(set(columns.tolist())) == 4


def test_unify_gives_partners_one_number():
    x, y = groups([4, 5, 6, 4])
    shuffle = torch.tensor([2, 0, 3, 1])  # visible names of infrared clusters
    visible_labels = shuffle[y]
    visible_labels[0] = -1
    got_visible, got_infrared = unify(x, x * 3, visible_labels, y)
    assert torch.equal(got_infrared, y)  # infrared rows keep theirs
    assert got_visible[0] == -1 and torch.equal(got_visible[1:], y[1:])


@pytest.mark.parametrize("more", ["visible", "infrared"])
def test_unify_merges_the_modality_with_more_clusters(more):
    x, y = groups([4, 5, 6])
    split = y.clone()
    split[9:12] = 3  # half of the third group is a cluster of its own
    labels = {"visible": (split, y), "infrared": (y, split)}[more]
    visible, infrared = unify(x, x, *labels)
    assert torch.equal(visible, infrared)
    assert len(set(visible.tolist())) == 3 and len({(int(a), int(b)) for a, b in zip(visible, y, strict=True)}) == 3


@pytest.mark.parametrize("more", ["visible", "infrared"])
def test_without_merging_the_cluster_left_over_becomes_outliers(more):
    x, y = groups([4, 5, 6, 4])
    fewer = x[y != 1], number(torch.where(y[y != 1] > 1, y[y != 1] - 1, 0))
    sides = [(x, y), fewer] if more == "visible" else [fewer, (x, y)]
    visible, infrared = unify(sides[0][0], sides[1][0], sides[0][1], sides[1][1], merging=False)
    whole = visible if more == "visible" else infrared
    assert set(whole[y == 1].tolist()) == {-1}
    assert sorted(set(visible.tolist()) - {-1}) == sorted(set(infrared.tolist()) - {-1}) == [0, 1, 2]


def test_labels_nobody_has_are_dropped():
    x, y = groups([4, 5])
    visible, infrared = unify(x, x, y * 3 + 2, y)
    assert torch.equal(visible, y) and torch.equal(infrared, y)


def test_nothing_to_match_is_an_error():
    x, y = groups([4, 5])
    with pytest.raises(ValueError, match="nothing to match"):
        unify(x, x, torch.full_like(y, -1), y)


def test_centres_are_means_of_both_modalities_half_by_half():
    x, y = torch.randn(5, 8), torch.tensor([0, 1, -1, 1, 0])
    first, second = centers(x, y)
    for half, got in ((x[:, :4], first), (x[:, 4:], second)):
        want = torch.stack([half[[0, 4]].mean(0), half[[1, 3]].mean(0)])
        torch.testing.assert_close(got, F.normalize(want, dim=1))
