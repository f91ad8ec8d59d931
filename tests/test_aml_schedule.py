"""AML's phases, learning rates and optimiser."""

import math

import pytest
import torch

from sdcl.aml.network import Network
from sdcl.aml.phases import phases_of, published
from sdcl.aml.schedule import Schedule, make_optimizer


def test_rates_of_stage_1():
    s = Schedule()
    assert s.rate(0) == pytest.approx(3.5e-6)
    assert s.rate(1_000) == pytest.approx(3.5e-4 * 0.505)
    assert s.rate(2_000) == s.rate(8_999) == s.rate(9_000) == 3.5e-4
    assert s.rate(12_000) == pytest.approx(7.7e-7 + (3.5e-4 - 7.7e-7) / 2)


def test_the_cosine_of_stage_2_starts_from_the_last_rate_of_the_warm_up():
    s = published("sysu", "target_dbscan").schedule
    assert s.rate(2_000) == s.rate(1_999) == pytest.approx(0.999505e-4)
    assert s.rate(7_000) == pytest.approx(7.7e-7 + (0.999505e-4 - 7.7e-7) / 2)


SHORT = [Schedule(warmup=0, flat_until=0, iterations=5), Schedule(warmup=5, iterations=5)]


@pytest.mark.parametrize("s", [*SHORT, Schedule()])
def test_rates_stay_within_bounds(s):
    rates = [s.rate(i) for i in range(0, s.iterations + 10)]
    assert all(math.isfinite(r) and 0 < r <= s.base for r in rates)


def test_phases():
    assert phases_of("regdb") == ("source", "source_mutual", "target_kmeans")
    assert phases_of("sysu02") == ("source", "source_mutual", "target_dbscan", "target_kmeans")
    assert published("regdb", "target_kmeans").epoch_steps(4_120) == 200
    assert published("sysu", "target_kmeans").epoch_steps(34_167) == 266
    assert published("sysu", "source").epoch_steps(9) is None
    with pytest.raises(ValueError, match="target_dbscan"):
        published("regdb", "target_dbscan")


def test_adam_decays_the_gradient_of_every_trained_parameter_with_one():
    """First step of Adam: lr·g/(|g| + eps) with g the gradient plus decay·weight, so its sign alone counts."""
    net = Network((1, 1, 1, 1), 4)
    optimizer = make_optimizer(net.parameters(), 0.1, weight_decay=1.0)
    taken = sum(len(group["params"]) for group in optimizer.param_groups)
    assert taken == sum(p.requires_grad for p in net.parameters())
    p, unused, bias = net.pool.p, net.conv1.weight.clone(), net.neck.bias.clone()
    p.grad = torch.tensor([-1.0])
    optimizer.step()
    assert float(p) == pytest.approx(3.0 - 0.1)  # gradient −1 + 3·decay > 0
    assert torch.equal(net.conv1.weight, unused) and torch.equal(net.neck.bias, bias)
