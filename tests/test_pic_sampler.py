"""What holds for every batch of PIC, and the identities that none can be made of."""

import numpy as np
import pytest

from sdcl.errors import UserError
from sdcl.pic.sampler import IdentityBatches, epoch_steps

RNG = np.random.default_rng(0)
VISIBLE = RNG.permutation(np.repeat(np.arange(12), RNG.integers(2, 9, 12)))
INFRARED = RNG.permutation(np.repeat(np.arange(12), RNG.integers(2, 5, 12)))


def _epochs(n, seed=0):
    return [rows for _, rows in IdentityBatches(VISIBLE, INFRARED, 5, 3, seed).epochs(0, n)]


def test_rows_of_a_batch():
    for visible, infrared in _epochs(3):
        steps = len(VISIBLE) // 15 + 1
        assert visible.shape == infrared.shape == (steps, 15)
        of_visible, of_infrared = VISIBLE[visible], INFRARED[infrared]
        assert np.array_equal(of_visible, of_infrared)  # row r of both is of the same person
        blocks = of_visible.reshape(steps, 5, 3)
        assert (blocks == blocks[:, :, :1]).all()  # rows of an identity stand together
        assert all(len(set(step[:, 0])) == 5 for step in blocks)  # without replacement within a step


def test_rows_are_drawn_with_replacement_even_where_there_are_enough():
    rows = np.concatenate([e[0] for e in _epochs(40)]).reshape(-1, 3)
    enough = rows[[np.sum(VISIBLE[r[0]] == VISIBLE) >= 3 for r in rows]]
    repeated = np.mean([len(set(r)) < 3 for r in enough])
    sizes = np.array([np.sum(VISIBLE[r[0]] == VISIBLE) for r in enough])
    expected = np.mean(1 - (sizes - 1) * (sizes - 2) / sizes**2)
    assert repeated == pytest.approx(expected, abs=0.08)


def test_every_identity_comes_about_equally_often():
    seen = np.bincount(np.concatenate([VISIBLE[e[0]][:, ::3].ravel() for e in _epochs(60)]))
    assert seen.min() > 0.75 * seen.mean() and seen.max() < 1.25 * seen.mean()


def test_the_seed_fixes_the_draws_and_epochs_differ():
    one, again, other = _epochs(2), _epochs(2), _epochs(2, seed=1)
    same = [np.array_equal(a, b) for a, b in zip(one[0] + one[1], again[0] + again[1], strict=True)]
    assert all(same)
    assert not np.array_equal(one[0][0], one[1][0]) and not np.array_equal(one[0][0], other[0][0])


def test_an_epochs_batches_do_not_depend_on_where_a_run_goes_on():
    draws = IdentityBatches(VISIBLE, INFRARED, 5, 3, 0)
    whole, resumed = dict(draws.epochs(0, 5)), dict(draws.epochs(3, 5))
    assert list(whole) == [0, 1, 2, 3, 4] and list(resumed) == [3, 4]
    assert all(np.array_equal(whole[epoch], resumed[epoch]) for epoch in resumed)
    assert list(draws.epochs(5, 5)) == []


@pytest.mark.parametrize(
    ("images", "steps"), [((22_258, 11_909), 696), ((2_060, 2_060), 65), ((64, 10), 3), ((1, 31), 1)]
)
def test_steps_of_an_epoch(images, steps):
    assert epoch_steps(images, 32) == steps


def test_identities_of_one_modality_only_are_named():
    with pytest.raises(UserError, match=r"1 of 12 training identities have visible images but no infrared ones \(3\)"):
        IdentityBatches(VISIBLE, INFRARED[INFRARED != 3], 5, 3, 0)
    with pytest.raises(UserError, match=r"infrared images but no visible ones \(0, 1, 2, 3, 4, …\)"):
        IdentityBatches(VISIBLE[VISIBLE > 5], INFRARED, 5, 3, 0)


def test_one_image_an_identity_is_refused():
    with pytest.raises(UserError, match="each of the 12 training identities has a single infrared image"):
        IdentityBatches(VISIBLE, np.arange(12), 5, 3, 0)


def test_too_few_identities_are_refused():
    with pytest.raises(UserError, match="--identities 13, but there are 12 training identities"):
        IdentityBatches(VISIBLE, INFRARED, 13, 3, 0)
