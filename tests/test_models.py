"""The network against references written out from its definition, and what must hold of every instance."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from sdcl.config import ModelConfig
from sdcl.frame.peak_memory import PeakMemory
from sdcl.models import build_model
from sdcl.models.sdcl_model import DepthBlock, class_token_output
from sdcl.models.stem import ConvStem, InstanceBatchNorm

SMALL = ModelConfig(image_height=64, image_width=32, dim=32, depth=3, heads=2, drop_path=0.0)
LEVELS = ("deep", "shallow")


def images(n, config=SMALL):
    return torch.randn(n, 3, config.image_height, config.image_width)


def lively_model(config=SMALL):
    """A model in evaluation mode whose normalisations and both branches all differ from their initial values."""
    model = build_model(config)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.rand_like(t) + 0.5 if name.endswith("running_var") else t + torch.randn_like(t) * 0.1)
    return model.eval()


@pytest.mark.parametrize("shape", [(64, 32), (32, 48), (96, 48)])
def test_shapes(shape):
    config = ModelConfig(image_height=shape[0], image_width=shape[1], dim=24, depth=2, heads=3)
    model = build_model(config).eval()
    assert model.dim == 24
    assert model.pos_embed.shape == (1, 1 + shape[0] // 16 * (shape[1] // 16), 24)
    v, i = images(3, config), images(2, config)
    for rows, out in ((5, model(visible=v, infrared=i)), (3, model(visible=v)), (2, model(infrared=i))):
        assert out.deep.shape == out.shallow.shape == (rows, 24)
        assert out.deep.dtype == out.shallow.dtype == torch.float32


def test_published_size():
    stem = ConvStem(768)
    assert sum(p.numel() for p in stem.parameters()) == 3 * 64 * 49 + 2 * 64 * 64 * 9 + 3 * 128 + 768 * 64 * 64 + 768
    assert stem(torch.randn(1, 3, 288, 144)).shape == (1, 162, 768)


def test_tokens_follow_the_grid_row_by_row():
    stem = ConvStem(8).eval()
    x = torch.zeros(1, 3, 64, 32)
    x[:, :, 40, 20] = 1                                     # patch row 2, column 1 of a 4 x 2 grid: token 5
    changed = (stem(x) - stem(torch.zeros_like(x))).abs().sum(2)[0]
    assert changed.argmax() == 5


def test_each_modality_alone_gives_its_rows_of_both():
    model = lively_model()
    v, i = images(3), images(2)
    both, visible, infrared = model(visible=v, infrared=i), model(visible=v), model(infrared=i)
    for level in LEVELS:
        separate = torch.cat([getattr(visible, level), getattr(infrared, level)])
        torch.testing.assert_close(getattr(both, level), separate, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(visible=i).deep, infrared.deep, atol=1e-3)


def test_forward_is_what_the_method_page_says():
    model = lively_model()
    v, i = images(2), images(3)
    with torch.no_grad():
        s = torch.cat([model.stem_visible(v), model.stem_infrared(i)])
        x0 = torch.cat([model.cls_token.repeat(5, 1, 1), s], dim=1) + model.pos_embed
        h = x0
        for block in model.blocks:
            h = block(h)
        for level, tokens in (("deep", h), ("shallow", torch.cat([h[:, :1], x0[:, 1:]], dim=1))):
            head = getattr(model, f"{level}_head")
            z = head.norm(head.block(tokens))[:, 0]
            bn = head.bn
            want = (z - bn.running_mean) / (bn.running_var + 1e-5).sqrt() * bn.weight + bn.bias
            torch.testing.assert_close(getattr(model(v, i), level), want, rtol=1e-4, atol=1e-5)


def test_class_token_output_is_a_row_of_the_whole_block():
    block = DepthBlock(32, 4, qkv_bias=True)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    tokens = torch.randn(6, 9, 32, requires_grad=True)
    weights, stays = torch.randn(6, 32), torch.tensor([[0, 2], [2, 0], [0, 0], [2, 2], [1, 1], [2, 1.0]])
    results = []
    for out in (block(tokens, stays)[:, 0], class_token_output(block, tokens, stays)):
        results.append((out, *torch.autograd.grad((out * weights).sum(), [tokens, *block.parameters()])))
    for whole, short in zip(*results, strict=True):
        torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-5)


def test_branches_start_as_copies_and_are_independent():
    model = build_model(SMALL)
    for first, second in ((model.stem_visible, model.stem_infrared), (model.deep_head, model.shallow_head)):
        a, b = first.state_dict(), second.state_dict()
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name])
            assert a[name].data_ptr() != b[name].data_ptr()
        with torch.no_grad():
            next(first.parameters()).add_(1)
        assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_only_the_embedding_biases_are_frozen():
    model = build_model(SMALL)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"deep_head.bn.bias", "shallow_head.bn.bias"}
    model.train()(images(4), images(4)).deep.square().sum().backward()
    for head in (model.deep_head, model.shallow_head):
        assert bool((head.bn.weight == 1).all()) and bool((head.bn.bias == 0).all()) and head.bn.bias.grad is None


def test_initial_weights_follow_the_global_seed():
    def built(seed):
        torch.manual_seed(seed)
        return build_model(SMALL).state_dict()
    a, b, c = built(1), built(1), built(2)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["blocks.0.attn.qkv.weight"], c["blocks.0.attn.qkv.weight"])
    assert not torch.equal(a["cls_token"], c["cls_token"])
    assert 0.01 < float(a["blocks.0.mlp.fc1.weight"].std()) < 0.03 and not a["blocks.0.mlp.fc1.bias"].any()


@pytest.mark.parametrize("training", [True, False])
def test_instance_batch_norm(training):
    """First half: each image's own statistics, in evaluation too; second half: the batch's, or the running ones."""
    ibn = InstanceBatchNorm(6).train(training)
    with torch.no_grad():
        for p in ibn.parameters():
            p.copy_(torch.randn_like(p))
        ibn.BN.running_mean.copy_(torch.randn(3))
        ibn.BN.running_var.copy_(torch.rand(3) + 0.5)
    mean, var = ibn.BN.running_mean.clone()[:, None, None], ibn.BN.running_var.clone()[:, None, None]
    x = torch.randn(4, 6, 5, 3) * 2 + 1
    a, b = x[:, :3], x[:, 3:]
    a = (a - a.mean((2, 3), keepdim=True)) / (a.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    if training:
        mean, var = b.mean((0, 2, 3), keepdim=True), b.var((0, 2, 3), unbiased=False, keepdim=True)
    b = (b - mean) / (var + 1e-5).sqrt()
    want = torch.cat([a * ibn.IN.weight[:, None, None] + ibn.IN.bias[:, None, None],
                      b * ibn.BN.weight[:, None, None] + ibn.BN.bias[:, None, None]], dim=1)
    torch.testing.assert_close(ibn(x), want, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_grows_linearly_up_to_both_heads():
    model = build_model(ModelConfig(image_height=32, image_width=16, dim=16, depth=5, heads=2, drop_path=0.2))
    drawn = model.draw_depth(40000)
    assert drawn.shape == (40000, 6, 2) and drawn.dtype == torch.float32
    rates = torch.tensor([0, 0.05, 0.1, 0.15, 0.2, 0.2])[:, None].expand(6, 2)
    torch.testing.assert_close((drawn == 0).float().mean(0), rates, rtol=0, atol=0.01)
    kept = torch.where(drawn == 0, 1 / (1 - rates), drawn)  # a branch that stays is divided by the probability to
    torch.testing.assert_close(kept, (1 / (1 - rates)).expand_as(kept))
    assert float(torch.corrcoef((drawn[:, 1:] == 0).flatten(1).T.float()).fill_diagonal_(0).abs().max()) < 0.03
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_embedding_statistics_are_taken_over_both_modalities_together():
    model = lively_model().train()
    seen = []
    model.deep_head.bn.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    model.deep_head.bn.reset_running_stats()
    out = model(images(5), images(3)).deep
    assert seen[0].shape == (8, 32)
    torch.testing.assert_close(model.deep_head.bn.running_mean, 0.1 * seen[0].mean(0))
    bn = model.deep_head.bn
    torch.testing.assert_close(out, F.batch_norm(seen[0], None, None, bn.weight, bn.bias, training=True))


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("saving, drop_path", [
    ({"gradient_checkpointing": True}, 0.5), ({"accumulate": 2}, 0.5), ({"accumulate": 4}, 0.0),
    ({"accumulate": 3, "gradient_checkpointing": True}, 0.5), ({"accumulate": 100}, 0.5),
])  # fmt: skip
def test_saving_memory_changes_nothing(saving, drop_path, replicas):
    """Embeddings, gradients, and running statistics, which move once; in float64, where sums of parts are exact enough
    to tell."""
    plain = build_model(dataclasses.replace(SMALL, drop_path=drop_path)).train().double()
    plain.bn_replicas = replicas
    other = copy.deepcopy(plain)
    for name, value in saving.items():
        setattr(other, name, value)
    v, i = images(8).double(), images(6).double()
    calls = []
    for part in (other.blocks[0], other.stem_visible):
        part.register_forward_pre_hook(lambda part, _: calls.append(part))
    results = []
    for model in (plain, other):
        torch.manual_seed(7)                                # the same branches stay
        out = model(v, i)
        results.append(out)
        (out.deep.sin() + out.shallow.cos()).sum().backward()
    assert calls.count(other.stem_visible) == 2 * replicas  # forward, and again in the backward pass
    parts = min(saving.get("accumulate", 1), 14)
    again = 2 if len(saving) == 2 else 1                    # in the part's backward pass, and in the block's own
    assert calls.count(other.blocks[0]) == (1 + again) * parts  # of all replicas' rows
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for (name, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9, msg=name)
    for (name, a), b in zip(plain.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.slow
def test_parts_of_a_batch_hold_less_memory():
    """What the transformer needs beside its inputs and gradients goes down about as the parts' number goes up."""
    config = dataclasses.replace(SMALL, depth=9)
    s, peaks = torch.randn(48, 8, 32, requires_grad=True), {}
    for parts in (1, 2, 4, 8):
        model = build_model(config).train()
        model.accumulate = parts
        for memory in (PeakMemory(), PeakMemory()):         # the second time, gradients are there
            with memory:
                sum(x.square().mean() for x in model._in_parts(s, None)).backward()
        gradients = sum(p.numel() * 4 for p in model.parameters() if p.grad is not None)
        peaks[parts] = memory.peak - gradients              # a sum over parts is held until it is complete
    assert peaks[1] / peaks[2] > 1.7 and peaks[1] / peaks[4] > 2.9 and peaks[1] / peaks[8] > 4, peaks


@pytest.mark.parametrize("saving", [{"gradient_checkpointing": True}, {"accumulate": 2}])
def test_stems_are_not_held(saving):
    """Between the forward and the backward pass, a stem's maps would be most of what is held."""
    held = {}
    for case in ({}, saving):
        model = build_model(dataclasses.replace(SMALL, depth=2)).train()
        for name, value in case.items():
            setattr(model, name, value)
        with PeakMemory() as memory:
            out = model(images(4), images(4))
        held[len(case)] = memory.held
        assert out.deep.requires_grad
    assert held[1] < 0.1 * held[0], held


def test_a_branch_that_is_left_out_adds_nothing():
    block, tokens = DepthBlock(32, 4, qkv_bias=True), torch.randn(3, 5, 32)
    out = block(tokens, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert torch.equal(out[0], tokens[0])
    torch.testing.assert_close(out[1], block(tokens)[1])
    torch.testing.assert_close(out[2], tokens[2] + 2 * block.mlp(block.norm2(tokens[2])))
    halved = (block.bfloat16())(tokens.bfloat16(), torch.ones(3, 2))
    assert halved.dtype == torch.bfloat16


def test_branches_are_left_out_in_training_alone():
    model = build_model(dataclasses.replace(SMALL, drop_path=0.9)).eval()
    x = images(4)
    assert torch.equal(model(x).deep, model(x).deep)
    assert torch.equal(model(x, stays=model.draw_depth(4)).deep, model(x).deep)
    assert not torch.equal(model.train()(x).deep, model(x).deep)
    assert build_model(SMALL).draw_depth(4) is None


def test_weights_keep_their_names_with_stochastic_depth():
    with_it, without = (build_model(dataclasses.replace(SMALL, drop_path=p)).state_dict() for p in (0.1, 0.0))
    assert with_it.keys() == without.keys()


def test_attention_is_fused(monkeypatch):
    """Every block attends through torch's own kernels."""
    calls, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attention(*a, **k))
    build_model(SMALL)(images(2))
    assert len(calls) == SMALL.depth + 1


def test_wrong_input_is_named():
    model = build_model(SMALL)
    with pytest.raises(ValueError, match="neither"):
        model()
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 48\).*3, 64, 32"):
        model(visible=torch.zeros(2, 3, 64, 48))
    with pytest.raises(ValueError, match="images have shape"):
        model(infrared=torch.zeros(3, 64, 32))
