"""Diagnostics against hand-computed cases, naive loops and invariants."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from sdcl.frame.diagnostics import (
    association_accuracy,
    cluster_sizes,
    compare_clusters,
    majority_identity,
    neighbor_accuracy,
)
from sdcl.models import Embeddings
from sdcl.training.checks import diagnose, diagnose_neighbors
from sdcl.training.labels import PseudoLabels


def naive_ari(labels, ids):
    """Adjusted Rand index by counting pairs."""
    pairs = list(combinations(range(len(labels)), 2))
    same_label = [labels[a] == labels[b] for a, b in pairs]
    same_id = [ids[a] == ids[b] for a, b in pairs]
    both = sum(x and y for x, y in zip(same_label, same_id, strict=True))
    expected = sum(same_label) * sum(same_id) / len(pairs)
    largest = (sum(same_label) + sum(same_id)) / 2
    return (both - expected) / (largest - expected)


def test_clusters_against_loops():
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 6, 80)
    labels = np.where(rng.random(80) < 0.7, ids, rng.integers(0, 6, 80))
    labels[:7] = -1
    result = compare_clusters(torch.from_numpy(labels), torch.from_numpy(ids))
    kept = labels >= 0
    assert result["ari"] == pytest.approx(naive_ari(labels[kept], ids[kept]))
    right = sum(np.bincount(ids[labels == k]).max() for k in range(6))
    assert result["purity"] == pytest.approx(right / kept.sum())


def test_same_partition_and_splits():
    ids = np.repeat([4, 9, 2], 10)
    assert compare_clusters(np.repeat([2, 0, 1], 10), ids) == {"ari": 1.0, "purity": 1.0}
    split = compare_clusters(np.repeat(np.arange(6), 5), ids)  # every identity in two clusters: pure, but not the same
    assert split["purity"] == 1.0 and split["ari"] < 0.7
    assert compare_clusters(np.zeros(30, int), ids) == {"ari": 0.0, "purity": pytest.approx(1 / 3)}
    assert compare_clusters(-np.ones(30, int), ids) == {}
    with pytest.raises(ValueError, match="29 labels but 30 identities"):
        compare_clusters(np.zeros(29, int), ids)


def test_majority_takes_the_smallest_of_equals():
    labels = [0, 0, 0, 1, 1, 3, -1, -1]
    assert majority_identity(labels, [7, 5, 7, 8, 2, 4, 9, 9]).tolist() == [7, 2, -1, 4]
    assert majority_identity([-1, -1], [1, 2]).tolist() == []


def test_association_by_hand():
    infrared, infrared_ids = [0, 0, 0, 1, 1, -1], [10, 10, 20, 20, 20, 30]  # clusters of 10 and of 20
    visible, visible_ids = [0, 0, 1, 1, -1], [10, 20, 20, 10, 10]
    assert association_accuracy(visible, visible_ids, infrared, infrared_ids) == 0.5
    assert association_accuracy([-1], [10], infrared, infrared_ids) is None


def test_sizes_fall_into_bins():
    labels = np.repeat(np.arange(7), [1, 2, 3, 4, 7, 8, 300])
    assert cluster_sizes(np.append(labels, [-1] * 50)) == [1, 2, 2, 1, 0, 0, 0, 1]
    assert sum(cluster_sizes(labels)) == 7
    assert cluster_sizes([-1, -1]) == [0] * 8


def test_neighbor_pairs_by_hand():
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    assert neighbor_accuracy(mask, [1, 2], [1, 2, 2, 1]) == pytest.approx(4 / 5)
    assert neighbor_accuracy(mask, [1, 2], [1, 2, 2, 1], own_rows=[0, 1]) == pytest.approx(2 / 3)
    assert mask.sum() == 5  # the argument is left as it was
    assert neighbor_accuracy(torch.zeros(2, 4), [1, 2], [1, 2, 2, 1]) is None


def test_neighbors_of_separated_identities_are_right():
    ids = np.arange(40) % 4
    centers = torch.eye(4, 16) * 10

    def near(seed):
        g = torch.Generator().manual_seed(seed)
        return Embeddings(*(centers[ids] + 0.3 * torch.randn(40, 16, generator=g) for _ in range(2)))

    result = diagnose_neighbors(near(0), near(1), ids, ids, sample=13)
    assert result == {f"neighbors_{a}_{t}": 1.0 for a in ("visible", "infrared") for t in ("visible", "infrared")}
    mixed = diagnose_neighbors(near(0), near(1), ids, np.roll(ids, 1))  # infrared identities named otherwise
    assert mixed["neighbors_visible_visible"] == 1.0 and mixed["neighbors_visible_infrared"] == 0.0


@pytest.mark.parametrize("stage", [1, 2])
def test_diagnose_is_plain_json(stage):
    visible = torch.tensor([0, 0, 1, 1, -1, 1])
    labels = PseudoLabels(
        visible, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0, 1, -1]) if stage == 2 else visible, stage
    )
    result = diagnose(labels, [5, 5, 6, 6, 6, 6], [5, 5, 6, 6])
    assert json.loads(json.dumps(result)) == result
    assert result["visible_identities"] == result["infrared_identities"] == 2
    assert result["visible_ari"] == result["infrared_purity"] == 1.0
    assert result["visible_cluster_sizes"] == [0, 2, 0, 0, 0, 0, 0, 0]
    if stage == 2:  # trained: rows 0, 1, 2 right, row 3 wrong; row 4 is an outlier, row 5 has no label
        assert result["association_accuracy"] == 0.75 and result["associated_share"] == pytest.approx(4 / 6)
    else:
        assert "association_accuracy" not in result


def test_nothing_clustered_gives_no_nan():
    none = torch.full((4,), -1)
    result = diagnose(PseudoLabels(none, none, none, 2), [1, 1, 2, 2], [1, 1, 2, 2])
    assert "visible_ari" not in result and "association_accuracy" not in result and result["associated_share"] == 0.0
