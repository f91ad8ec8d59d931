"""Re-ranking against loops over sets, in limiting cases, and on data where it is known to help."""

import math

import pytest
import torch

from sdcl.evaluation import regdb_metrics
from sdcl.rerank import rerank


def naive(query, gallery, k1, k2, weight):
    """The definition, over Python sets and dictionaries."""
    x = torch.nn.functional.normalize(torch.cat([query, gallery]), dim=1).double()
    n, q = len(x), len(query)
    d = [[max(0.0, 2 - 2 * float(x[i] @ x[j])) for j in range(n)] for i in range(n)]
    d = [[value / max(row) for value in row] for row in d]
    order = [sorted(range(n), key=lambda j, i=i: d[i][j]) for i in range(n)]

    def mutual(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = []
    for i in range(n):
        near = mutual(i, k1)
        for c in sorted(near):
            other = mutual(c, round(k1 / 2))
            if len(other & mutual(i, k1)) > 2 / 3 * len(other):
                near = near | other
        total = sum(math.exp(-d[i][j]) for j in near)
        v.append({j: math.exp(-d[i][j]) / total for j in near})
    mean = [{j: sum(v[r].get(j, 0.0) for r in order[i][:k2]) / k2 for j in range(n)} for i in range(n)]
    out = torch.zeros(q, n - q)
    for i in range(q):
        for g in range(q, n):
            m = sum(min(mean[i][j], mean[g][j]) for j in range(n))
            out[i, g - q] = 1 - (1 - weight) * (1 - m / (2 - m)) - weight * d[i][g]
    return out


def groups(identities=6, images=5, noise=0.6, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.arange(identities).repeat_interleave(images)
    x = torch.eye(identities, 12)[ids] + noise * torch.randn(len(ids), 12, generator=g) / 12**0.5
    return x, ids


@pytest.mark.parametrize("k1, k2, weight", [(20, 6, 0.3), (5, 1, 0.0), (7, 3, 0.5), (200, 6, 0.3)])
def test_equals_the_definition(k1, k2, weight):
    (query, _), (gallery, _) = groups(images=2, seed=1), groups(images=4, seed=2)
    result = rerank(query * 7, gallery * 3, k1, k2, weight)
    torch.testing.assert_close(result, naive(query, gallery, k1, k2, weight), atol=2e-5, rtol=0)
    assert result.dtype == torch.float32 and result.min() > -1e-5 and result.max() < 1 + 1e-5


def test_weight_one_keeps_the_order():
    (query, _), (gallery, _) = groups(images=2, seed=1), groups(images=4, seed=2)
    plain = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).t()
    assert torch.equal(rerank(query, gallery, weight=1.0).argsort(1), plain.argsort(1))


def test_neighbours_of_neighbours_help():
    (query, q_ids), (gallery, g_ids) = groups(20, 3, 1.3, 3), groups(20, 8, 1.3, 4)
    query, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (query[:, :12], gallery[:, :12]))
    keep_q, keep_g = q_ids < 12, g_ids < 12
    query, q_ids, gallery, g_ids = query[keep_q], q_ids[keep_q], gallery[keep_g], g_ids[keep_g]
    before = regdb_metrics(query @ gallery.t(), q_ids, g_ids).mAP
    after = regdb_metrics(rerank(query, gallery, k1=10, k2=3), q_ids, g_ids).mAP
    assert before < 0.9 and after > before + 0.05


def test_one_image_and_wrong_input():
    assert rerank(torch.ones(1, 4), torch.ones(1, 4)).shape == (1, 1)
    with pytest.raises(ValueError, match=r"\[Q, D\] and \[G, D\]"):
        rerank(torch.ones(2, 4), torch.ones(3, 5))
    with pytest.raises(ValueError, match="weight lies in"):
        rerank(torch.ones(2, 4), torch.ones(3, 4), weight=1.5)
