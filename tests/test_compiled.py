"""Compiled networks and channels-last stems: the same results and names as without (`--compile`, `--channels-last`)."""

import copy
import dataclasses
import shutil

import pytest
import torch

from sdcl.config import PRESETS, ModelConfig
from sdcl.errors import UserError
from sdcl.models import build_model, channels_last_stems, compile_parts

SMALL = ModelConfig(image_height=32, image_width=16, dim=16, depth=4, heads=2, drop_path=0.3)
GRAPHS: list[torch.fx.GraphModule] = []


def graphs(graph, inputs):
    """A backend that keeps what it is given and runs it as it is."""
    GRAPHS.append(graph)
    return graph.forward


def pair(backend, **settings):
    """A model and a compiled copy of it."""
    torch._dynamo.reset()
    GRAPHS.clear()
    plain = build_model(SMALL).train()
    plain.bn_replicas = 2
    for name, value in settings.items():
        setattr(plain, name, value)
    compiled = copy.deepcopy(plain)
    compile_parts(compiled, backend)
    return plain, compiled


def steps(model, count):
    """Weights and statistics after some steps of two replicas, the first of another size than the others."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    torch.manual_seed(3)
    for step in range(count):
        b = 4 if step else 8
        out = model(torch.randn(2 * b, 3, 32, 16), torch.randn(b, 3, 32, 16))
        optimizer.zero_grad()
        (out.deep.sin() + out.shallow.cos()).mean().backward()
        optimizer.step()
    return model.state_dict()


def same(got, want):
    assert list(got) == list(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5, msg=lambda s, n=name: f"{n}: {s}")


@pytest.mark.slow
@pytest.mark.parametrize("backend, settings", [
    (graphs, {}), (graphs, {"gradient_checkpointing": True}), ("aot_eager", {"accumulate": 3}),
])  # fmt: skip
def test_steps_are_those_without(backend, settings):
    """Replicas, stochastic depth, recomputed layers and another number of rows; the graphs run as they are."""
    plain, compiled = pair(backend, **settings)
    start = {k: v.clone() for k, v in plain.state_dict().items()}
    want = steps(plain, 3)
    same(steps(compiled, 3), want)
    assert max(float((want[k] - start[k]).abs().max()) for k in want if want[k].is_floating_point()) > 1e-2
    assert set(want) == set(build_model(SMALL).state_dict())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
def test_fused_kernels_compute_the_same():
    """One block, with branches left out. Whole steps take a compiler minutes on a CPU: scripts/bench_step.py."""
    tokens, out = torch.randn(6, 2, 16), []
    stays = build_model(SMALL).draw_depth(6)[:, 2]
    for model in pair("inductor"):
        with torch.no_grad():
            out.append(model.blocks[2](tokens, stays))
    torch.testing.assert_close(out[1], out[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out[0], tokens)


@pytest.mark.slow
def test_blocks_share_compiled_code_and_fused_attention():
    """Rates of stochastic depth are not compiled in; batches of any size share code."""
    _, compiled = pair(graphs)
    steps(compiled, 1)
    attention = [sum("scaled_dot_product_attention" in str(n.target) for n in g.graph.nodes) for g in GRAPHS]
    assert attention == [0, 0, 1, 1], "a stem for visible and one for infrared rows, the block, the head"
    compiled.eval()
    found = []
    for n in (8, 5, 3):  # an ordinary batch, then rests
        with torch.no_grad():
            compiled(torch.randn(n, 3, 32, 16))
        found.append(len(GRAPHS))
    assert found[0] > 4 and found[1] == found[2], "the second other size needs no new code"


def test_without_a_compiler_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"--compile needs a compiler, and g\+\+ was not found.*\$CXX"):
        compile_parts(build_model(SMALL))
    monkeypatch.setenv("CXX", "/nowhere/c++ -O1")
    with pytest.raises(UserError, match=r"/nowhere/c\+\+ was not found"):
        compile_parts(build_model(SMALL))


def test_compiled_copies_on_several_gpus_are_refused():
    with pytest.raises(UserError, match="--compile does not go with --parallel dp.*--nproc-per-node 2"):
        dataclasses.replace(PRESETS["sysu"], compile=True, parallel="dp")


def test_channels_last_stems_compute_the_same() -> None:
    model = build_model(SMALL)
    images = torch.randn(4, 3, SMALL.image_height, SMALL.image_width, generator=torch.Generator().manual_seed(0))
    names = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for training in (False, True):
        model.train(training)
        torch.manual_seed(0)
        before = model(visible=images, infrared=images)
        channels_last_stems(model)
        assert model.stem_visible.conv[3].weight.is_contiguous(memory_format=torch.channels_last)
        torch.manual_seed(0)
        after = model(visible=images, infrared=images)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
        for stem in (model.stem_visible, model.stem_infrared):
            stem.to(memory_format=torch.contiguous_format)
    assert names == {name: tuple(t.shape) for name, t in model.state_dict().items()}
