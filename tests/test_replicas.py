"""Batch statistics in replicas against separate copies of the model, one for each replica."""

import copy
from types import SimpleNamespace

import pytest
import torch

from sdcl.config import ModelConfig
from sdcl.errors import UserError
from sdcl.models import build_model
from sdcl.models.statistics import frozen_running_statistics
from sdcl.training import replicas as of_replicas
from sdcl.training.replicas import ReplicaForward

SMALL = ModelConfig(image_height=32, image_width=16, dim=16, depth=3, heads=2, drop_path=0.0)


def batch(b):
    return torch.randn(2 * b, 3, 32, 16), torch.randn(b, 3, 32, 16)


def forward_replicas(model, visible, infrared, replicas):
    model.bn_replicas = replicas
    return model(visible, infrared)


@pytest.mark.parametrize(("replicas", "b"), [(1, 4), (2, 4), (2, 5), (4, 8)])
def test_replicas_equal_separate_models(replicas, b):
    model = build_model(SMALL).train().double()
    copies = [copy.deepcopy(model) for _ in range(replicas)]
    v, i = (x.double() for x in batch(b))
    weights = torch.randn(2, 3 * b, 16, dtype=torch.float64)

    parts = list(zip(copies, v.chunk(replicas), i.chunk(replicas), strict=True))
    outputs = [(m(visible=x, infrared=y), len(x)) for m, x, y in parts]
    want = [torch.cat([out[level][:n] for out, n in outputs] + [out[level][n:] for out, n in outputs])
            for level in (0, 1)]
    sum((w * x).sum() for w, x in zip(weights, want, strict=True)).backward()

    got = forward_replicas(model, v, i, replicas)
    (weights[0] * got.deep + weights[1] * got.shallow).sum().backward()
    for a, c in zip(got, want, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)
    for name, p in model.named_parameters():
        if p.requires_grad:
            summed = sum(m.get_parameter(name).grad for m in copies)
            torch.testing.assert_close(p.grad, summed, rtol=1e-8, atol=1e-8, msg=name)
    for name, buffer in model.named_buffers():              # running statistics are those of replica 0
        torch.testing.assert_close(buffer, copies[0].get_buffer(name), msg=name)


def test_running_statistics_count_one_step():
    model = build_model(SMALL).train()
    forward_replicas(model, *batch(4), 2)
    counts = {name: int(x) for name, x in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts and set(counts.values()) == {1}


def test_two_replicas_differ_from_one():
    model = build_model(SMALL).train()
    v, i = batch(4)
    i[2:] += 3
    whole, split = forward_replicas(model, v, i, 1), forward_replicas(model, v, i, 2)
    assert not torch.allclose(whole.deep, split.deep, atol=1e-2)


def test_frozen_statistics_are_used_and_stay():
    model, frozen = build_model(SMALL).train(), build_model(SMALL).train()
    frozen.load_state_dict(model.state_dict())
    before = {name: b.clone() for name, b in frozen.named_buffers()}
    v, i = batch(2)
    with frozen_running_statistics(frozen):
        out = frozen(v, i)
    for a, c in zip(out, model(v, i), strict=True):
        assert torch.equal(a, c)
    for name, buffer in frozen.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not torch.equal(model.deep_head.bn.running_mean, before["deep_head.bn.running_mean"])


def test_one_pass_serves_all_replicas():
    model = build_model(SMALL).train()
    rows = []
    for part in (model, *model.blocks):
        part.register_forward_pre_hook(lambda part, inputs: rows.append(len(inputs[0])))
    forward_replicas(model, *batch(4), 2)
    assert rows == [8] + [12] * (SMALL.depth - 1)


def test_statistics_move_again_after_a_failure():
    model = build_model(SMALL).train()
    v, i = batch(2)
    calls = []

    def fail_second(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second replica")

    buffers = dict(model.named_buffers())
    model.stem_infrared.register_forward_pre_hook(fail_second)
    with pytest.raises(RuntimeError, match="second replica"):
        forward_replicas(model, v, i, 2)
    assert all(b is buffers[name] for name, b in model.named_buffers())


@pytest.mark.parametrize("gpus, replicas, processes, message", [
    (1, 2, 1, r"1 process\(es\), 2 replica\(s\) and 1 GPU"), (0, 2, 1, "and 0 GPU"), (4, 1, 1, "1 replica"),
    (4, 4, 2, "2 process"),
])  # fmt: skip
def test_data_parallel_on_demand_needs_its_gpus(monkeypatch, gpus, replicas, processes, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("sdcl.distributed.world", lambda: processes)
    model = SimpleNamespace(cls_token=SimpleNamespace(device=torch.device("cuda" if gpus else "cpu")))
    with pytest.raises(UserError, match=f"--parallel dp needs .*{message}.*--parallel none uses one GPU"):
        ReplicaForward(model, replicas, parallel="dp")


@pytest.mark.parametrize("parallel, spread", [("auto", True), ("dp", True), ("none", False)])
def test_data_parallel_where_there_are_gpus(monkeypatch, parallel, spread):
    made = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.nn, "DataParallel", lambda model, device_ids: made.append(device_ids))
    monkeypatch.setattr(of_replicas, "_Network", lambda model, precision: model)
    model = SimpleNamespace(cls_token=SimpleNamespace(device=torch.device("cuda", 0)))
    ReplicaForward(model, 2, parallel=parallel)
    assert made == ([[0, 1]] if spread else []) and model.bn_replicas == (1 if spread else 2)


def test_evaluation_does_not_depend_on_replicas():
    model = build_model(SMALL).eval()
    v, i = batch(4)
    for a, b in zip(forward_replicas(model, v, i, 2), model(v, i), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rows_that_cannot_be_split():
    model = build_model(SMALL)
    with pytest.raises(ValueError, match="1 images cannot be split over 2"):
        forward_replicas(model, *batch(1), 2)
