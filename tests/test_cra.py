"""Association: against a loop written from the method page, and by hand."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from sdcl.cra import associate


def loop(vd, vs, rd, rs, labels, top_k, smooth_k):
    vd, vs, rd, rs = (F.normalize(x, dim=1) for x in (vd, vs, rd, rs))
    winners = []
    for d, s in zip(vd, vs, strict=True):
        deep = [int(labels[j]) for j in (rd @ d).argsort(descending=True)[:top_k]]
        shallow = [int(labels[j]) for j in (rs @ s).argsort(descending=True)[:top_k]]
        best = max(shallow.count(label) for label in deep)
        winners.append(next(label for label in deep if shallow.count(label) == best))
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
    got = associate(vd, vs, rd, rs, labels, top_k, smooth_k, chunk)
    assert got.dtype == torch.int64
    assert torch.equal(got, loop(vd, vs, rd, rs, labels, top_k, smooth_k))


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
    with pytest.raises(ValueError, match="rows"):
        associate(x[:0], x[:0], x, x, torch.zeros(4, dtype=torch.int64))
