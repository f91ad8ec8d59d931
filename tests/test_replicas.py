"""Batch statistics in replicas against separate copies of the model, one for each replica."""

import copy

import pytest
import torch

from sdcl.config import ModelConfig
from sdcl.models import build_model
from sdcl.training.replicas import forward_replicas

SMALL = ModelConfig(image_height=32, image_width=16, dim=16, depth=3, heads=2, drop_path=0.0)


def batch(b):
    return torch.randn(2 * b, 3, 32, 16), torch.randn(b, 3, 32, 16)


@pytest.mark.parametrize(("replicas", "b"), [(1, 4), (2, 4), (2, 5), (4, 8)])
def test_replicas_equal_separate_models(replicas, b):
    model = build_model(SMALL).train()
    copies = [copy.deepcopy(model) for _ in range(replicas)]
    v, i = batch(b)
    weights = torch.randn(2, 3 * b, 16)

    parts = list(zip(copies, v.chunk(replicas), i.chunk(replicas), strict=True))
    outputs = [(m(visible=x, infrared=y), len(x)) for m, x, y in parts]
    want = [torch.cat([out[level][:n] for out, n in outputs] + [out[level][n:] for out, n in outputs])
            for level in (0, 1)]
    sum((w * x).sum() for w, x in zip(weights, want, strict=True)).backward()

    got = forward_replicas(model, v, i, replicas)
    (weights[0] * got.deep + weights[1] * got.shallow).sum().backward()
    for a, c in zip(got, want, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            summed = sum(m.get_parameter(name).grad for m in copies)
            torch.testing.assert_close(p.grad, summed, rtol=1e-4, atol=1e-4, msg=name)
    for name, buffer in model.named_buffers():              # running statistics are those of replica 0
        torch.testing.assert_close(buffer, copies[0].get_buffer(name), msg=name)


def test_running_statistics_count_one_step():
    model = build_model(SMALL).train()
    forward_replicas(model, *batch(4), 2)
    counts = {name: int(x) for name, x in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts and set(counts.values()) == {1}
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(m.track_running_stats for m in norms)


def test_two_replicas_differ_from_one():
    model = build_model(SMALL).train()
    v, i = batch(4)
    i[2:] += 3
    whole, split = forward_replicas(model, v, i, 1), forward_replicas(model, v, i, 2)
    assert not torch.allclose(whole.deep, split.deep, atol=1e-2)


def test_tracking_resumes_after_a_failure():
    model = build_model(SMALL).train()
    v, i = batch(2)
    calls = []

    def fail_second(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second replica")

    model.register_forward_pre_hook(fail_second)
    with pytest.raises(RuntimeError, match="second replica"):
        forward_replicas(model, v, i, 2)
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_evaluation_does_not_depend_on_replicas():
    model = build_model(SMALL).eval()
    v, i = batch(4)
    for a, b in zip(forward_replicas(model, v, i, 2), model(v, i), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rows_that_cannot_be_split():
    model = build_model(SMALL)
    with pytest.raises(ValueError, match="1 infrared"):
        forward_replicas(model, *batch(1), 2)
