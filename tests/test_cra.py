"""Association: against a loop written from the method page, and by hand."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from sdcl.clustering import nearest_neighbors, neighbors
from sdcl.cra import associate, smooth, vote


def loop(vd, vs, rd, rs, labels, top_k, smooth_k):
    vd, vs, rd, rs = (F.normalize(x, dim=1) for x in (vd, vs, rd, rs))
    winners = []
    for d, s in zip(vd, vs, strict=True):
        deep = [int(labels[j]) for j in (rd @ d).argsort(descending=True)[:top_k]]
        shallow = [int(labels[j]) for j in (rs @ s).argsort(descending=True)[:top_k]]
        winners.append(deep[int(torch.tensor([float(shallow.count(label)) for label in deep]).topk(1).indices)])
    out = []
    for d, s in zip(vd, vs, strict=True):
        near = [winners[j] for j in (vd @ d + vs @ s).argsort(descending=True)[:smooth_k]]
        counts = Counter(near)
        out.append(min(label for label, count in counts.items() if count == max(counts.values())))
    return torch.tensor(out)


@pytest.mark.parametrize("top_k, smooth_k, chunk", [(20, 5, 1024), (7, 3, 8), (500, 500, 16), (1, 1, 5)])
def test_equals_the_loop(top_k, smooth_k, chunk):
    generator = torch.Generator().manual_seed(top_k)
    vd, vs = torch.randn(2, 30, 6, generator=generator)
    rd, rs = torch.randn(2, 40, 6, generator=generator)
    labels = torch.randint(-1, 5, (40,), generator=generator)
    want = loop(vd, vs, rd, rs, labels, top_k, smooth_k)
    for search in (None, nearest_neighbors):
        got = associate(vd, vs, rd, rs, labels, top_k, smooth_k, chunk, search)
        assert got.dtype == torch.int64
        assert torch.equal(got, want)


def test_ties_go_where_topk_on_the_cpu_puts_them():
    """Few labels and many equal counts: about half the rows have a tie, and the first of equals would be another."""
    generator = torch.Generator().manual_seed(3)
    vd, vs, rd, rs = torch.randn(4, 400, 8, generator=generator)
    labels = torch.arange(400) // 10
    votes = vote(vd, vs, rd, rs, labels, 20, chunk=64)
    tied = votes.counts == votes.counts.amax(1, keepdim=True)
    several = torch.tensor([len(set(row[t].tolist())) > 1 for row, t in zip(votes.labels, tied, strict=True)])
    assert several.float().mean() > 0.3
    want = [int(row[counts.topk(1).indices]) for row, counts in zip(votes.labels, votes.counts.float(), strict=True)]
    assert votes.winner.tolist() == want
    first = votes.labels.gather(1, votes.counts.argmax(1, keepdim=True))[:, 0]
    assert (first != votes.winner).float().mean() > 0.2
    # written down from torch 2.15: a version that picks others would no longer follow the published runs
    counts = torch.tensor([[1] * 20, [0, 2, 1, 2] * 5, [3] + [0] * 18 + [3]])
    assert counts.topk(1).indices[:, 0].tolist() == [12, 11, 19]


@pytest.mark.parametrize("smallest", [1, 10_000])
def test_another_search_gives_equal_labels_where_distances_and_votes_tie(monkeypatch, smallest):
    """Every row twice, few labels, and as many neighbours as let no pair fall apart: the compiled search and faiss."""
    monkeypatch.setattr(neighbors, "TILES_FROM", smallest)
    generator = torch.Generator().manual_seed(5)
    vd, vs, rd, rs = torch.randn(4, 200, 8, generator=generator).repeat_interleave(2, 1)
    labels = (torch.arange(200) // 10 - 1).repeat_interleave(2)
    similarity = (F.normalize(vd, dim=1) @ F.normalize(rd, dim=1).T).sort(descending=True).values
    assert (similarity[:, 0:20:2] - similarity[:, 1:20:2]).abs().max() < 1e-6
    votes = vote(vd, vs, rd, rs, labels, 20)
    tied = votes.counts == votes.counts.amax(1, keepdim=True)
    several = [len(set(row[t].tolist())) > 1 for row, t in zip(votes.labels, tied, strict=True)]
    assert sum(several) > 100
    want = associate(vd, vs, rd, rs, labels, 20, 6)
    assert torch.equal(associate(vd, vs, rd, rs, labels, 20, 6, search=nearest_neighbors), want)


def test_the_association_is_its_votes_smoothed():
    vd, vs, rd, rs = torch.randn(4, 60, 6)
    labels = torch.randint(-1, 5, (60,))
    votes = vote(vd, vs, rd, rs, labels, 7)
    assert votes.labels.shape == votes.counts.shape == (60, 7) and votes.counts.max() <= 7
    assert torch.equal(smooth(votes.winner, vd, vs, 3), associate(vd, vs, rd, rs, labels, 7, 3))
    assert torch.equal(smooth(votes.winner, vd, vs, 1), votes.winner)


def test_outliers_are_a_label():
    same = torch.ones(4, 3)
    assert associate(same, same, same, same, torch.tensor([-1, -1, -1, 0]), top_k=4, smooth_k=1).tolist() == [-1] * 4


def test_length_of_embeddings_does_not_count():
    vd, vs, rd, rs = torch.randn(4, 25, 6)
    labels = torch.randint(0, 4, (25,))
    scale = torch.rand(25, 1) * 5 + 0.1
    assert torch.equal(
        associate(vd, vs, rd, rs, labels, 5, 3), associate(vd * scale, vs * scale, rd * scale, rs * scale, labels, 5, 3)
    )


def test_what_does_not_fit_is_refused():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="labels"):
        associate(x, x, x, x, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shallow embeddings must be .* not \[4, 3\] and \[4, 2\]"):
        associate(x, x, x, x[:, :2], torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows"):
        associate(x[:0], x[:0], x, x, torch.zeros(4, dtype=torch.int64))
