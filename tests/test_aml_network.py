"""AML's network, views and weight files."""

import pytest
import torch
from torchvision.models import resnet50

from sdcl.aml.network import Classifiers, GeneralizedMeanPool, Network, Pair, embed_pair
from sdcl.aml.views import normalise, one_channel, views
from sdcl.aml.weights import backbone_names, load_imagenet, load_published
from sdcl.errors import UserError

SMALL = {"blocks": (1, 1, 1, 1), "width": 4}


def small(**changes):
    return Network(**SMALL, **changes)


@pytest.mark.slow
def test_resnet_50_has_torchvisions_tensors_and_no_stride_in_the_last_stage():
    ours, theirs = Network().state_dict(), resnet50().state_dict()
    backbone = {n: t.shape for n, t in theirs.items() if not n.startswith("fc.")}
    extra = {"pool.p", "stage", *(f"neck.{n}" for n in Network().neck.state_dict())}
    assert {n: t.shape for n, t in ours.items() if n not in extra} == backbone
    assert ours.keys() >= extra
    strides = [m.stride for m in Network().layer4.modules() if isinstance(m, torch.nn.Conv2d)]
    assert set(strides) == {(1, 1)}


@pytest.mark.slow
def test_features_are_torchvisions_up_to_the_pooling():
    net, theirs = Network().eval(), resnet50().eval()
    theirs.load_state_dict({n: t for n, t in net.state_dict().items() if n in theirs.state_dict()}, strict=False)
    for m in theirs.layer4.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.stride = (1, 1)
    theirs.avgpool, theirs.fc = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        positions = theirs(x).reshape(2, 2048, -1)
        want = positions.clamp(min=1e-6).pow(3).mean(2).pow(1 / 3)
        torch.testing.assert_close(net.pooled(x), want, rtol=1e-4, atol=1e-6)


def test_pooling_with_exponent_1_is_the_mean_and_a_large_one_the_maximum():
    x, pool = torch.rand(2, 3, 4, 5) + 0.5, GeneralizedMeanPool()
    pool.p.data.fill_(1.0)
    torch.testing.assert_close(pool(x), x.mean((2, 3)))
    pool.p.data.fill_(80.0)
    torch.testing.assert_close(pool(x), x.amax((2, 3)), rtol=0.05, atol=0)


def test_what_learns():
    net = small()
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["neck.bias"]
    weights = Classifiers(net.dim, 5).weights
    assert [tuple(w.shape) for w in weights] == [(5, net.dim)] * 2 and not torch.equal(*weights)
    assert max(float(w.detach().abs().max()) for w in weights) <= net.dim**-0.5


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("norm", [1, 2])
def test_test_features_have_norm_one_and_are_those_of_their_stage(stage, norm):
    net, x = small(feature_norm=norm).eval(), torch.randn(3, 3, 32, 16)
    net.neck.running_mean.fill_(0.3)
    net.stage.fill_(stage)
    with torch.no_grad():
        got = net.test_features(x)
        want = net.pooled(x) if stage == 1 else net(x)
    torch.testing.assert_close(got.norm(p=norm, dim=1), torch.ones(3))
    torch.testing.assert_close(got * want.norm(p=norm, dim=1, keepdim=True), want)


def test_pair_of_rows_is_the_mean_over_image_and_mirror_image_of_both_networks():
    pair, x = Pair(small(), small()).eval(), torch.randn(2, 3, 32, 16)
    channels = torch.tensor([[0, 2], [1, 1]])
    with torch.no_grad():
        got = embed_pair(pair, x, channels)
        p1 = (pair.first.test_features(x) + pair.first.test_features(x.flip(3))) / 2
        p2 = pair.second.test_features(one_channel(x, channels[:, 0]))
        p2 = (p2 + pair.second.test_features(one_channel(x.flip(3), channels[:, 1]))) / 2
    torch.testing.assert_close(got, torch.cat([p1, p2], 1))


def test_a_head_that_begins_again():
    net = small()
    net.pool.p.data.fill_(2.0)
    net.neck.running_mean.fill_(5.0)
    net.neck.weight.data.fill_(9.0)
    net.begin_head()
    assert float(net.pool.p.detach()) == 3.0 and not net.neck.running_mean.any() and net.neck.running_var.eq(1).all()
    assert net.neck.weight.std() > 0 and float((net.neck.weight - 1).abs().max()) < 0.1
    assert not net.neck.bias.requires_grad


def test_views():
    pixels, generated = torch.randint(0, 256, (3, 3, 4, 2)), torch.randint(0, 256, (3, 3, 4, 2))
    channels = torch.tensor([2, 0, 1])
    visible, target = views(pixels, None, channels)
    torch.testing.assert_close(visible, normalise(pixels))
    for i, c in enumerate(channels.tolist()):
        for k in range(3):
            assert torch.equal(target[i, k], visible[i, c])  # keeps its own mean and deviation
    _, source = views(pixels, generated, channels)
    torch.testing.assert_close(source, 0.2 * normalise(generated) + 0.8 * target)


def imagenet_like(net):
    state = {n: torch.rand_like(t) for n, t in net.state_dict().items() if n in backbone_names(net)}
    return state | {"fc.weight": torch.zeros(1000, net.dim), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("counters", [True, False])
def test_imagenet_weights_fill_the_backbone_alone(tmp_path, counters):
    net = small()
    state, before = imagenet_like(net), {n: t.clone() for n, t in net.state_dict().items()}
    torch.save(state | ({"bn1.num_batches_tracked": torch.tensor(7)} if counters else {}), tmp_path / "w.pth")
    load_imagenet(net, tmp_path / "w.pth")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state.get(name, before[name])), name


def broken(state, kind):
    if kind == "missing":
        del state["layer3.0.bn2.running_var"]
    elif kind == "deeper":
        state["layer3.5.conv1.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    else:
        state["bn1.weight"][0] = torch.nan
    return state


@pytest.mark.parametrize("kind", ["missing", "deeper", "shape", "nan"])
def test_incomplete_or_other_weights_are_refused_and_change_nothing(tmp_path, kind):
    net = small()
    before = net.conv1.weight.clone()
    torch.save(broken(imagenet_like(net), kind), tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth"):
        load_imagenet(net, tmp_path / "w.pth")
    assert torch.equal(net.conv1.weight, before)


def published_file(path, stage, nets):
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    head = "" if stage == 1 else "b1_"
    names = {"pool": f"{head}pool.0", "neck": f"{head}head.bnneck"}
    entries = {"pixel_mean": torch.zeros(1, 3, 1, 1), "pixel_std": torch.ones(1, 3, 1, 1)}
    for k, net in enumerate(nets, 1):
        for name, tensor in net.state_dict().items():
            first, _, rest = name.partition(".")
            if rest:
                place = f"backbone.{places[first]}" if first in places else names[first]
                entries[f"model{k}.{place}.{rest}"] = tensor
        entries[f"model{k}.{head}head.classifier.weight"] = torch.full((5, net.dim), float(k))
        if stage == 2:
            entries[f"model{k}.b2_head.bnneck.weight"] = torch.zeros(3)
    torch.save({"model": entries, "iteration": 14999}, path)


@pytest.mark.parametrize("stage", [1, 2])
def test_published_checkpoints(tmp_path, stage):
    nets, loaded = ([small() for _ in range(2)] for _ in range(2))
    published_file(tmp_path / "model_final.pth", stage, nets)
    classifiers = load_published(tmp_path / "model_final.pth", *loaded)
    assert [float(w[0, 0]) for w in classifiers] == ([1.0, 2.0] if stage == 1 else [])
    for ours, theirs in zip(loaded, nets, strict=True):
        assert int(ours.stage) == stage
        for name, tensor in theirs.state_dict().items():
            if name != "stage" and not name.endswith("num_batches_tracked"):
                assert torch.equal(ours.state_dict()[name], tensor), name
    alone = small()
    load_published(tmp_path / "model_final.pth", alone)
    assert torch.equal(alone.conv1.weight, nets[0].conv1.weight)


def test_other_files_are_no_published_checkpoint(tmp_path):
    torch.save({"model": imagenet_like(small())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no checkpoint of the published AML"):
        load_published(tmp_path / "w.pth", small())
