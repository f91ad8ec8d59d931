"""CCLNet's batches, training views and label files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdcl.cclnet.batches import ClusterBatches, prompt_batches, steps_of_epoch
from sdcl.cclnet.handover import LABEL_FILES, Handover, read_handover, read_labels, write_handover, write_labels
from sdcl.cclnet.labels import cluster_modality
from sdcl.cclnet.views import TrainingView
from sdcl.data.transforms import normalize_bytes
from sdcl.errors import UserError

LABELS = np.array([0] * 3 + [1] * 40 + [-1] * 9 + [2] * 5 + [3] * 2 + [4] * 20)


# -- batches ------------------------------------------------------------------------------------------------------


def test_cluster_batches():
    batches = ClusterBatches(LABELS, clusters=4, instances=16, steps=30, seed=3)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 30 and drawn == list(batches)
    assert drawn != list(ClusterBatches(LABELS, 4, 16, 30, seed=4))
    for rows in drawn:
        groups = LABELS[rows].reshape(4, 16)
        assert (groups == groups[:, :1]).all() and (groups >= 0).all()
        assert len(set(groups[:, 0])) == 4
    small = [rows for batch in drawn for rows in np.reshape(batch, (4, 16)) if LABELS[rows[0]] == 3]
    assert all(set(rows) == {57, 58} for rows in small[:5])  # 16 draws from 2 rows: with replacement
    assert {label for batch in drawn for label in LABELS[batch]} == {0, 1, 2, 3, 4}


def test_all_rows_of_a_cluster_come_equally_often():
    rows = [r for batch in ClusterBatches(LABELS, 4, 16, 400, seed=0) for r in batch if LABELS[r] == 4]
    counts = np.bincount(rows, minlength=len(LABELS))[LABELS == 4]
    assert abs(counts / counts.mean() - 1).max() < 0.2


def test_too_few_clusters():
    with pytest.raises(UserError, match="needs 4 clusters, but clustering found 3 in 7 images"):
        ClusterBatches([0, 0, 1, 1, 2, -1, -1], 4, 16, 1, seed=0)


def test_steps_count_the_larger_modality():
    assert steps_of_epoch([0] * 64, [0, -1], 64) == 2
    assert steps_of_epoch([0] * 10 + [-1] * 90, [1] * 63, 64) == 1


def test_prompt_batches():
    batches = prompt_batches(10, 23, 8, seed=1)
    assert [(len(v), len(i)) for v, i in batches] == [(8, 8), (8, 8), (7, 7)]
    visible, infrared = (np.concatenate(x) for x in zip(*batches, strict=True))
    assert sorted(infrared) == list(range(23)) and sorted(visible[:10]) == list(range(10))
    assert set(visible[10:]) <= set(range(10))
    again, other = prompt_batches(10, 23, 8, seed=1), prompt_batches(10, 23, 8, seed=2)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(batches[0][1], other[0][1])


def test_prompt_batches_without_a_rest():
    assert [len(v) for v, _ in prompt_batches(16, 3, 8, seed=0)] == [8, 8]


def test_prompt_batches_of_nothing():
    with pytest.raises(UserError, match="no infrared image has a stored label"):
        prompt_batches(5, 0, 8, seed=0)


# -- training views -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(20, 235, (48, 32, 3), dtype=np.uint8)


def views(picture, modality, n=60):
    view, out = TrainingView(modality, (48, 32), padding=4), []
    for seed in range(n):
        torch.manual_seed(seed)
        out.append(view(picture))
    return torch.stack(out)


def test_grey_views_are_visible_alone(picture):
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for modality, low, high in (("visible", 0.3, 0.7), ("infrared", 0, 0)):
        x = views(picture, modality)
        assert x.shape == (60, 3, 48, 32) and x.dtype == torch.float32
        levels = torch.where(x == 0, torch.nan, x * std + mean)
        grey = [(v[0] - v[1])[~v.isnan().any(0)].abs().max() < 0.01 for v in levels]
        assert low <= np.mean(grey) <= high


def test_views_repeat_by_seed_and_come_from_the_image(picture):
    assert torch.equal(views(picture, "visible", 3), views(picture, "visible", 3))
    still = normalize_bytes(torch.from_numpy(picture)[None])[0]
    untouched = [v for v in views(picture, "infrared") if (v[:, 8:40, 8:24] != 0).all()]
    places = [(p, q) for p in range(9) for q in range(9)]
    padded = F.pad(still, (4, 4, 4, 4))
    for v in untouched[:4]:
        candidates = [padded[:, p : p + 48, q : q + 32] for p, q in places]
        candidates += [padded.flip(2)[:, p : p + 48, q : q + 32] for p, q in places]
        inner = min(((c - v)[:, 8:40, 8:24].abs().max().item()) for c in candidates)
        assert inner < 1e-5


# -- labels -------------------------------------------------------------------------------------------------------


def test_centres_average_normalised_features():
    people = F.normalize(torch.randn(4, 16), dim=1).repeat_interleave(8, 0)
    features = F.normalize(people + 0.02 * torch.randn(32, 16), dim=1)
    labels, centers = cluster_modality(features, 0.6, 4, 7, 3)
    assert labels.dtype == torch.int64 and len(centers) == int(labels.max()) + 1 >= 2
    for k, center in enumerate(centers):
        want = features[labels == k].mean(0)
        torch.testing.assert_close(center, want / want.norm())


def records(visible, infrared):
    return {"visible": [None] * visible, "infrared": [None] * infrared}


def test_label_files_round_trip(tmp_path):
    labels = {"visible": torch.tensor([0, -1, 1, 1]), "infrared": torch.tensor([0, 0])}
    write_labels(tmp_path, labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(LABEL_FILES.values())
    read = read_labels(tmp_path, records(4, 2))
    for modality, y in labels.items():
        assert np.load(tmp_path / LABEL_FILES[modality]).dtype == np.int64
        assert torch.equal(read[modality], y)


@pytest.mark.parametrize(
    "labels, words",
    [
        ([0, 0, 1], "has 3 labels, but there are 4 visible training images"),
        ([0, 2, 2, -1], "without gaps"),
        ([-1, -1, -1, -1], "without gaps"),
        ([0, 1, -2, 0], "outliers -1"),
        ([0.0, 1.0, 0.0, 1.0], "no list of whole numbers"),
        ([[0, 1, 0, 1]], "no list of whole numbers"),
    ],
)
def test_wrong_label_files(tmp_path, labels, words):
    np.save(tmp_path / LABEL_FILES["visible"], np.array(labels))
    with pytest.raises(UserError, match=words):
        read_labels(tmp_path, records(4, 2))


def test_no_label_file(tmp_path):
    path = tmp_path / LABEL_FILES["visible"]
    with pytest.raises(UserError, match="no stored visible labels at .*run stage 0 first"):
        read_labels(tmp_path, records(2, 2))
    np.save(path, np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path, records(2, 2))
    path.write_text("no labels")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path, records(2, 2))


def test_prompts_round_trip(tmp_path):
    labels = {"visible": torch.tensor([0, 1, -1]), "infrared": torch.tensor([0, 0])}
    vectors = {m: torch.randn(2, 4, 3) for m in labels}
    handed = Handover(labels, vectors, {m: x[:, 0] for m, x in vectors.items()})
    write_handover(tmp_path / "prompts.pth", handed)
    read = read_handover(tmp_path / "prompts.pth", records(3, 2))
    for name, part in vars(handed).items():
        assert all(torch.equal(getattr(read, name)[m], x) for m, x in part.items())
    with pytest.raises(UserError, match="has 2 labels, but there are 5 infrared"):
        read_handover(tmp_path / "prompts.pth", records(3, 5))
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="take the prompts.pth"):
        read_handover(tmp_path / "other.pth")
