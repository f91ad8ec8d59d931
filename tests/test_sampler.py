"""Batches of pseudo-identities: the drawing rule against a naive reading, counts, drops, restarts, determinism."""

import time
from collections import Counter

import numpy as np
import pytest

from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.errors import UserError


def make_set(seed: int, identities: int = 30, rows: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0 … K−1 of very uneven sizes, a third of the rows outliers; some identities of one camera or one row."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(identities, rows, p=rng.dirichlet(np.full(identities, 0.7)))
    labels = np.where(rng.random(rows) < 0.3, -1, labels)
    cameras = rng.integers(1, 5, rows)
    labels = np.concatenate([labels, [100], [101], [102] * 20, [103] * 5])
    cameras = np.concatenate([cameras, [1], [4], [2] * 20, [3] * 5])
    return np.unique(labels, return_inverse=True)[1] - 1, cameras


def naive_pass(labels: np.ndarray, cameras: np.ndarray, instances: int, rng: np.random.Generator) -> list[int]:
    """The rule, read aloud: one pass over the identities, nothing precomputed."""
    stream = []
    for identity in rng.permutation(max(labels) + 1):
        rows = [row for row in range(len(labels)) if labels[row] == identity]
        place = rng.integers(len(rows))
        anchor = rows[place]
        stream.append(anchor)
        pool = [row for row in rows if cameras[row] != cameras[anchor]]
        if not pool:
            pool = [row for row in rows if row != anchor]
        if pool:
            stream += rng.choice(pool, instances - 1, replace=len(pool) < instances).tolist()
    return stream


@pytest.mark.parametrize(("seed", "identities", "instances"), [(0, 8, 16), (1, 4, 4), (2, 3, 5), (3, 8, 1)])
def test_batches_equal_the_naive_stream(seed: int, identities: int, instances: int) -> None:
    labels, cameras = make_set(seed)
    size, steps = identities * instances, 25
    expected: list[list[int]] = []
    rng = np.random.default_rng(seed)
    while len(expected) < steps:  # the incomplete last batch of each pass is dropped
        stream = naive_pass(labels, cameras, instances, rng)
        expected += [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    batches = PseudoIdentityBatches(labels, cameras, identities, instances, steps, seed)
    assert len(batches) == steps
    assert list(batches) == expected[:steps]


def test_groups_hold_one_identity_from_other_cameras() -> None:
    labels, cameras = make_set(7)
    sizes = Counter(labels.tolist())
    labels[[sizes[label] == 1 for label in labels.tolist()]] = -1  # so that every 16 rows are one group
    labels = np.unique(labels, return_inverse=True)[1] - 1
    seen_kinds = set()
    for batch in PseudoIdentityBatches(labels, cameras, 8, 16, 200, 0):
        assert len(batch) == 128
        for group in np.reshape(batch, (8, 16)):
            anchor, others = group[0], group[1:]
            rows = np.flatnonzero(labels == labels[anchor])
            elsewhere = rows[cameras[rows] != cameras[anchor]]
            pool = elsewhere if len(elsewhere) else rows[rows != anchor]
            assert labels[anchor] >= 0 and set(others) <= set(pool)
            assert (len(set(others)) == 15) or len(pool) < 16
            seen_kinds.add((len(elsewhere) > 0, len(pool) >= 16))
    assert len(seen_kinds) == 4  # both pools, both kinds of draw


@pytest.mark.parametrize(("others", "repeats"), [(15, True), (16, False)])
def test_replacement_below_as_many_rows_as_instances(others: int, repeats: bool) -> None:
    """15 rows at other cameras would do without replacement, but the rule asks for 16."""
    labels = np.zeros(others + 1, dtype=np.int64)
    cameras = np.array([1] + [2] * others)
    drawn = []
    for seed in range(200):
        (batch,) = PseudoIdentityBatches(labels, cameras, 1, 16, 1, seed)
        if batch[0] == 0:
            drawn.append(len(set(batch[1:])))
        else:
            assert set(batch[1:]) == {0}  # the one row of the other camera
    assert drawn and (min(drawn) < 15) == repeats


@pytest.mark.slow
def test_every_identity_once_a_pass_and_rows_evenly() -> None:
    labels, cameras = np.repeat(np.arange(8), 12), np.tile([1, 2, 3], 32)
    anchors: Counter[int] = Counter()
    for batch in PseudoIdentityBatches(labels, cameras, 8, 4, 3000, 5):
        assert sorted(labels[batch[::4]]) == list(range(8))
        anchors.update(batch[::4])
    counts = np.array([anchors[row] for row in range(96)])  # binomial(3000, 1/12): mean 250, deviation 15
    assert abs(counts - 250).max() < 5 * 15.2


def test_same_seed_same_batches_and_other_seed_others() -> None:
    labels, cameras = make_set(0)
    state = np.random.get_state()[1].copy()
    first = PseudoIdentityBatches(labels, cameras, 4, 4, 20, 3)
    assert list(first) == list(first) == list(PseudoIdentityBatches(labels.tolist(), cameras.tolist(), 4, 4, 20, 3))
    assert list(first) != list(PseudoIdentityBatches(labels, cameras, 4, 4, 20, 4))
    assert (np.random.get_state()[1] == state).all()  # the global generator plays no part


def test_a_pass_that_fills_no_batch_is_refused_at_once() -> None:
    labels = np.array([0, 0, 1, 1, 2, -1, -1])  # 4 + 4 + 1 rows a pass at 4 instances
    cameras = np.array([1, 2, 1, 1, 2, 1, 2])
    assert len(list(PseudoIdentityBatches(labels, cameras, 2, 4, 3, 0))) == 3
    with pytest.raises(UserError, match=r"needs 12 rows.*gives 9: 3 pseudo-identities \(2 .*1 of one\) hold 5 of 7"):
        PseudoIdentityBatches(labels, cameras, 3, 4, 3, 0)
    with pytest.raises(UserError, match="0 pseudo-identities"):
        PseudoIdentityBatches(np.full(5, -1), np.ones(5), 1, 2, 1, 0)
    with pytest.raises(UserError, match="0 pseudo-identities"):
        PseudoIdentityBatches([], [], 1, 2, 1, 0)


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="one length"):
        PseudoIdentityBatches([0, 0], [1], 1, 2, 1, 0)
    with pytest.raises(ValueError, match="impossible"):
        PseudoIdentityBatches([0, 0], [1, 2], 1, 0, 1, 0)


def test_an_epoch_of_the_published_size_is_drawn_in_seconds() -> None:
    rng = np.random.default_rng(0)
    labels, cameras = rng.integers(-1, 690, 22258), rng.integers(1, 5, 22258)
    start = time.perf_counter()
    batches = list(PseudoIdentityBatches(labels, cameras, 8, 16, 200, 0))
    assert len(batches) == 200 and time.perf_counter() - start < 3
