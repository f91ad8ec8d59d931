"""AML's batches: which rows, and what becomes of their pixels."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdcl.aml.batches import LabelBatches, PairViews, TrainingView, camera_numbers, target_batches
from sdcl.aml.presets import PRESETS
from sdcl.data.records import ImageRecord
from sdcl.errors import UserError

SETTINGS = replace(PRESETS["sysu"].at("target_kmeans"), batch_size=8, instances=4)


def rows_of(labels, cameras, steps=6, start=0, seed=3):
    return list(LabelBatches(labels, cameras, SETTINGS, start, steps, seed))


def test_a_batch_is_two_labels_of_four_rows_from_other_cameras_than_the_first_ones():
    labels = np.repeat(np.arange(5), 12)
    cameras = np.tile([1, 1, 1, 2, 2, 2, 3, 3, 3, 6, 6, 6], 5)
    for batch in rows_of(labels, cameras):
        assert len(batch) == 8
        for own in (batch[:4], batch[4:]):
            assert len(set(labels[own])) == 1 and len(set(own)) == 4
            assert all(cameras[row] != cameras[own[0]] for row in own[1:])


def test_every_order_of_labels_has_each_once_and_its_rest_is_dropped():
    labels = np.repeat(np.arange(5), 4)
    seen = [labels[batch[i]] for batch in rows_of(labels, np.zeros(20), steps=4) for i in (0, 4)]
    assert all(max(Counter(seen[i : i + 4]).values()) == 1 for i in (0, 4))  # two batches of an order of five labels


def test_a_single_row_fills_its_share_and_minus_one_is_left_out():
    labels, cameras = np.array([0, 1, 1, 1, -1, 2, 2]), np.array([1, 1, 2, 3, 1, 1, 1])
    rows = [row for batch in rows_of(labels, cameras, steps=20) for row in batch]
    assert 4 not in rows and 0 in rows
    for batch in rows_of(labels, cameras, steps=20):
        for own in (batch[:4], batch[4:]):
            if labels[own[0]] == 0:
                assert own == [0, 0, 0, 0]
            if labels[own[0]] == 2:  # one camera: the label's other row, again and again
                assert len(set(own[1:])) == 1 and own[1] != own[0]


def test_a_stream_does_not_depend_on_where_it_is_cut():
    labels, cameras = np.repeat(np.arange(7), 6), np.tile([1, 2, 3], 14)
    whole = rows_of(labels, cameras, steps=9)
    assert rows_of(labels, cameras, steps=5) + rows_of(labels, cameras, start=5, steps=4) == whole
    assert len(LabelBatches(labels, cameras, SETTINGS, 5, 4, 3)) == 4
    assert LabelBatches(labels, cameras, SETTINGS, 5, 4, 3).first_place == 40


def test_too_few_labels():
    with pytest.raises(UserError, match="a batch needs 8 rows"):
        rows_of(np.array([0, 0, 0, -1]), np.arange(4))


def test_cameras_are_numbered_over_both_modalities():
    """RegDB's two cameras have one number in the files."""
    records = {m: [ImageRecord(f"{m}{i}", i, 1) for i in range(2)] for m in ("visible", "infrared")}
    assert camera_numbers(records).tolist() == [0, 0, 1, 1]


def pixels(seed):
    return np.random.default_rng(seed).integers(1, 256, (24, 12, 3), dtype=np.uint8)


def test_a_view_is_the_image_flipped_shifted_and_erased_to_what_normalisation_makes_zero():
    view, image = TrainingView(padding=2), pixels(0)
    view.jitter = lambda x: x
    plain = torch.from_numpy(image).permute(2, 0, 1).float()
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2))
    places = [padded[:, y : y + 24, x : x + 12] for y in range(5) for x in range(5)]
    places += [p.flip(2) for p in (torch.nn.functional.pad(plain, (2, 2, 2, 2))[:, y : y + 24, x : x + 12]
                                   for y in range(5) for x in range(5))]  # fmt: skip
    erased_colour = torch.tensor([123.675, 116.28, 103.53])[:, None]
    erased = 0
    for _ in range(40):
        got = view(image)
        gone = (got.reshape(3, -1) == erased_colour).all(0).reshape(24, 12)
        assert any(torch.equal(got[:, ~gone], p[:, ~gone]) for p in places)
        share = float(gone.float().mean())
        assert share < 0.55
        erased += share > 0
    assert 8 <= erased <= 32  # half of them


def test_jitter_changes_brightness_within_a_fifth():
    view = TrainingView(padding=0)
    view.flip, view.erase = (lambda x: x), (lambda x: x)
    grey = np.full((8, 8, 3), 100, dtype=np.uint8)  # contrast leaves an even image alone
    values = {float(view(grey)[0, 0, 0]) for _ in range(60)}
    assert 79 <= min(values) < 90 and 110 < max(values) <= 120


@pytest.mark.parametrize("shared", [True, False])
def test_partners_share_their_geometry_only_when_asked(shared):
    image = pixels(0)
    pairs = [PairViews(2, shared)((image, image)) for _ in range(8)]
    assert all(p.shape == (6, 24, 12) for p in pairs)
    same = [torch.equal(p[:3], p[3:]) for p in pairs]
    assert all(same) if shared else not all(same)


def test_augmentation_does_not_depend_on_where_a_stream_is_cut(tmp_path):
    """The draws of an image follow from its place in the whole stream."""
    records = []
    for i in range(12):
        Image.fromarray(pixels(i)).save(tmp_path / f"{i}.png")
        records.append(ImageRecord(str(tmp_path / f"{i}.png"), i // 3, i % 3))
    config = replace(PRESETS["demo"], model=replace(PRESETS["demo"].model, image_height=24, image_width=16))
    sides = {"visible": records[:6], "infrared": records[6:]}
    labels = [r.identity for r in records]

    def images(start, steps):
        return [x for x, _ in target_batches(sides, labels, SETTINGS, config, start, steps, seed=5)]

    whole, parts = images(0, 4), images(0, 1) + images(1, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
