"""AML's phases, learning rates and optimiser."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdcl.aml.network import Network
from sdcl.aml.presets import PRESETS
from sdcl.aml.schedule import Schedule, make_optimizer
from sdcl.aml.settings import Config, ModelConfig
from sdcl.errors import UserError


def test_rates_of_stage_1():
    s = Schedule()
    assert s.rate(0) == pytest.approx(3.5e-6)
    assert s.rate(1_000) == pytest.approx(3.5e-4 * 0.505)
    assert s.rate(2_000) == s.rate(8_999) == s.rate(9_000) == 3.5e-4
    assert s.rate(12_000) == pytest.approx(7.7e-7 + (3.5e-4 - 7.7e-7) / 2)


def test_the_cosine_of_stage_2_starts_from_the_last_rate_of_the_warm_up():
    s = PRESETS["sysu"].at("target_dbscan").schedule
    assert s.rate(2_000) == s.rate(1_999) == pytest.approx(0.999505e-4)
    assert s.rate(7_000) == pytest.approx(7.7e-7 + (0.999505e-4 - 7.7e-7) / 2)


SHORT = [Schedule(warmup=0, flat_until=0, iterations=5), Schedule(warmup=5, iterations=5)]


@pytest.mark.parametrize("s", [*SHORT, Schedule()])
def test_rates_stay_within_bounds(s):
    rates = [s.rate(i) for i in range(0, s.iterations + 10)]
    assert all(math.isfinite(r) and 0 < r <= s.base for r in rates)


def test_phases():
    assert PRESETS["regdb"].phases == ("source", "source_mutual", "target_kmeans")
    assert PRESETS["sysu02"].phases == ("source", "source_mutual", "target_dbscan", "target_kmeans")
    assert PRESETS["regdb"].at("target_kmeans").steps_of(4_120) == 200
    assert PRESETS["sysu"].at("target_kmeans").steps_of(34_167) == 266
    assert PRESETS["regdb"].before("target_kmeans") == "source_mutual" and PRESETS["sysu"].before("source") is None
    with pytest.raises(ValueError, match="target_dbscan"):
        PRESETS["regdb"].at("target_dbscan")


def test_part_of_the_phases():
    config = replace(PRESETS["sysu"], phase="source_mutual", until="target_dbscan")
    assert config.phases == ("source_mutual", "target_dbscan")


@pytest.mark.parametrize("name", PRESETS)
def test_parts_cover_every_step_once_and_test_when_the_page_says(name):
    config = PRESETS[name]
    for phase in config.phases:
        own = [p for p in config.parts if p.phase == phase]
        s = config.at(phase)
        assert [p.first for p in own] == [0, *(p.last for p in own[:-1])] and own[-1].last == s.iterations
        assert all(0 < p.last - p.first <= config.save_every for p in own)
        every = s.evaluate_every or s.iterations
        tested = [i for i in range(1, s.iterations + 1) if i % every == 0 or i == s.iterations]
        assert [p.last for p in own if p.test] == tested
    assert config.stage_name(0) == f"source steps 0-{config.parts[0].last - 1}"


IMPOSSIBLE = {
    "RegDB has no DBSCAN": ("regdb", {"phase": "target_dbscan"}),
    "nothing to do": ("sysu", {"phase": "target_kmeans", "until": "source"}),
    "later phase": ("sysu", {"start_from": Path("x.pth")}),
    "two or more labels": ("sysu", {"source_batch": 24}),
    "--eps takes": ("sysu", {"eps": 1.0}),
    "--blocks takes a number at least 1": ("sysu", {"model": ModelConfig(blocks=(1, 0, 1, 1))}),
}


@pytest.mark.parametrize("says", IMPOSSIBLE)
def test_impossible_settings(says):
    name, changes = IMPOSSIBLE[says]
    with pytest.raises(UserError, match=says):
        replace(PRESETS[name], **changes)


def test_settings_come_back_from_a_file():
    for config in PRESETS.values():
        assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


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
